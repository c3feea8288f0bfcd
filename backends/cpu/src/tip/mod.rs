//! Token importance prediction: sketch rows against the queries of a group, each row read once for all of them.
//!
//! Scores of integer sketches are sums of small integers, exact but for the query, which is rounded to about 15 bits; see
//! [`integer`]. Scores of f16 sketches are f32 sums like those of attention.

mod integer;
mod mean;

pub(crate) use integer::IntegerQueries;
pub(crate) use mean::{Mean, group_mean};

use crate::isa::dispatch;
use crate::simd::{LANES, Padded, Simd, dots};
use fasa_core::sketch::{Precision, SketchRows};

/// Folded queries of one group in the form that the sketch's format wants.
pub(crate) enum Queries {
    /// Integer formats whose rows are whole pieces of 16 bytes.
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
            Precision::Int4 | Precision::Int8 if precision.row_bytes(chunks).is_multiple_of(16) => {
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

dispatch! {
    /// TIP scores of all `rows`: query g's score of row r goes to `scores[g * stride + r]`.
    pub(crate) fn score(rows: &SketchRows<'_>, queries: &Queries, scores: &mut [f32], stride: usize) = score_kernel
}

#[inline(always)]
pub(crate) fn score_kernel<S: Simd>(
    simd: S,
    rows: &SketchRows<'_>,
    queries: &Queries,
    scores: &mut [f32],
    stride: usize,
) {
    match queries {
        Queries::Integer(queries) => integer::score_kernel(simd, rows, queries, scores, stride),
        Queries::Float(queries) if rows.precision() == Precision::F16 => {
            half_kernel(simd, rows.codes().as_chunks::<2>().0, queries, 2 * rows.chunks(), scores, stride);
        }
        Queries::Float(queries) => decode_kernel(simd, rows, queries, scores, stride),
        // This format is there to compare with: it sums in the reference's order, to the bit.
        Queries::Exact(queries, channels) => {
            for (g, query) in queries.chunks_exact(*channels).enumerate() {
                for r in 0..rows.len() {
                    // It fails for a query of another length only.
                    let score = fasa_core::sketch::score_row(rows, r, query);
                    scores[g * stride + r] = score.unwrap_or(f32::NEG_INFINITY);
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
    scores: &mut [f32],
    stride: usize,
) {
    let n = codes.len() / channels;
    for first in (0..n).step_by(4) {
        let row = |r: usize| &codes[(first + r).min(n - 1) * channels..][..channels];
        let rows = [row(0), row(1), row(2), row(3)];
        let count = (n - first).min(4);
        let mut g = 0;
        while g < queries.len() {
            let mut put = |g: usize, sums: [f32; 4]| {
                scores[g * stride + first..][..count].copy_from_slice(&sums[..count]);
            };
            if S::WIDE && g + 4 <= queries.len() {
                let group = std::array::from_fn(|q| queries.row(g + q));
                let sums = dots::<S, [u8; 2], 4, 4>(simd, rows, group);
                for q in 0..4 {
                    put(g + q, simd.sum4(std::array::from_fn(|r| sums[r][q])));
                }
                g += 4;
            } else {
                let sums = dots::<S, [u8; 2], 4, 1>(simd, rows, [queries.row(g)]);
                put(g, simd.sum4(sums.map(|[sum]| sum)));
                g += 1;
            }
        }
    }
}

/// Largest row: all chunks of the largest head.
const MAX_CHANNELS: usize = fasa_core::rope::MAX_HEAD_DIM;

/// Integer rows of any number of chunks: each is decoded to a buffer.
#[inline(always)]
fn decode_kernel<S: Simd>(simd: S, rows: &SketchRows<'_>, queries: &Padded, scores: &mut [f32], stride: usize) {
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
            scores[g * stride + t] = simd.sum(sums) * scale;
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
