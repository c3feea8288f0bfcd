//! One importance per token for the queries of a group: the mean of their softmaxes.
//!
//! A softmax needs its largest score and its sum first. Scores become weights span by span while they are in the first cache,
//! relative to the span's own largest; the second pass only multiplies each span by what that is worth.

use super::{Asking, Queries, SPAN, Sketches, VECTORS, score_kernel};
use crate::exp::exp2;
use crate::isa::dispatch;
use crate::simd::{LANES, Simd};
use fasa_core::sketch::SketchRows;

/// Memory of [`group_mean`].
#[derive(Debug, Default)]
pub(crate) struct Mean {
    /// Scores, then weights relative to their span's largest: `[n / 16, G]` vectors of sixteen rows.
    weights: Vec<[f32; LANES]>,
    /// Per span and query: the largest score and the sum of weights; then what the span's weights are multiplied with.
    spans: Vec<Span>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Span {
    largest: f32,
    total: f32,
}

/// Mean over the group of `softmax(TIP scores * scale)`, `[n]`.
pub(crate) fn group_mean(sketches: &Sketches<'_>, scale: f32, memory: &mut Mean, importance: &mut [f32]) {
    // Weights are powers of two.
    let scale = scale * std::f32::consts::LOG2_E;
    let n = importance.len();
    let group: usize = sketches.iter().map(|(_, queries)| queries.len()).sum();
    memory.weights.resize(n.div_ceil(LANES) * group, [0.0; LANES]);
    memory.spans.resize(n.div_ceil(SPAN) * group, Span::default());
    let mut first = 0;
    for (rows, queries) in sketches {
        weigh(rows, queries, scale, first, group, memory);
        first += queries.len();
    }
    for g in 0..group {
        let spans = || memory.spans.iter().skip(g).step_by(group);
        let largest = spans().fold(f32::NEG_INFINITY, |m, span| m.max(span.largest));
        let worth = |span: &Span| if span.total > 0.0 { ((span.largest - largest) * scale).exp2() } else { 0.0 };
        let total: f32 = spans().map(|span| worth(span) * span.total).sum();
        let share = if total > 0.0 { 1.0 / (total * group as f32) } else { 0.0 };
        for span in memory.spans.iter_mut().skip(g).step_by(group) {
            span.total = worth(span) * share;
        }
    }
    sum(memory, group, importance);
}

dispatch! {
    fn weigh(rows: &SketchRows<'_>, queries: &Queries, scale: f32, first: usize, group: usize, memory: &mut Mean)
        = weigh_kernel
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn weigh_kernel<S: Simd>(
    simd: S,
    rows: &SketchRows<'_>,
    queries: &Queries,
    scale: f32,
    first: usize,
    group: usize,
    memory: &mut Mean,
) {
    let n = rows.len();
    let Mean { weights, spans } = memory;
    let spans = spans.chunks_exact_mut(group);
    for ((i, weights), spans) in weights.chunks_mut(VECTORS * group).enumerate().zip(spans) {
        let (from, to) = (i * SPAN, ((i + 1) * SPAN).min(n));
        // The other sketches' queries have their places in each block before and after.
        let mut asking = Asking::new(&rows.span(to..(to + SPAN).min(n)), false);
        score_kernel(simd, &rows.span(from..to), queries, &mut weights[first..], group, &mut asking);
        let rest = (to - from) % LANES;
        for g in first..first + queries.len() {
            if rest > 0 {
                // Lanes past the last row weigh nothing.
                let last = weights.len() - group + g;
                weights[last][rest..].fill(f32::NEG_INFINITY);
            }
            spans[g] = to_weights(simd, weights, g, group, scale, &mut asking);
        }
    }
}

/// Scores of query `g` in a span to weights relative to the largest.
#[inline(always)]
fn to_weights<S: Simd>(
    simd: S,
    scores: &mut [[f32; LANES]],
    g: usize,
    group: usize,
    scale: f32,
    asking: &mut Asking,
) -> Span {
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for block in scores.chunks_exact(group) {
        largest = simd.max(simd.load(&block[g]), largest); // a NaN loses against any number
    }
    let largest = simd.largest(largest);
    if largest == f32::NEG_INFINITY {
        return Span { largest, total: 0.0 };
    }
    // 2^(score * factor - largest * factor), in one rounding.
    let (factor, shift) = (simd.splat(scale), simd.splat(-largest * scale));
    let mut total = simd.splat(0.0);
    for block in scores.chunks_exact_mut(group) {
        asking.beside_weights(simd);
        let weights = exp2(simd, simd.mul_add(simd.load(&block[g]), factor, shift));
        total = simd.add(total, weights);
        simd.store(weights, &mut block[g]);
    }
    Span { largest, total: simd.sum(total) }
}

dispatch! {
    /// `importance[t]` = Σ_g weight of t for g, times what its span is worth.
    fn sum(memory: &Mean, group: usize, importance: &mut [f32]) = sum_kernel
}

#[inline(always)]
fn sum_kernel<S: Simd>(simd: S, memory: &Mean, group: usize, importance: &mut [f32]) {
    let spans = memory.weights.chunks(VECTORS * group).zip(memory.spans.chunks_exact(group));
    for (out, (weights, spans)) in importance.chunks_mut(SPAN).zip(spans) {
        for (out, weights) in out.chunks_mut(LANES).zip(weights.chunks_exact(group)) {
            let mut sum = simd.splat(0.0);
            for g in 0..group {
                // Weights of a span without any number are what its scores were.
                if spans[g].total > 0.0 {
                    sum = simd.mul_add(simd.load(&weights[g]), simd.splat(spans[g].total), sum);
                }
            }
            match out.first_chunk_mut::<LANES>() {
                Some(whole) => simd.store(sum, whole),
                None => {
                    let mut lanes = [0.0; LANES];
                    simd.store(sum, &mut lanes);
                    out.copy_from_slice(&lanes[..out.len()]);
                }
            }
        }
    }
}
