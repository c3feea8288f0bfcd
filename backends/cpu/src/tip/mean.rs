//! One importance per token for the queries of a group: the mean of their softmaxes.
//!
//! A softmax needs its largest score and its sum first. Scores become weights block by block while they are in the first
//! cache, relative to the block's own maximum; the second pass only multiplies each block by what its maximum is worth.

use super::{Queries, score_kernel};
use crate::exp::exp;
use crate::isa::dispatch;
use crate::simd::{LANES, Simd};
use fasa_core::sketch::SketchRows;

/// Rows per block.
const BLOCK: usize = 512;

/// Memory of [`group_mean`].
#[derive(Debug, Default)]
pub(crate) struct Mean {
    /// `[G, n]`.
    weights: Vec<f32>,
    /// Per query and block, `[G, blocks]`: the largest score and the sum of weights; then the block's factor.
    maxima: Vec<f32>,
    totals: Vec<f32>,
}

/// Sketches with the queries that each is read for, in order: one for the whole group or one per query head.
pub(crate) type Sketches<'a> = [(SketchRows<'a>, Queries)];

/// Mean over the group of `softmax(TIP scores * scale)`, `[n]`.
pub(crate) fn group_mean(sketches: &Sketches<'_>, scale: f32, memory: &mut Mean, importance: &mut [f32]) {
    let n = importance.len();
    let group: usize = sketches.iter().map(|(_, queries)| queries.len()).sum();
    let blocks = n.div_ceil(BLOCK);
    memory.weights.resize(group * n, 0.0);
    memory.maxima.resize(group * blocks, 0.0);
    memory.totals.resize(group * blocks, 0.0);
    let mut first = 0;
    for (rows, queries) in sketches {
        weigh(rows, queries, scale, first, n, memory);
        first += queries.len();
    }
    for g in 0..group {
        let maxima = &mut memory.maxima[g * blocks..(g + 1) * blocks];
        let totals = &memory.totals[g * blocks..(g + 1) * blocks];
        let max = maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let worth = |block: f32| if block == f32::NEG_INFINITY { 0.0 } else { ((block - max) * scale).exp() };
        let total: f32 = maxima.iter().zip(totals).map(|(block, total)| worth(*block) * total).sum();
        let share = if total > 0.0 { 1.0 / (total * group as f32) } else { 0.0 };
        maxima.iter_mut().for_each(|m| *m = worth(*m) * share);
    }
    sum(&memory.weights, &memory.maxima, importance);
}

dispatch! {
    fn weigh(rows: &SketchRows<'_>, queries: &Queries, scale: f32, first: usize, n: usize, memory: &mut Mean) = weigh_kernel
}

#[inline(always)]
fn weigh_kernel<S: Simd>(
    simd: S,
    rows: &SketchRows<'_>,
    queries: &Queries,
    scale: f32,
    first: usize,
    n: usize,
    memory: &mut Mean,
) {
    let blocks = n.div_ceil(BLOCK);
    for block in 0..blocks {
        let (from, to) = (block * BLOCK, ((block + 1) * BLOCK).min(n));
        score_kernel(simd, &rows.span(from..to), queries, &mut memory.weights[first * n + from..], n);
        for g in first..first + queries.len() {
            let scores = &mut memory.weights[g * n + from..g * n + to];
            let (max, total) = weights(simd, scores, scale);
            memory.maxima[g * blocks + block] = max;
            memory.totals[g * blocks + block] = total;
        }
    }
}

/// Scores of a block to weights relative to their largest. Returns that and the sum of weights.
#[inline(always)]
fn weights<S: Simd>(simd: S, scores: &mut [f32], scale: f32) -> (f32, f32) {
    let (blocks, rest) = scores.as_chunks_mut::<LANES>();
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..rest.len()].copy_from_slice(rest);
    // A NaN loses against any number.
    let largest = blocks.iter().fold(simd.load(&last), |m, x| simd.max(simd.load(x), m));
    let max = simd.largest(largest);
    if max == f32::NEG_INFINITY {
        scores.fill(0.0);
        return (max, 0.0);
    }
    let weigh = |x: S::F| exp(simd, simd.mul(simd.sub(x, simd.splat(max)), simd.splat(scale)));
    let mut total = simd.splat(0.0);
    for block in blocks {
        let weights = weigh(simd.load(block));
        total = simd.add(total, weights);
        simd.store(weights, block);
    }
    let weights = weigh(simd.load(&last));
    simd.store(weights, &mut last);
    rest.copy_from_slice(&last[..rest.len()]);
    (max, simd.sum(simd.add(total, weights)))
}

dispatch! {
    /// `importance[t]` = Σ_g `weights[g, t]` * `factors[g, block of t]`.
    fn sum(weights: &[f32], factors: &[f32], importance: &mut [f32]) = sum_kernel
}

#[inline(always)]
fn sum_kernel<S: Simd>(simd: S, weights: &[f32], factors: &[f32], importance: &mut [f32]) {
    let n = importance.len();
    let (group, blocks) = (weights.len() / n, n.div_ceil(BLOCK));
    for (block, out) in importance.chunks_mut(BLOCK).enumerate() {
        for g in 0..group {
            let factor = factors[g * blocks + block];
            let weights = &weights[g * n + block * BLOCK..][..out.len()];
            let (to, to_rest) = out.as_chunks_mut::<LANES>();
            let (from, from_rest) = weights.as_chunks::<LANES>();
            for (to, from) in to.iter_mut().zip(from) {
                let product = simd.mul(simd.load(from), simd.splat(factor));
                simd.store(if g == 0 { product } else { simd.add(simd.load(to), product) }, to);
            }
            for (to, from) in to_rest.iter_mut().zip(from_rest) {
                *to = if g == 0 { from * factor } else { *to + from * factor };
            }
        }
    }
}
