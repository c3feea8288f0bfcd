//! Integer sketches: inner products of bytes.
//!
//! A folded query is rounded to `254 h + l` steps, h and l from -127 to 127: two bytes, two integer products with the codes
//! (`vpdpbusd`, four of them at a time in each of sixteen lanes). The step is 1/32,384 of the query's largest channel, so
//! the rounding is about what summing in another order does, and far under that of the codes.
//!
//! Sixteen rows are taken at once and transposed, so that a lane is a row: no sum across lanes is ever needed, and the
//! transposition is shared by the queries of the group.

use super::row_scales;
use crate::simd::{LANES, Simd};
use fasa_core::sketch::{Precision, SketchRows};

/// Weight of the high byte of a query.
const BASE: i32 = 254;

/// Most steps of a channel: 127 in the high byte and what does not round up to 128.
const MOST: i32 = 127 * BASE + BASE / 2 - 1;

/// The two bytes of four channels, four channels to an i32 as the products want them.
#[derive(Debug, Clone, Copy, Default)]
struct Bytes {
    high: i32,
    low: i32,
}

/// Folded queries of a group in two bytes per channel.
pub(crate) struct IntegerQueries {
    /// `[G, 2F / 4]`, in the order in which the codes are met.
    bytes: Vec<Bytes>,
    /// Per query: what a step is worth, and what the codes' offset adds up to, in steps.
    steps: Vec<(f32, f32)>,
    offset_signed: Vec<f32>,
    precision: Precision,
}

impl IntegerQueries {
    pub(super) fn new(folded: &[f32], precision: Precision, chunks: usize) -> Self {
        let channels = 2 * chunks;
        let mut queries = Self {
            bytes: Vec::with_capacity(folded.len() / 4),
            steps: Vec::with_capacity(folded.len() / channels),
            offset_signed: Vec::new(),
            precision,
        };
        for query in folded.chunks_exact(channels) {
            let largest = query.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            // Infinite or absent: nothing to rank by, every score is 0.
            let step = if largest.is_finite() { largest / MOST as f32 } else { 0.0 };
            let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
            let steps = |c: usize| if inverse.is_finite() { (query[c] * inverse).round() as i32 } else { 0 };
            let four = |from: usize| {
                let (mut high, mut low) = ([0u8; 4], [0u8; 4]);
                for i in 0..4 {
                    let x = steps(from + i);
                    let h = (x + if x < 0 { -BASE / 2 } else { BASE / 2 }) / BASE;
                    (high[i], low[i]) = (h as i8 as u8, (x - h * BASE) as i8 as u8);
                }
                Bytes { high: i32::from_le_bytes(high), low: i32::from_le_bytes(low) }
            };
            match precision {
                // A byte holds the codes of a channel and of its partner, 2F/2 channels further.
                Precision::Int4 => {
                    for k in (0..chunks).step_by(4) {
                        queries.bytes.extend([four(k), four(k + chunks)]);
                    }
                }
                _ => queries.bytes.extend((0..channels).step_by(4).map(four)),
            }
            let sum: i32 = (0..channels).map(steps).sum();
            queries.steps.push((step, 8.0 * sum as f32));
            queries.offset_signed.push(sum as f32);
        }
        queries
    }

    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }
}

#[inline(always)]
pub(super) fn score_kernel<S: Simd>(
    simd: S,
    rows: &SketchRows<'_>,
    queries: &IntegerQueries,
    scores: &mut [f32],
    stride: usize,
) {
    let per_row = rows.precision().row_bytes(rows.chunks()) / 16;
    let pieces = rows.codes().as_chunks::<16>().0;
    let n = pieces.len() / per_row;
    for first in (0..n).step_by(LANES) {
        let count = (n - first).min(LANES);
        let block = &pieces[first * per_row..(first + count) * per_row];
        let scale = row_scales(simd, rows.scales(), first);
        let mut put = |g: usize, score: S::F| {
            let out = &mut scores[g * stride + first..][..count];
            match out.first_chunk_mut::<LANES>() {
                Some(whole) => simd.store(score, whole),
                None => {
                    let mut padded = [0.0; LANES];
                    simd.store(score, &mut padded);
                    out.copy_from_slice(&padded[..count]);
                }
            }
        };
        let mut g = 0;
        while g < queries.len() {
            let tile = match (queries.len() - g, S::WIDE) {
                (4.., true) => {
                    score_tile::<S, 4>(simd, block, per_row, count, queries, g, scale, &mut put);
                    4
                }
                (2.., _) => {
                    score_tile::<S, 2>(simd, block, per_row, count, queries, g, scale, &mut put);
                    2
                }
                _ => {
                    score_tile::<S, 1>(simd, block, per_row, count, queries, g, scale, &mut put);
                    1
                }
            };
            g += tile;
        }
    }
}

/// Up to sixteen rows against `Q` queries.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn score_tile<S: Simd, const Q: usize>(
    simd: S,
    block: &[[u8; 16]],
    per_row: usize,
    count: usize,
    queries: &IntegerQueries,
    first: usize,
    scale: S::F,
    put: &mut impl FnMut(usize, S::F),
) {
    let four_bit = queries.precision == Precision::Int4;
    // i32 of a query per piece of 16 bytes.
    let per_piece = if four_bit { 8 } else { 4 };
    let words = per_piece * per_row;
    let bytes: [&[Bytes]; Q] = std::array::from_fn(|q| &queries.bytes[(first + q) * words..(first + q + 1) * words]);
    let zero = simd.splat_i(0);
    let (mut high, mut low) = ([zero; Q], [zero; Q]);
    for p in 0..per_row {
        // Rows past the end repeat the last one; their scores are not stored.
        let groups = simd.transpose(|r| &block[r.min(count - 1) * per_row + p]);
        for (k, codes) in groups.into_iter().enumerate() {
            if four_bit {
                let (even, odd) = (simd.low_nibbles(codes), simd.high_nibbles(codes));
                for q in 0..Q {
                    let [a, b] = [bytes[q][8 * p + 2 * k], bytes[q][8 * p + 2 * k + 1]];
                    high[q] = simd.dot4(simd.dot4(high[q], even, a.high), odd, b.high);
                    low[q] = simd.dot4(simd.dot4(low[q], even, a.low), odd, b.low);
                }
            } else {
                for q in 0..Q {
                    let a = bytes[q][4 * p + k];
                    high[q] = simd.dot4_signed(high[q], codes, a.high);
                    low[q] = simd.dot4_signed(low[q], codes, a.low);
                }
            }
        }
    }
    for q in 0..Q {
        let (step, shift) = queries.steps[first + q];
        let shift = if four_bit { shift } else { S::SIGNED_OFFSET as f32 * queries.offset_signed[first + q] };
        // Both sums are below 2^24 or rounded like any f32 sum.
        let steps = simd.mul_add(simd.to_float(high[q]), simd.splat(BASE as f32), simd.to_float(low[q]));
        let score = simd.mul(simd.mul(simd.sub(steps, simd.splat(shift)), simd.splat(step)), scale);
        put(first + q, score);
    }
}
