//! The first pass over a sketch: what tokens are worth as far as can be said on the way, and the largest of that in blocks of
//! sixteen tokens.
//!
//! For lists per query a token is worth its score. For a group's mean of softmaxes it is the mean that the softmaxes seen so
//! far give: at the end every query's part of it was wrong by a factor that is known then, and between the smallest and the
//! largest factor lies the truth. The factors of a span differ little from query to query, since all sums grow alike.
//!
//! A mean is four bytes per token where weights, written and read again, would be four per token and query.

use super::{Asking, Ranking, SPAN, Sketches, VECTORS, score_kernel};
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
    /// What each token is worth, blocks of sixteen tokens: `[blocks, lists]` vectors, as many as fill the last span. Behind
    /// the last token lies anything.
    pub(super) worth: Vec<[f32; LANES]>,
    /// For a mean: the softmaxes that each span was weighed with, `[spans, G]`.
    pub(super) weighed_with: Vec<Softmax>,
    /// For a mean: the softmaxes of the whole stretch, `[G]`.
    pub(super) softmax: Vec<Softmax>,
    /// For a mean: the scores of a span, and the sum of each query's weights.
    scores: Vec<[f32; LANES]>,
    totals: Vec<f32>,
}

/// A softmax over scores: `total` is `Σ 2^((score - largest) * scale)`. `largest` is the largest score of the first span, or of a
/// later one that lay too far above it for sums of weights; other scores may exceed it.
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
        self.weighed_with.clear();
        self.softmax.clear();
        self.softmax.resize(group, Softmax::NOTHING);
        self.largest.resize(spans * VECTORS_OF_BLOCKS * ranking.lists(group), [0.0; LANES]);
        self.worth.resize(spans * VECTORS * ranking.lists(group), [0.0; LANES]);
        self.scores.resize(VECTORS * group, [0.0; LANES]);
        self.totals.resize(group, 0.0);
        find(sketches, range, ranking, self);
    }
}

dispatch! {
    fn find(sketches: &Sketches<'_>, range: Range<usize>, ranking: Ranking, bounds: &mut Bounds) = find_kernel
}

#[inline(always)]
fn find_kernel<S: Simd>(simd: S, sketches: &Sketches<'_>, range: Range<usize>, ranking: Ranking, bounds: &mut Bounds) {
    let Bounds { largest, worth, weighed_with, softmax, scores, totals } = bounds;
    let group = softmax.len();
    let lists = ranking.lists(group);
    let spans = largest.chunks_exact_mut(VECTORS_OF_BLOCKS * lists).zip(worth.chunks_exact_mut(VECTORS * lists));
    for (s, (largest, worth)) in spans.enumerate() {
        let first = range.start + s * SPAN;
        let span = first..(first + SPAN).min(range.end);
        let behind = span.end..(span.end + SPAN).min(range.end);
        let mut asking = Asking::default();
        let mut first = 0;
        for (i, (rows, queries)) in sketches.iter().enumerate() {
            // What is scored next: this span in the next sketch, or the next span in the first.
            let (next, at_once) = match sketches.get(i + 1) {
                Some((next, _)) => (next.span(span.clone()), true),
                None => (sketches[0].0.span(behind.clone()), ranking == Ranking::Each),
            };
            asking = Asking::new(&next, at_once);
            let scores = match ranking {
                Ranking::Mean { .. } => &mut scores[first..],
                Ranking::Each => &mut worth[first..],
            };
            score_kernel(simd, &rows.span(span.clone()), queries, scores, group, &mut asking);
            first += queries.len();
        }
        match ranking {
            Ranking::Each => {
                clear_behind(worth, span.len(), group);
                for g in 0..group {
                    for (blocks, largest) in worth.chunks_exact(LANES * group).zip(largest.chunks_exact_mut(group)) {
                        simd.store(simd.largest_of_each(column(simd, blocks, g, group)), &mut largest[g]);
                    }
                }
            }
            Ranking::Mean { scale } => {
                clear_behind(scores, span.len(), group);
                let before = weighed_with.len();
                weighed_with.extend_from_slice(softmax);
                weigh(simd, scores, scale, &mut weighed_with[before..], softmax, totals, worth, &mut asking);
                for (means, largest) in worth.chunks_exact(LANES).zip(largest) {
                    simd.store(simd.largest_of_each(column(simd, means, 0, 1)), largest);
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

/// `means` become what the softmaxes `with` make of a span's scores; then the span is added to `softmax`. `totals` is memory
/// for a number per query.
///
/// One pass over the scores, with what was known before them. Where that is nothing, they are looked at first.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn weigh<S: Simd>(
    simd: S,
    scores: &[[f32; LANES]],
    scale: f32,
    with: &mut [Softmax],
    softmax: &mut [Softmax],
    totals: &mut [f32],
    means: &mut [[f32; LANES]],
    asking: &mut Asking,
) {
    let group = with.len();
    for g in 0..group {
        if with[g].total == 0.0 {
            with[g] = estimate(simd, scores, g, group, scale);
        }
    }
    weigh_all::<S, false>(simd, scores, scale, with, totals, means, asking);
    if !totals.iter().all(|total| *total < LARGEST_TOTAL) {
        // So far above everything before that weights are no number, or no number to begin with: again, beside the largest.
        for g in 0..group {
            let largest = largest(simd, scores, g, group);
            if largest > with[g].largest {
                with[g].raise(largest, scale);
                // Any sum will do that is one: what it is off by is known at the end.
                with[g].total = with[g].total.max(LEAST_TOTAL);
            }
        }
        weigh_all::<S, true>(simd, scores, scale, with, totals, means, asking);
    }
    for ((softmax, with), total) in softmax.iter_mut().zip(with).zip(totals) {
        *softmax = softmax.merge(Softmax { largest: with.largest, total: *total }, scale);
    }
}

/// Sums of weights up to this, far from what f32 holds, are taken as they are.
const LARGEST_TOTAL: f32 = 1.8e19;

/// What is left of a sum beside scores far above its own.
const LEAST_TOTAL: f32 = 1e-20;

/// The largest score of query `g`.
#[inline(always)]
fn largest<S: Simd>(simd: S, scores: &[[f32; LANES]], g: usize, group: usize) -> f32 {
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for block in scores.chunks_exact(group) {
        largest = simd.max(simd.load(&block[g]), largest); // a NaN loses against any number
    }
    simd.largest(largest)
}

/// The softmax of query `g` over a span alone.
#[inline(always)]
fn estimate<S: Simd>(simd: S, scores: &[[f32; LANES]], g: usize, group: usize, scale: f32) -> Softmax {
    let largest = largest(simd, scores, g, group);
    if largest == f32::NEG_INFINITY {
        return Softmax::NOTHING;
    }
    let (factor, shift) = (simd.splat(scale), simd.splat(-largest * scale));
    let mut total = simd.splat(0.0);
    for block in scores.chunks_exact(group) {
        total = simd.add(total, exp2(simd, simd.mul_add(simd.load(&block[g]), factor, shift)));
    }
    Softmax { largest, total: simd.sum(total) }
}

/// The means of all queries, and the sums of their weights. Where one of these is no number, neither are the means, unless
/// `CAREFUL`.
#[inline(always)]
fn weigh_all<S: Simd, const CAREFUL: bool>(
    simd: S,
    scores: &[[f32; LANES]],
    scale: f32,
    with: &[Softmax],
    totals: &mut [f32],
    means: &mut [[f32; LANES]],
    asking: &mut Asking,
) {
    let mut g = 0;
    while g < with.len() {
        // Tiles of 4, 2 or 1 queries.
        g += match with.len() - g {
            4.. if S::WIDE => weigh_tile::<S, 4, CAREFUL>(simd, scores, g, scale, with, totals, means, asking),
            2.. => weigh_tile::<S, 2, CAREFUL>(simd, scores, g, scale, with, totals, means, asking),
            _ => weigh_tile::<S, 1, CAREFUL>(simd, scores, g, scale, with, totals, means, asking),
        };
    }
}

/// [`weigh_all`] of `Q` queries from `first` on.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn weigh_tile<S: Simd, const Q: usize, const CAREFUL: bool>(
    simd: S,
    scores: &[[f32; LANES]],
    first: usize,
    scale: f32,
    with: &[Softmax],
    totals: &mut [f32],
    means: &mut [[f32; LANES]],
    asking: &mut Asking,
) -> usize {
    let group = with.len();
    let (with, totals) = (&with[first..first + Q], &mut totals[first..first + Q]);
    let zero = simd.splat(0.0);
    let factor = simd.splat(scale);
    let (mut shift, mut share) = ([zero; Q], [zero; Q]);
    for q in 0..Q {
        // Of a query without a score so far nothing is weighed.
        let known = with[q].total > 0.0;
        shift[q] = simd.splat(if known { -with[q].largest * scale } else { 0.0 });
        share[q] = simd.splat(with[q].share());
    }
    let mut total = [zero; Q];
    for (scores, mean) in scores.chunks_exact(group).zip(means) {
        asking.beside_weights(simd);
        let scores = &scores[first..first + Q];
        let mut sum = if first == 0 { zero } else { simd.load(mean) };
        for q in 0..Q {
            // 2^(score * scale - largest * scale), in one rounding.
            let exponent = simd.mul_add(simd.load(&scores[q]), factor, shift[q]);
            let weight = if CAREFUL { exp2(simd, exponent) } else { simd.exp2_fast(exponent) };
            total[q] = simd.add(total[q], weight);
            sum = simd.mul_add(weight, share[q], sum);
        }
        simd.store(sum, mean);
    }
    for q in 0..Q {
        let known = with[q].total > 0.0;
        let total = simd.sum(total[q]);
        totals[q] = if known || !total.is_finite() { total } else { 0.0 };
    }
    Q
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
