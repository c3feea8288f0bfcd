//! Integer sketches: inner products of bytes.
//!
//! A folded query is a number of steps per channel, from -127 to 127 ([`fold_query`](fasa_core::sketch::fold_query)): bytes,
//! whose products with the codes are summed four at a time in each of sixteen lanes (`vpdpbusd`). The sums are exact.
//!
//! Sixteen rows are taken at once and transposed, so that a lane is a row: no sum across lanes is ever needed, and the
//! transposition is shared by the queries of the group.

use super::asking::Asking;
use super::row_scales;
use crate::simd::{LANES, Simd};
use fasa_core::sketch::{Precision, SketchRows};

/// What four groups of four codes are multiplied with: per group four channels as bytes, and for four-bit codes the four
/// channels of the upper nibbles.
type Words = [i32; 8];

/// Folded queries of a group as bytes.
pub(crate) struct IntegerQueries {
    /// `[G, pieces]`.
    words: Vec<Words>,
    queries: Vec<Query>,
}

#[derive(Debug, Clone, Copy)]
struct Query {
    /// What a step is worth.
    step: f32,
    /// Sum of all channels, in steps: what an offset of 1 in every code would add.
    sum: i32,
}

impl IntegerQueries {
    /// Whether rows of so many bytes are taken here.
    pub(super) fn takes(row_bytes: usize) -> bool {
        matches!(row_bytes, 16 | 32 | 64 | 128)
    }

    pub(super) fn new(folded: &[f32], precision: Precision, chunks: usize) -> Self {
        let channels = 2 * chunks;
        let pieces = precision.row_bytes(chunks) / 16;
        let mut words = Vec::with_capacity(folded.len() / channels * pieces);
        let mut queries = Vec::with_capacity(folded.len() / channels);
        for query in folded.chunks_exact(channels) {
            let largest = query.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            // Infinite or next to nothing: nothing to rank by, every score is 0.
            let step = if largest.is_finite() { largest / 127.0 } else { 0.0 };
            let inverse = if step > 0.0 && (1.0 / step).is_finite() { 1.0 / step } else { 0.0 };
            let steps = |c: usize| (query[c] * inverse).round() as i8;
            let four = |from: usize| {
                i32::from_le_bytes([steps(from), steps(from + 1), steps(from + 2), steps(from + 3)].map(|x| x as u8))
            };
            words.extend((0..pieces).map(|piece| {
                let mut words = Words::default();
                for (k, [low_nibbles, high_nibbles]) in words.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    let byte = 16 * piece + 4 * k;
                    *low_nibbles = four(byte);
                    if precision == Precision::Int4 {
                        // A byte holds the codes of a channel and of its partner, half a row further.
                        *high_nibbles = four(byte + chunks);
                    }
                }
                words
            }));
            queries.push(Query { step, sum: (0..channels).map(|c| i32::from(steps(c))).sum() });
        }
        Self { words, queries }
    }

    pub(super) fn len(&self) -> usize {
        self.queries.len()
    }
}

/// See [`super::score_kernel`].
#[inline(always)]
pub(super) fn score_kernel<S: Simd>(
    simd: S,
    rows: &SketchRows<'_>,
    queries: &IntegerQueries,
    scores: &mut [[f32; LANES]],
    group: usize,
    asking: &mut Asking,
) {
    // Rows of a known size are addressed by constants.
    match (rows.precision(), rows.precision().row_bytes(rows.chunks())) {
        (Precision::Int4, 16) => score_rows::<S, 1, true>(simd, rows, queries, scores, group, asking),
        (Precision::Int4, 32) => score_rows::<S, 2, true>(simd, rows, queries, scores, group, asking),
        (Precision::Int4, 64) => score_rows::<S, 4, true>(simd, rows, queries, scores, group, asking),
        (Precision::Int4, _) => score_rows::<S, 8, true>(simd, rows, queries, scores, group, asking),
        (_, 16) => score_rows::<S, 1, false>(simd, rows, queries, scores, group, asking),
        (_, 32) => score_rows::<S, 2, false>(simd, rows, queries, scores, group, asking),
        (_, 64) => score_rows::<S, 4, false>(simd, rows, queries, scores, group, asking),
        _ => score_rows::<S, 8, false>(simd, rows, queries, scores, group, asking),
    }
}

/// Sixteen rows of `P` pieces.
type Block<const P: usize> = [[[u8; 16]; P]; LANES];

/// Rows of `P` pieces, four bits a code or eight.
#[inline(always)]
fn score_rows<S: Simd, const P: usize, const FOUR_BIT: bool>(
    simd: S,
    rows: &SketchRows<'_>,
    queries: &IntegerQueries,
    scores: &mut [[f32; LANES]],
    group: usize,
    asking: &mut Asking,
) {
    let all = rows.codes().as_chunks::<16>().0.as_chunks::<P>().0;
    let (blocks, rest) = all.as_chunks::<LANES>();
    let mut scores = scores.chunks_mut(group);
    for (b, (block, scores)) in blocks.iter().zip(&mut scores).enumerate() {
        asking.beside_scores(simd, P);
        let scale = row_scales(simd, rows.scales(), b * LANES);
        score_block::<S, P, FOUR_BIT>(simd, block, scale, queries, scores);
    }
    if let (false, Some(scores)) = (rest.is_empty(), scores.next()) {
        let mut block: Block<P> = [[[0; 16]; P]; LANES];
        block[..rest.len()].copy_from_slice(rest);
        let scale = row_scales(simd, rows.scales(), blocks.len() * LANES);
        score_block::<S, P, FOUR_BIT>(simd, &block, scale, queries, scores);
    }
}

/// Sixteen rows against all queries.
#[inline(always)]
fn score_block<S: Simd, const P: usize, const FOUR_BIT: bool>(
    simd: S,
    block: &Block<P>,
    scale: S::F,
    queries: &IntegerQueries,
    scores: &mut [[f32; LANES]],
) {
    let mut words = queries.words.as_chunks::<P>().0;
    let mut queries = &queries.queries[..];
    let mut scores = &mut scores[..queries.len()];
    while !queries.is_empty() {
        // Tiles of 4, 2 or 1 queries.
        let tile = match queries.len() {
            4.. if S::WIDE => 4,
            2.. => 2,
            _ => 1,
        };
        let (now, later) = queries.split_at(tile);
        let (now_words, later_words) = words.split_at(tile);
        let (now_scores, later_scores) = scores.split_at_mut(tile);
        match tile {
            4 => score_tile::<S, P, 4, FOUR_BIT>(simd, block, scale, now, now_words, now_scores),
            2 => score_tile::<S, P, 2, FOUR_BIT>(simd, block, scale, now, now_words, now_scores),
            _ => score_tile::<S, P, 1, FOUR_BIT>(simd, block, scale, now, now_words, now_scores),
        }
        (queries, words, scores) = (later, later_words, later_scores);
    }
}

/// Sixteen rows against `Q` queries.
#[inline(always)]
fn score_tile<S: Simd, const P: usize, const Q: usize, const FOUR_BIT: bool>(
    simd: S,
    block: &Block<P>,
    scale: S::F,
    queries: &[Query],
    words: &[[Words; P]],
    scores: &mut [[f32; LANES]],
) {
    // Lengths that the compiler knows.
    let (queries, words, scores) = (&queries[..Q], &words[..Q], &mut scores[..Q]);
    // Two sums per query: a product waits for the one before it.
    let mut sums = [[simd.splat_i(0); 2]; Q];
    for q in 0..Q {
        // Codes carry an offset: what it adds is taken off at the start.
        let offset = if FOUR_BIT { 8 } else { S::SIGNED_OFFSET };
        sums[q][0] = simd.splat_i(-offset * queries[q].sum);
    }
    for p in 0..P {
        let groups = if P == 1 {
            simd.transpose_rows(block.as_flattened().first_chunk().unwrap_or(&[[0; 16]; LANES]))
        } else {
            let mut pieces = [&block[0][p]; LANES];
            for r in 1..LANES {
                pieces[r] = &block[r][p];
            }
            simd.transpose(pieces)
        };
        for k in 0..4 {
            if FOUR_BIT {
                let (even, odd) = (simd.low_nibbles(groups[k]), simd.high_nibbles(groups[k]));
                for q in 0..Q {
                    sums[q][0] = simd.dot4(sums[q][0], even, words[q][p][2 * k]);
                    sums[q][1] = simd.dot4(sums[q][1], odd, words[q][p][2 * k + 1]);
                }
            } else {
                for q in 0..Q {
                    sums[q][k % 2] = simd.dot4_signed(sums[q][k % 2], groups[k], words[q][p][2 * k]);
                }
            }
        }
    }
    for q in 0..Q {
        // Integers below 2^24: exact in f32.
        let steps = simd.to_float(simd.add_i(sums[q][0], sums[q][1]));
        simd.store(simd.mul(simd.mul(steps, simd.splat(queries[q].step)), scale), &mut scores[q]);
    }
}
