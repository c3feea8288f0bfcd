//! The first pass over a sketch: what the scores of a step cannot exceed, instead of the scores.
//!
//! Of every sixteen tokens the largest score is kept, and for a group's mean the sums of the softmaxes: 4 bytes per query
//! where the scores themselves, written and read again, would be 128.

use super::{SPAN, Sketches, VECTORS, score_kernel};
use crate::exp::exp2;
use crate::isa::dispatch;
use crate::simd::{LANES, Simd};
use std::ops::Range;

/// Largest scores that one vector holds: one per block of [`LANES`] tokens.
const BLOCKS_PER_SPAN: usize = VECTORS / LANES;

/// What one thread found out about a stretch of the context.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    /// Per vector of sixteen blocks and query, the largest score of each block: `[blocks / 16, G]`.
    pub(super) largest: Vec<[f32; LANES]>,
    /// One per query.
    pub(super) softmax: Vec<Softmax>,
    /// The scores of a span.
    scores: Vec<[f32; LANES]>,
}

/// A softmax over scores of which the largest and the sum are known: `Σ 2^((score - largest) * scale)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Softmax {
    pub(super) largest: f32,
    pub(super) total: f32,
}

impl Softmax {
    const NOTHING: Self = Self { largest: f32::NEG_INFINITY, total: 0.0 };

    /// Raises the largest score to at least this one.
    fn raise(&mut self, largest: f32, scale: f32) {
        if largest > self.largest {
            self.total *= ((self.largest - largest) * scale).exp2();
            self.largest = largest;
        }
    }

    /// Both stretches together.
    pub(super) fn merge(mut self, other: Self, scale: f32) -> Self {
        self.raise(other.largest, scale);
        if other.total > 0.0 {
            self.total += other.total * ((other.largest - self.largest) * scale).exp2();
        }
        self
    }
}

impl Default for Softmax {
    fn default() -> Self {
        Self::NOTHING
    }
}

impl Bounds {
    /// Looks at the tokens of `range`, which starts at a whole span.
    ///
    /// Softmaxes are summed if there is a `scale` (times log2 e).
    pub(super) fn find(&mut self, sketches: &Sketches<'_>, range: Range<usize>, scale: Option<f32>) {
        let group: usize = sketches.iter().map(|(_, queries)| queries.len()).sum();
        self.softmax.clear();
        self.softmax.resize(group, Softmax::NOTHING);
        self.largest.resize(range.len().div_ceil(SPAN) * BLOCKS_PER_SPAN * group, [0.0; LANES]);
        self.scores.resize(VECTORS * group, [0.0; LANES]);
        find(sketches, range, scale, self);
    }
}

dispatch! {
    fn find(sketches: &Sketches<'_>, range: Range<usize>, scale: Option<f32>, bounds: &mut Bounds) = find_kernel
}

#[inline(always)]
fn find_kernel<S: Simd>(
    simd: S,
    sketches: &Sketches<'_>,
    range: Range<usize>,
    scale: Option<f32>,
    bounds: &mut Bounds,
) {
    let Bounds { largest, softmax, scores } = bounds;
    let group = softmax.len();
    let stretch = range.len();
    for (s, largest) in largest.chunks_exact_mut(BLOCKS_PER_SPAN * group).enumerate() {
        let (from, to) = (s * SPAN, ((s + 1) * SPAN).min(stretch));
        let mut first = 0;
        for (rows, queries) in sketches {
            let rows = rows.span(range.start + from..range.start + to);
            score_kernel(simd, &rows, queries, &mut scores[first..], group);
            first += queries.len();
        }
        clear_behind(scores, to - from, group);
        for g in 0..group {
            let mut of_span = simd.splat(f32::NEG_INFINITY);
            for (blocks, largest) in scores.chunks_exact(LANES * group).zip(largest.chunks_exact_mut(group)) {
                let mut vectors = [of_span; LANES];
                for (vector, block) in vectors.iter_mut().zip(blocks.chunks_exact(group)) {
                    // A NaN loses against any number.
                    *vector = simd.max(simd.load(&block[g]), simd.splat(f32::NEG_INFINITY));
                }
                let of_blocks = simd.largest_of_each(vectors);
                simd.store(of_blocks, &mut largest[g]);
                of_span = simd.max(of_blocks, of_span);
            }
            let Some(scale) = scale else { continue };
            let of_span = simd.largest(of_span);
            if of_span == f32::NEG_INFINITY {
                continue;
            }
            softmax[g].raise(of_span, scale);
            // 2^(score * scale - largest * scale), in one rounding.
            let (factor, shift) = (simd.splat(scale), simd.splat(-softmax[g].largest * scale));
            let mut total = [simd.splat(0.0); 2];
            for pair in scores.chunks_exact(2 * group) {
                for (i, total) in total.iter_mut().enumerate() {
                    let weights = exp2(simd, simd.mul_add(simd.load(&pair[i * group + g]), factor, shift));
                    *total = simd.add(*total, weights);
                }
            }
            softmax[g].total += simd.sum(simd.add(total[0], total[1]));
        }
    }
}

/// Lanes and vectors past the last of `rows` hold what they held before: they must not count.
#[inline(always)]
fn clear_behind(scores: &mut [[f32; LANES]], rows: usize, group: usize) {
    if rows < SPAN {
        let (vector, rest) = (rows / LANES, rows % LANES);
        let behind = &mut scores[vector * group..];
        for (i, lanes) in behind.iter_mut().enumerate() {
            lanes[if i < group { rest } else { 0 }..].fill(f32::NEG_INFINITY);
        }
    }
}
