//! The first pass over a sketch: what the scores of a step come to, in blocks of sixteen tokens, instead of the scores.
//!
//! For lists per query that is the largest score of each block. For a group's mean of softmaxes it is the largest mean
//! that the softmaxes seen so far give: at the end every query's part of it was wrong by a factor that is known then, and
//! between the smallest and the largest factor lies the truth. The factors of a span differ little from query to query,
//! since all sums grow alike.
//!
//! Four bytes per block are kept where weights, written and read again, would be 128 per query.

use super::{Ranking, SPAN, Sketches, VECTORS, score_kernel};
use crate::exp::exp2;
use crate::isa::dispatch;
use crate::simd::{LANES, Simd};
use std::ops::Range;

/// Vectors of blocks in a span: a lane is a block of [`LANES`] tokens.
pub(super) const VECTORS_OF_BLOCKS: usize = VECTORS / LANES;

/// What one thread found out about a stretch of the context.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    /// The largest of each block, a lane each: `[blocks / 16, lists]`.
    pub(super) largest: Vec<[f32; LANES]>,
    /// For a mean: after each span, every query's softmax up to there, `[spans, G]`.
    pub(super) softmax: Vec<Softmax>,
    /// The scores of a span, then weights.
    scores: Vec<[f32; LANES]>,
}

/// A softmax over scores of which the largest and the sum are known: `Σ 2^((score - largest) * scale)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Softmax {
    pub(super) largest: f32,
    pub(super) total: f32,
}

impl Softmax {
    pub(super) const NOTHING: Self = Self { largest: f32::NEG_INFINITY, total: 0.0 };

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

    /// What a weight is multiplied with; 0 where there is no score to weigh.
    pub(super) fn share(self) -> f32 {
        if self.total > 0.0 { 1.0 / self.total } else { 0.0 }
    }
}

impl Bounds {
    /// Looks at the tokens of `range`, which starts at a whole span.
    pub(super) fn find(&mut self, sketches: &Sketches<'_>, range: Range<usize>, ranking: Ranking) {
        let group: usize = sketches.iter().map(|(_, queries)| queries.len()).sum();
        let spans = range.len().div_ceil(SPAN);
        self.softmax.clear();
        self.largest.resize(spans * VECTORS_OF_BLOCKS * ranking.lists(group), [0.0; LANES]);
        self.scores.resize(VECTORS * group, [0.0; LANES]);
        find(sketches, range, ranking, self);
    }
}

dispatch! {
    fn find(sketches: &Sketches<'_>, range: Range<usize>, ranking: Ranking, bounds: &mut Bounds) = find_kernel
}

#[inline(always)]
fn find_kernel<S: Simd>(simd: S, sketches: &Sketches<'_>, range: Range<usize>, ranking: Ranking, bounds: &mut Bounds) {
    let Bounds { largest, softmax, scores } = bounds;
    let group = scores.len() / VECTORS;
    let lists = ranking.lists(group);
    let stretch = range.len();
    for (s, largest) in largest.chunks_exact_mut(VECTORS_OF_BLOCKS * lists).enumerate() {
        let (from, to) = (s * SPAN, ((s + 1) * SPAN).min(stretch));
        let mut first = 0;
        for (rows, queries) in sketches {
            let rows = rows.span(range.start + from..range.start + to);
            score_kernel(simd, &rows, queries, &mut scores[first..], group);
            first += queries.len();
        }
        clear_behind(scores, to - from, group);
        match ranking {
            Ranking::Each => {
                for g in 0..group {
                    for (blocks, largest) in scores.chunks_exact(LANES * group).zip(largest.chunks_exact_mut(group)) {
                        simd.store(simd.largest_of_each(column(simd, blocks, g, group)), &mut largest[g]);
                    }
                }
            }
            Ranking::Mean { scale } => {
                let before = softmax.len();
                for g in 0..group {
                    let mut sum = if s == 0 { Softmax::NOTHING } else { softmax[before - group + g] };
                    to_weights(simd, scores, g, group, scale, &mut sum);
                    softmax.push(sum);
                }
                let softmax = &softmax[before..];
                for (blocks, largest) in scores.chunks_exact(LANES * group).zip(largest) {
                    let mut means = [simd.splat(0.0); LANES];
                    for g in 0..group {
                        let share = simd.splat(softmax[g].share());
                        for i in 0..LANES {
                            means[i] = simd.mul_add(simd.load(&blocks[i * group + g]), share, means[i]);
                        }
                    }
                    simd.store(simd.largest_of_each(means), largest);
                }
            }
        }
    }
}

/// Vectors of query `g`; lanes that are no number are as low as can be.
#[inline(always)]
fn column<S: Simd>(simd: S, blocks: &[[f32; LANES]], g: usize, group: usize) -> [S::F; LANES] {
    let lowest = simd.splat(f32::NEG_INFINITY);
    let mut column = [lowest; LANES];
    for i in 0..LANES {
        column[i] = simd.max(simd.load(&blocks[i * group + g]), lowest);
    }
    column
}

/// Scores of query `g` in a span to weights relative to the largest so far, which may rise.
#[inline(always)]
fn to_weights<S: Simd>(
    simd: S,
    scores: &mut [[f32; LANES]],
    g: usize,
    group: usize,
    scale: f32,
    softmax: &mut Softmax,
) {
    let mut largest = [simd.splat(f32::NEG_INFINITY); 2];
    for pair in scores.chunks_exact(2 * group) {
        largest[0] = simd.max(simd.load(&pair[g]), largest[0]); // a NaN loses against any number
        largest[1] = simd.max(simd.load(&pair[group + g]), largest[1]);
    }
    softmax.raise(simd.largest(simd.max(largest[0], largest[1])), scale);
    if softmax.largest == f32::NEG_INFINITY {
        for block in scores.chunks_exact_mut(group) {
            block[g] = [0.0; LANES];
        }
        return;
    }
    // 2^(score * scale - largest * scale), in one rounding.
    let (factor, shift) = (simd.splat(scale), simd.splat(-softmax.largest * scale));
    let mut total = [simd.splat(0.0); 2];
    for pair in scores.chunks_exact_mut(2 * group) {
        let first = exp2(simd, simd.mul_add(simd.load(&pair[g]), factor, shift));
        let second = exp2(simd, simd.mul_add(simd.load(&pair[group + g]), factor, shift));
        total[0] = simd.add(total[0], first);
        total[1] = simd.add(total[1], second);
        simd.store(first, &mut pair[g]);
        simd.store(second, &mut pair[group + g]);
    }
    softmax.total += simd.sum(simd.add(total[0], total[1]));
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
