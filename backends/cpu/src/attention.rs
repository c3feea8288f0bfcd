//! Softmax attention of one query group over rows of a cache: all of them (dense) or chosen ones (FAC).
//!
//! Rows are read in blocks with a running maximum (online softmax), each key and value once for up to four queries of the
//! group, and a block's rows are still in the first cache when more queries want them.
//!
//! Reading alternates between keys and values, and chosen rows lie far apart: nothing but asking ahead of time hides the
//! memory's latency. While keys are used, the block's values are asked for, and keys further on.

use crate::exp::{exp2, softcap};
use crate::isa::dispatch;
use crate::layer::{Head, LayerCache};
use crate::partial::Partial;
use crate::simd::{Element, LANES, Padded, Simd, dots};
use crate::source::{Failure, Source};
use crate::team::share_each;
use fasa_core::Result;

/// Rows per block: keys and values of a block fit in the first cache.
pub(crate) const BLOCK: usize = 64;

/// Rows between the keys that are used and those that are asked for.
const AHEAD: usize = 16;

/// Queries per pass over a block.
const QUERIES: usize = 4;

/// Numbers in keys that one thread reads faster than two.
const SERIAL: usize = 16 * 1024;

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

/// Adds the attention of `queries` (from [`scaled`]) over the rows `which` of one KV head of `cache` to `partial`.
pub(crate) fn accumulate(
    queries: &Padded,
    cache: &LayerCache<'_>,
    kv_head: usize,
    which: Which<'_>,
    partial: &mut Partial,
) {
    // Scores are in powers of two, and so is what they are capped at.
    let (dim, cap) = (cache.dim(), cache.softcap() * std::f32::consts::LOG2_E);
    match cache.head(kv_head) {
        Head::F32 { keys, values } => accumulate_rows(queries, keys, values, dim, cap, which, partial),
        Head::F16 { keys, values } => accumulate_rows(queries, keys, values, dim, cap, which, partial),
    }
}

dispatch! {
    fn accumulate_rows[E: Element](queries: &Padded, keys: &[E], values: &[E], dim: usize, cap: f32, which: Which<'_>, partial: &mut Partial)
        = accumulate_kernel
}

/// Scores of a block, then weights: `[QUERIES, BLOCK]`.
type Weights = [[[f32; LANES]; BLOCK / LANES]; QUERIES];

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn accumulate_kernel<S: Simd, E: Element>(
    simd: S,
    queries: &Padded,
    keys: &[E],
    values: &[E],
    dim: usize,
    cap: f32,
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
                if cap > 0.0 {
                    for block in &mut weights[q] {
                        simd.store(softcap(simd, simd.load(block), cap), block);
                    }
                }
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
        for r in start + i + AHEAD..start + i + AHEAD + 4 {
            if r < which.len() {
                prefetch_row(simd, &keys[which.at(r) * dim..][..dim]);
            }
        }
        for t in rows {
            prefetch_row(simd, &values[t * dim..][..dim]);
        }
        let row = |r: usize| &keys[rows[r] * dim..][..dim];
        let (low, high) = ([row(0), row(1)], [row(2), row(3)]);
        let all = [low[0], low[1], high[0], high[1]];
        let query = |q: usize| queries.row(first + q);
        // Where scores of four rows go.
        let (block, lane) = (i / LANES, i % LANES);
        match (tile, S::WIDE) {
            (4, true) => {
                let sums = dots::<S, E, 4, 4>(simd, all, [query(0), query(1), query(2), query(3)]);
                for q in 0..4 {
                    let sums = simd.sum4([sums[0][q], sums[1][q], sums[2][q], sums[3][q]]);
                    weights[q][block][lane..lane + 4].copy_from_slice(&sums);
                }
            }
            (2, true) => {
                let sums = dots::<S, E, 4, 2>(simd, all, [query(0), query(1)]);
                for q in 0..2 {
                    let sums = simd.sum4([sums[0][q], sums[1][q], sums[2][q], sums[3][q]]);
                    weights[q][block][lane..lane + 4].copy_from_slice(&sums);
                }
            }
            (2 | 4, false) => {
                for q in (0..tile).step_by(2) {
                    let pair = [query(q), query(q + 1)];
                    for (rows, lane) in [(low, lane), (high, lane + 2)] {
                        let [[a, b], [c, d]] = dots::<S, E, 2, 2>(simd, rows, pair);
                        let sums = simd.sum4([a, c, b, d]);
                        weights[q][block][lane..lane + 2].copy_from_slice(&sums[..2]);
                        weights[q + 1][block][lane..lane + 2].copy_from_slice(&sums[2..]);
                    }
                }
            }
            _ => {
                let [[a], [b], [c], [d]] = dots::<S, E, 4, 1>(simd, all, [query(0)]);
                weights[0][block][lane..lane + 4].copy_from_slice(&simd.sum4([a, b, c, d]));
            }
        }
        i += 4;
    }
}

#[inline(always)]
fn prefetch_row<S: Simd, E>(simd: S, row: &[E]) {
    for line in row.chunks(64 / size_of::<E>()) {
        simd.prefetch(line.as_ptr());
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
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for block in scores.iter() {
        largest = simd.max(simd.load(block), largest); // a NaN loses against any number
    }
    let max = simd.largest(largest);
    if max > partial.max[g] {
        let shrink = (partial.max[g] - max).exp2();
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
        let weights = exp2(simd, simd.sub(simd.load(block), max));
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
    let (whole, stride) = (dim / LANES, partial.blocks());
    let block = Block { values, dim, which, start, count, stride };
    // Few registers: two queries at a time.
    let step = if S::WIDE { tile } else { tile.min(2) };
    for q in (0..tile).step_by(step) {
        let weights = &weights[q..q + step];
        let sums = &mut partial.sums[(first + q) * stride..(first + q + step) * stride];
        let mut from = 0;
        while from < whole {
            let width = match whole - from {
                4.. if S::WIDE => 4,
                2.. => 2,
                _ => 1,
            };
            match (step, width) {
                (4, 4) => add_tile::<S, E, 4, 4>(simd, weights, &block, sums, from),
                (4, 2) => add_tile::<S, E, 4, 2>(simd, weights, &block, sums, from),
                (4, _) => add_tile::<S, E, 4, 1>(simd, weights, &block, sums, from),
                (2, 4) => add_tile::<S, E, 2, 4>(simd, weights, &block, sums, from),
                (2, 2) => add_tile::<S, E, 2, 2>(simd, weights, &block, sums, from),
                (2, _) => add_tile::<S, E, 2, 1>(simd, weights, &block, sums, from),
                (_, 4) => add_tile::<S, E, 1, 4>(simd, weights, &block, sums, from),
                (_, 2) => add_tile::<S, E, 1, 2>(simd, weights, &block, sums, from),
                _ => add_tile::<S, E, 1, 1>(simd, weights, &block, sums, from),
            }
            from += width;
        }
        if whole < stride {
            add_rest(simd, weights, &block, sums);
        }
    }
}

/// Values of a block's rows.
struct Block<'a, E> {
    values: &'a [E],
    dim: usize,
    which: Which<'a>,
    start: usize,
    count: usize,
    /// Vectors of sums per query.
    stride: usize,
}

impl<E> Block<'_, E> {
    #[inline(always)]
    fn row(&self, i: usize) -> &[E] {
        &self.values[self.which.at(self.start + i) * self.dim..][..self.dim]
    }
}

/// `Q` queries times `B` vectors of every row of a block, in registers.
#[inline(always)]
fn add_tile<S: Simd, E: Element, const Q: usize, const B: usize>(
    simd: S,
    weights: &[[[f32; LANES]; BLOCK / LANES]],
    block: &Block<'_, E>,
    sums: &mut [[f32; LANES]],
    from: usize,
) {
    let zero = simd.splat(0.0);
    let mut tile = [[zero; B]; Q];
    for q in 0..Q {
        for b in 0..B {
            tile[q][b] = simd.load(&sums[q * block.stride + from + b]);
        }
    }
    for i in 0..block.count {
        let row = &block.row(i).as_chunks::<LANES>().0[from..from + B];
        let mut value = [zero; B];
        for b in 0..B {
            value[b] = E::load(simd, &row[b]);
        }
        for q in 0..Q {
            let weight = simd.splat(weights[q][i / LANES][i % LANES]);
            for b in 0..B {
                tile[q][b] = simd.mul_add(weight, value[b], tile[q][b]);
            }
        }
    }
    for q in 0..Q {
        for b in 0..B {
            simd.store(tile[q][b], &mut sums[q * block.stride + from + b]);
        }
    }
}

/// The last, partial vector of every row.
#[inline(always)]
fn add_rest<S: Simd, E: Element>(
    simd: S,
    weights: &[[[f32; LANES]; BLOCK / LANES]],
    block: &Block<'_, E>,
    sums: &mut [[f32; LANES]],
) {
    let from = block.dim / LANES;
    for (q, weights) in weights.iter().enumerate() {
        let sum = &mut sums[q * block.stride + from];
        let mut total = simd.load(sum);
        for i in 0..block.count {
            let value = E::load_rest(simd, &block.row(i)[from * LANES..]);
            total = simd.mul_add(simd.splat(weights[i / LANES][i % LANES]), value, total);
        }
        simd.store(total, sum);
    }
}

/// Queries of one KV head, ready for [`accumulate`]: times `log2 e / √dim`, so that weights are powers of two.
pub(crate) fn scaled(queries: &[f32], dim: usize) -> Padded {
    Padded::new(queries, dim, std::f32::consts::LOG2_E / (dim as f32).sqrt())
}

/// Attention of one decode step over the whole cache of a layer, or the rows in its window.
///
/// `queries` and `out` are `[query_heads, dim]`. Query head h reads KV head h / G. Rows of one KV head are split over
/// threads when there are more threads than heads.
///
/// # Errors
/// [`fasa_core::Error::Length`] if the shapes disagree.
pub fn dense_decode(queries: &[f32], cache: &LayerCache<'_>, out: &mut [f32]) -> Result<()> {
    dense_from(queries, cache, out)
}

/// [`dense_decode`] of rows that may lie elsewhere.
pub(crate) fn dense_from<C: Source>(queries: &[f32], cache: &C, out: &mut [f32]) -> Result<(), C::Error> {
    let shape = cache.shape();
    let group = shape.group(queries, out)?;
    let (dim, heads) = (shape.dim, shape.kv_heads);
    let len = shape.len.min(shape.window);
    let first = shape.len - len;
    let serial = len * dim * heads < SERIAL;
    let pieces = match serial {
        true => 1,
        false => rayon::current_num_threads().div_ceil(heads).min(len / ROWS_PER_TASK).max(1),
    };
    let per_piece = len.div_ceil(pieces);
    let failure = Failure::default();
    let part = |head: usize, from: usize| {
        let queries = scaled(&queries[head * group * dim..(head + 1) * group * dim], dim);
        let mut partial = Partial::new(group, dim);
        let to = (from + per_piece).min(len);
        failure.record(cache.accumulate(&queries, head, Which::Span(first + from, first + to), &mut partial));
        partial
    };
    let outs = out.chunks_exact_mut(group * dim);
    if serial {
        outs.enumerate().for_each(|(head, out)| part(head, 0).finish(out));
    } else if pieces == 1 {
        share_each(outs, |head, out| part(head, 0).finish(out));
    } else {
        let mut parts: Vec<Option<Partial>> = vec![None; heads * pieces];
        share_each(parts.iter_mut(), |i, slot| {
            *slot = Some(part(i / pieces, i % pieces * per_piece));
        });
        for (parts, out) in parts.chunks_exact(pieces).zip(outs) {
            let mut whole = Partial::new(group, dim);
            parts.iter().flatten().for_each(|part| whole.merge(part));
            whole.finish(out);
        }
    }
    failure.into_result()
}
