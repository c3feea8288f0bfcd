//! Token importance prediction: sketch rows against the queries of a group, each row read once for all of them.
//!
//! Scores of integer sketches are sums of small integers, exact but for the query, which is rounded to about 15 bits; see
//! [`integer`]. Scores of f16 sketches are f32 sums like those of attention.

mod asking;
mod bounds;
mod integer;
mod mean;
pub(crate) mod shortlist;

use asking::Asking;
pub(crate) use integer::IntegerQueries;
pub(crate) use mean::{Mean, group_mean};
pub(crate) use shortlist::{Ranking, Shortlist};

use crate::isa::dispatch;
use crate::simd::{LANES, Padded, Simd, dots};
use fasa_core::sketch::{Precision, SketchRows};

/// Folded queries of one group in the form that the sketch's format wants.
pub(crate) enum Queries {
    /// Integer formats of 16, 32, 64 or 128 bytes a row.
    Integer(IntegerQueries),
    /// Integer formats of another size, and f16.
    Float(Padded),
    /// f32, folded queries one after the other.
    Exact(Vec<f32>, usize),
}

impl Queries {
    /// From folded queries, `[G, 2F]`.
    pub(crate) fn new(folded: &[f32], precision: Precision, chunks: usize) -> Self {
        match precision {
            Precision::Int4 | Precision::Int8 if IntegerQueries::takes(precision.row_bytes(chunks)) => {
                Queries::Integer(IntegerQueries::new(folded, precision, chunks))
            }
            Precision::F32 => Queries::Exact(folded.to_vec(), 2 * chunks),
            _ => Queries::Float(Padded::new(folded, 2 * chunks, 1.0)),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Queries::Integer(queries) => queries.len(),
            Queries::Float(queries) => queries.len(),
            Queries::Exact(queries, channels) => queries.len() / channels,
        }
    }
}

/// Rows that are scored at a time: their scores stay in the first cache.
const SPAN: usize = 512;

/// Sketches with the queries that each is read for, in order: one for the whole group or one per query head.
pub(crate) type Sketches<'a> = [(SketchRows<'a>, Queries)];

/// Vectors of [`SPAN`] scores.
const VECTORS: usize = SPAN / LANES;

dispatch! {
    /// TIP scores of all rows, `[G, n]`.
    pub(crate) fn score(rows: &SketchRows<'_>, queries: &Queries, memory: &mut Vec<[f32; LANES]>, scores: &mut [f32])
        = rows_kernel
}

#[inline(always)]
fn rows_kernel<S: Simd>(
    simd: S,
    rows: &SketchRows<'_>,
    queries: &Queries,
    memory: &mut Vec<[f32; LANES]>,
    scores: &mut [f32],
) {
    let (n, group) = (rows.len(), queries.len());
    memory.resize(group * VECTORS, [0.0; LANES]);
    for from in (0..n).step_by(SPAN) {
        let to = (from + SPAN).min(n);
        let next = rows.span(to..(to + SPAN).min(n));
        let mut asking = Asking::new(&next, true);
        score_kernel(simd, &rows.span(from..to), queries, memory, group, &mut asking);
        for g in 0..group {
            let out = &mut scores[g * n + from..g * n + to];
            for (out, scores) in out.chunks_mut(LANES).zip(memory.iter().skip(g).step_by(group)) {
                out.copy_from_slice(&scores[..out.len()]);
            }
        }
    }
}

/// Scores of up to [`SPAN`] rows against all queries, in blocks of sixteen rows: a block is `group` vectors, of which the
/// first are written, one per query. Lanes past the last row hold anything.
#[inline(always)]
fn score_kernel<S: Simd>(
    simd: S,
    rows: &SketchRows<'_>,
    queries: &Queries,
    scores: &mut [[f32; LANES]],
    group: usize,
    asking: &mut Asking,
) {
    match queries {
        Queries::Integer(queries) => integer::score_kernel(simd, rows, queries, scores, group, asking),
        Queries::Float(queries) if rows.precision() == Precision::F16 => {
            half_kernel(simd, rows.codes().as_chunks::<2>().0, queries, 2 * rows.chunks(), scores, group, asking);
        }
        Queries::Float(queries) => decode_kernel(simd, rows, queries, scores, group),
        // This format is there to compare with: it sums in the reference's order, to the bit.
        Queries::Exact(queries, channels) => {
            for (g, query) in queries.chunks_exact(*channels).enumerate() {
                for r in 0..rows.len() {
                    // It fails for a query of another length only.
                    let score = fasa_core::sketch::score_row(rows, r, query);
                    scores[r / LANES * group + g][r % LANES] = score.unwrap_or(f32::NEG_INFINITY);
                }
            }
        }
    }
}

/// f16 rows, four at a time.
#[inline(always)]
fn half_kernel<S: Simd>(
    simd: S,
    codes: &[[u8; 2]],
    queries: &Padded,
    channels: usize,
    scores: &mut [[f32; LANES]],
    group: usize,
    asking: &mut Asking,
) {
    // Rows of a known size are addressed by constants.
    match channels {
        32 => half_rows::<S, 2>(simd, codes.as_chunks().0, queries, scores, group, asking),
        64 => half_rows::<S, 4>(simd, codes.as_chunks().0, queries, scores, group, asking),
        128 => half_rows::<S, 8>(simd, codes.as_chunks().0, queries, scores, group, asking),
        _ => {
            for (r, row) in codes.chunks_exact(channels).enumerate() {
                for g in 0..queries.len() {
                    let [[sums]] = dots::<S, [u8; 2], 1, 1>(simd, [row], [queries.row(g)]);
                    scores[r / LANES * group + g][r % LANES] = simd.sum(sums);
                }
            }
        }
    }
}

/// Rows of `B` vectors.
#[inline(always)]
fn half_rows<S: Simd, const B: usize>(
    simd: S,
    codes: &[[[u8; 2]; LANES]],
    queries: &Padded,
    scores: &mut [[f32; LANES]],
    group: usize,
    asking: &mut Asking,
) {
    for (rows, scores) in codes.as_chunks::<B>().0.chunks(LANES).zip(scores.chunks_mut(group)) {
        asking.beside_scores(simd, 2 * B);
        for first in (0..rows.len()).step_by(4) {
            // Rows past the end repeat the last one.
            let last = rows.len() - 1;
            let rows = [first, first + 1, first + 2, first + 3].map(|r| rows[r.min(last)].as_flattened());
            half_block(simd, rows, queries, scores, first);
        }
    }
}

/// Four rows against all queries: scores go to the lanes from `first`.
#[inline(always)]
fn half_block<S: Simd>(simd: S, rows: [&[[u8; 2]]; 4], queries: &Padded, scores: &mut [[f32; LANES]], first: usize) {
    let mut g = 0;
    while g < queries.len() {
        if S::WIDE && g + 4 <= queries.len() {
            let group = [queries.row(g), queries.row(g + 1), queries.row(g + 2), queries.row(g + 3)];
            let sums = dots::<S, [u8; 2], 4, 4>(simd, rows, group);
            for q in 0..4 {
                let sums = simd.sum4([sums[0][q], sums[1][q], sums[2][q], sums[3][q]]);
                scores[g + q][first..first + 4].copy_from_slice(&sums);
            }
            g += 4;
        } else {
            let [[a], [b], [c], [d]] = dots::<S, [u8; 2], 4, 1>(simd, rows, [queries.row(g)]);
            scores[g][first..first + 4].copy_from_slice(&simd.sum4([a, b, c, d]));
            g += 1;
        }
    }
}

/// Largest row: all chunks of the largest head.
const MAX_CHANNELS: usize = fasa_core::rope::MAX_HEAD_DIM;

/// Integer rows of any number of chunks: each is decoded to a buffer.
#[inline(always)]
fn decode_kernel<S: Simd>(simd: S, rows: &SketchRows<'_>, queries: &Padded, scores: &mut [[f32; LANES]], group: usize) {
    let channels = 2 * rows.chunks();
    let mut buffer = [0.0f32; MAX_CHANNELS];
    let row = &mut buffer[..channels];
    let bytes = rows.precision().row_bytes(rows.chunks());
    for (t, (codes, scale)) in rows.codes().chunks_exact(bytes).zip(rows.scales().as_chunks::<2>().0).enumerate() {
        if rows.precision() == Precision::Int8 {
            row.iter_mut().zip(codes).for_each(|(x, b)| *x = f32::from(*b as i8));
        } else {
            let (first, second) = row.split_at_mut(codes.len());
            for ((x, y), b) in first.iter_mut().zip(second).zip(codes) {
                *x = (i32::from(b & 15) - 8) as f32;
                *y = (i32::from(b >> 4) - 8) as f32;
            }
        }
        let scale = half::f16::from_le_bytes(*scale).to_f32();
        for g in 0..queries.len() {
            let [[sums]] = dots::<S, f32, 1, 1>(simd, [row], [queries.row(g)]);
            scores[t / LANES * group + g][t % LANES] = simd.sum(sums) * scale;
        }
    }
}

/// Row scales of sixteen rows.
#[inline(always)]
fn row_scales<S: Simd>(simd: S, scales: &[u8], row: usize) -> S::F {
    let halves = scales.as_chunks::<2>().0;
    match halves[row..].first_chunk::<LANES>() {
        Some(whole) => simd.load_half(whole),
        None => {
            let mut padded = [[0; 2]; LANES];
            padded[..halves.len() - row].copy_from_slice(&halves[row..]);
            simd.load_half(&padded)
        }
    }
}
