//! Softmax attention of one query group over rows of a cache: all of them (dense) or chosen ones (FAC).
//!
//! Rows are read in blocks with a running maximum (online softmax), each key and value once for up to four queries of the
//! group, and a block's rows are still in the first cache when more queries want them.

use crate::exp::exp;
use crate::isa::dispatch;
use crate::layer::{Head, LayerCache};
use crate::partial::Partial;
use crate::simd::{Element, LANES, Padded, Simd, dots};
use fasa_core::Result;
use rayon::prelude::*;

/// Rows per block: keys and values of a block fit in the first cache.
const BLOCK: usize = 64;

/// Queries per pass over a block.
const QUERIES: usize = 4;

/// Fewest rows worth a thread of their own.
const ROWS_PER_TASK: usize = 1024;

/// The rows to read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which<'a> {
    /// From the first to before the second.
    Span(usize, usize),
    /// These.
    Chosen(&'a [u32]),
}

impl Which<'_> {
    fn len(&self) -> usize {
        match self {
            Which::Span(from, to) => to - from,
            Which::Chosen(positions) => positions.len(),
        }
    }

    #[inline(always)]
    fn at(&self, i: usize) -> usize {
        match self {
            Which::Span(from, _) => from + i,
            Which::Chosen(positions) => positions[i] as usize,
        }
    }
}

/// Adds the attention of `queries` (padded rows, scaled by `1 / √dim`) over the rows `which` of one KV head to `partial`.
pub(crate) fn accumulate(queries: &Padded, head: Head<'_>, dim: usize, which: Which<'_>, partial: &mut Partial) {
    match head {
        Head::F32 { keys, values } => accumulate_rows(queries, keys, values, dim, which, partial),
        Head::F16 { keys, values } => accumulate_rows(queries, keys, values, dim, which, partial),
    }
}

dispatch! {
    fn accumulate_rows[E: Element](queries: &Padded, keys: &[E], values: &[E], dim: usize, which: Which<'_>, partial: &mut Partial)
        = accumulate_kernel
}

/// Scores of a block, then weights: `[QUERIES, BLOCK]`.
type Weights = [[[f32; LANES]; BLOCK / LANES]; QUERIES];

#[inline(always)]
fn accumulate_kernel<S: Simd, E: Element>(
    simd: S,
    queries: &Padded,
    keys: &[E],
    values: &[E],
    dim: usize,
    which: Which<'_>,
    partial: &mut Partial,
) {
    let rows = which.len();
    let mut weights: Weights = [[[0.0; LANES]; BLOCK / LANES]; QUERIES];
    for start in (0..rows).step_by(BLOCK) {
        let count = BLOCK.min(rows - start);
        let mut first = 0;
        while first < queries.len() {
            // Tiles of 4, 2 or 1 queries.
            let tile = match queries.len() - first {
                1 => 1,
                2 | 3 => 2,
                _ => QUERIES,
            };
            score_block(simd, queries, first, tile, keys, values, dim, which, start, count, &mut weights);
            for q in 0..tile {
                to_weights(simd, &mut weights[q], count, partial, first + q);
            }
            add_values(simd, &weights, first, tile, values, dim, which, start, count, partial);
            first += tile;
        }
    }
}

/// Scores of `count` rows from `start` for the queries `first .. first + tile`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn score_block<S: Simd, E: Element>(
    simd: S,
    queries: &Padded,
    first: usize,
    tile: usize,
    keys: &[E],
    values: &[E],
    dim: usize,
    which: Which<'_>,
    start: usize,
    count: usize,
    weights: &mut Weights,
) {
    let mut i = 0;
    while i < count {
        // Rows past the end repeat the last one; their scores are not read.
        let rows: [usize; 4] = std::array::from_fn(|r| which.at(start + (i + r).min(count - 1)));
        if let Which::Chosen(positions) = which {
            // Rows far apart: nothing but asking ahead of time hides the memory's latency.
            for ahead in start + i + 8..start + i + 12 {
                if let Some(t) = positions.get(ahead) {
                    prefetch_row(simd, &keys[*t as usize * dim..][..dim]);
                }
            }
            for t in rows {
                prefetch_row(simd, &values[t * dim..][..dim]);
            }
        }
        let row = |r: usize| &keys[rows[r] * dim..][..dim];
        let query = |q: usize| queries.row(first + q);
        // Where scores of four rows go.
        let (block, lane) = (i / LANES, i % LANES);
        let mut put = |q: usize, sums: [f32; 4]| weights[q][block][lane..lane + 4].copy_from_slice(&sums);
        match (tile, S::WIDE) {
            (4, true) => {
                let sums = dots::<S, E, 4, 4>(
                    simd,
                    [row(0), row(1), row(2), row(3)],
                    [query(0), query(1), query(2), query(3)],
                );
                for q in 0..4 {
                    put(q, simd.sum4(std::array::from_fn(|r| sums[r][q])));
                }
            }
            (2, true) => {
                let sums = dots::<S, E, 4, 2>(simd, [row(0), row(1), row(2), row(3)], [query(0), query(1)]);
                for q in 0..2 {
                    put(q, simd.sum4(std::array::from_fn(|r| sums[r][q])));
                }
            }
            (2 | 4, false) => {
                for q in (0..tile).step_by(2) {
                    let low = dots::<S, E, 2, 2>(simd, [row(0), row(1)], [query(q), query(q + 1)]);
                    let low = simd.sum4([low[0][0], low[1][0], low[0][1], low[1][1]]);
                    let high = dots::<S, E, 2, 2>(simd, [row(2), row(3)], [query(q), query(q + 1)]);
                    let high = simd.sum4([high[0][0], high[1][0], high[0][1], high[1][1]]);
                    put(q, [low[0], low[1], high[0], high[1]]);
                    put(q + 1, [low[2], low[3], high[2], high[3]]);
                }
            }
            _ => {
                let sums = dots::<S, E, 4, 1>(simd, [row(0), row(1), row(2), row(3)], [query(0)]);
                put(0, simd.sum4(sums.map(|[sum]| sum)));
            }
        }
        i += 4;
    }
}

#[inline(always)]
fn prefetch_row<S: Simd, E>(simd: S, row: &[E]) {
    const LINE: usize = 64;
    for at in (0..row.len()).step_by(LINE / size_of::<E>()) {
        simd.prefetch(&raw const row[at]);
    }
}

/// Scores of a block to weights relative to the running maximum, which may rise.
#[inline(always)]
fn to_weights<S: Simd>(
    simd: S,
    scores: &mut [[f32; LANES]; BLOCK / LANES],
    count: usize,
    partial: &mut Partial,
    g: usize,
) {
    scores.as_flattened_mut()[count..].fill(f32::NEG_INFINITY);
    let largest = scores.iter().fold(simd.splat(f32::NEG_INFINITY), |m, x| simd.max(simd.load(x), m));
    let max = simd.largest(largest);
    if max > partial.max[g] {
        let shrink = (partial.max[g] - max).exp();
        let blocks = partial.blocks();
        for sum in &mut partial.sums[g * blocks..(g + 1) * blocks] {
            let shrunk = simd.mul(simd.load(sum), simd.splat(shrink));
            simd.store(shrunk, sum);
        }
        partial.total[g] *= shrink;
        partial.max[g] = max;
    }
    let max = simd.splat(partial.max[g]);
    let mut total = simd.splat(0.0);
    for block in scores {
        let weights = exp(simd, simd.sub(simd.load(block), max));
        total = simd.add(total, weights);
        simd.store(weights, block);
    }
    partial.total[g] += simd.sum(total);
}

/// Adds the weighted values of the block's rows.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn add_values<S: Simd, E: Element>(
    simd: S,
    weights: &Weights,
    first: usize,
    tile: usize,
    values: &[E],
    dim: usize,
    which: Which<'_>,
    start: usize,
    count: usize,
    partial: &mut Partial,
) {
    let all = partial.blocks();
    let whole = dim / LANES;
    let mut from = 0;
    while from < all {
        let width = match (S::WIDE, whole.saturating_sub(from)) {
            (true, 4..) => 4,
            (_, 2..) => 2,
            _ => 1,
        };
        // The last vector of an odd dimension is loaded with care.
        let rest = if from < whole { LANES } else { dim % LANES };
        let mut add = |first_query: usize, queries: usize| {
            let row = |i: usize| &values[which.at(start + i) * dim + from * LANES..];
            let sums = &mut partial.sums[(first + first_query) * all..];
            let weights = &weights[first_query..];
            match (queries, width) {
                (4, 4) => add_tile::<S, E, 4, 4>(simd, weights, row, count, sums, all, from),
                (4, 2) => add_tile::<S, E, 4, 2>(simd, weights, row, count, sums, all, from),
                (2, 4) => add_tile::<S, E, 2, 4>(simd, weights, row, count, sums, all, from),
                (2, 2) => add_tile::<S, E, 2, 2>(simd, weights, row, count, sums, all, from),
                (1, 4) => add_tile::<S, E, 1, 4>(simd, weights, row, count, sums, all, from),
                (1, 2) => add_tile::<S, E, 1, 2>(simd, weights, row, count, sums, all, from),
                _ => (0..queries).for_each(|q| {
                    let mut sum = simd.load(&sums[q * all + from]);
                    for i in 0..count {
                        let weight = simd.splat(weights[q][i / LANES][i % LANES]);
                        sum = simd.mul_add(weight, E::load_rest(simd, &row(i)[..rest]), sum);
                    }
                    simd.store(sum, &mut sums[q * all + from]);
                }),
            }
        };
        match (S::WIDE, tile) {
            (false, 4) => {
                add(0, 2);
                add(2, 2);
            }
            _ => add(0, tile),
        }
        from += width;
    }
}

/// `Q` queries times `B` vectors of every row of a block, in registers.
#[inline(always)]
fn add_tile<'a, S: Simd, E: Element + 'a, const Q: usize, const B: usize>(
    simd: S,
    weights: &[[[f32; LANES]; BLOCK / LANES]],
    row: impl Fn(usize) -> &'a [E],
    count: usize,
    sums: &mut [[f32; LANES]],
    stride: usize,
    from: usize,
) {
    let weights: [&[f32]; Q] = std::array::from_fn(|q| &weights[q].as_flattened()[..count]);
    let mut tile: [[S::F; B]; Q] =
        std::array::from_fn(|q| std::array::from_fn(|b| simd.load(&sums[q * stride + from + b])));
    for i in 0..count {
        let row = row(i).as_chunks::<LANES>().0[..B].as_ref();
        let value: [S::F; B] = std::array::from_fn(|b| E::load(simd, &row[b]));
        for q in 0..Q {
            let weight = simd.splat(weights[q][i]);
            for b in 0..B {
                tile[q][b] = simd.mul_add(weight, value[b], tile[q][b]);
            }
        }
    }
    for q in 0..Q {
        for b in 0..B {
            simd.store(tile[q][b], &mut sums[q * stride + from + b]);
        }
    }
}

/// Queries of one KV head, ready for [`accumulate`].
pub(crate) fn scaled(queries: &[f32], dim: usize) -> Padded {
    Padded::new(queries, dim, 1.0 / (dim as f32).sqrt())
}

/// Attention of one decode step over the whole cache of a layer.
///
/// `queries` and `out` are `[query_heads, dim]`. Query head h reads KV head h / G. Rows of one KV head are split over
/// threads when there are more threads than heads.
///
/// # Errors
/// [`fasa_core::Error::Length`] if the shapes disagree.
pub fn dense_decode(queries: &[f32], cache: &LayerCache<'_>, out: &mut [f32]) -> Result<()> {
    let group = cache.group(queries, out)?;
    let (dim, len, heads) = (cache.dim(), cache.len(), cache.kv_heads());
    let wanted = rayon::current_num_threads().div_ceil(heads);
    let pieces = wanted.min(len / ROWS_PER_TASK).max(1);
    let per_piece = len.div_ceil(pieces);
    let attend = |queries: &Padded, head: usize, from: usize| {
        let mut partial = Partial::new(group, dim);
        let to = (from + per_piece).min(len);
        accumulate(queries, cache.head(head), dim, Which::Span(from, to), &mut partial);
        partial
    };
    let serial = heads * pieces == 1 || len * dim * heads < 16 * 1024;
    let one_head = |(head, out): (usize, &mut [f32])| {
        let queries = scaled(&queries[head * group * dim..(head + 1) * group * dim], dim);
        let starts: Vec<usize> = (0..len).step_by(per_piece).collect();
        let parts: Vec<Partial> = match serial || starts.len() == 1 {
            true => starts.iter().map(|&from| attend(&queries, head, from)).collect(),
            false => starts.par_iter().map(|&from| attend(&queries, head, from)).collect(),
        };
        let mut parts = parts.into_iter();
        if let Some(mut whole) = parts.next() {
            parts.for_each(|part| whole.merge(&part));
            whole.finish(out);
        }
    };
    if serial {
        out.chunks_exact_mut(group * dim).enumerate().for_each(one_head);
    } else {
        out.par_chunks_exact_mut(group * dim).enumerate().for_each(one_head);
    }
    Ok(())
}
