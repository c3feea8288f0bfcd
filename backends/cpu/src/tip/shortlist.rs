//! The tokens that can be among the best, and their scores.
//!
//! [`Bounds`] say of every block of sixteen tokens what its best is worth at least and at most. The Nth largest of the lower
//! bounds is reached by N tokens, so a block whose upper bound lies under it holds none of the best N. The blocks that are
//! left, a few percent of a long context, are scored a second time.

use super::bounds::{Bounds, Softmax, VECTORS_OF_BLOCKS};
use super::{SPAN, Sketches, VECTORS, score_kernel};
use crate::ahead::{Ahead, Lines};
use crate::exp::exp2;
use crate::isa::dispatch;
use crate::simd::{LANES, Simd};
use fasa_core::select::top_n;
use fasa_core::{Guarantees, Result};
use std::ops::Range;

/// How the queries of a group choose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Ranking {
    /// One list by the mean of `softmax(score * scale)`.
    Mean {
        /// Times log2 e: weights are powers of two.
        scale: f32,
    },
    /// A list for every query, by its scores.
    Each,
}

impl Ranking {
    /// By the mean of softmaxes of `score * scale`.
    pub(crate) fn mean(scale: f32) -> Self {
        Ranking::Mean { scale: scale * std::f32::consts::LOG2_E }
    }

    pub(super) fn lists(self, group: usize) -> usize {
        match self {
            Ranking::Mean { .. } => 1,
            Ranking::Each => group,
        }
    }
}

/// Blocks per token kept from which looking twice is cheaper than writing all scores down: below, too many blocks are looked at
/// twice, and the weights of all tokens fit in the second cache.
const BLOCKS_PER_TOKEN: usize = 16;

/// Memory of [`pick`].
#[derive(Debug, Default)]
pub(crate) struct Shortlist {
    bounds: Bounds,
    /// Per list and block: what at least one token of the block is worth.
    lower: Vec<[f32; LANES]>,
    /// Per block, for a mean: what no token of it exceeds. For the scores of one query both are the same.
    upper: Vec<[f32; LANES]>,
    /// Consecutive tokens that are scored again, at most a span.
    runs: Vec<Range<usize>>,
    scores: Vec<[f32; LANES]>,
    /// Of the tokens in `runs`, per list.
    worth: Vec<f32>,
    positions: Vec<u32>,
}

/// A stretch of the first pass, done by one thread for others.
#[derive(Debug, Default)]
pub(crate) struct Stretch(Bounds);

/// Whether so many tokens of a context are found by looking twice.
pub(crate) fn pays(seen: usize, budget: usize) -> bool {
    seen / LANES >= BLOCKS_PER_TOKEN * budget
}

/// Splits the first pass: stretches are multiples of this many tokens.
pub(crate) const STRETCH: usize = SPAN;

/// The first pass over the tokens of `range`, which starts at a multiple of [`STRETCH`].
pub(crate) fn look(sketches: &Sketches<'_>, range: Range<usize>, ranking: Ranking, ahead: &Ahead) -> Stretch {
    let mut bounds = Bounds::default();
    bounds.find(sketches, range, ranking, ahead);
    Stretch(bounds)
}

/// What is chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    /// Tokens in the context, more than the budget.
    pub(crate) seen: usize,
    pub(crate) ranking: Ranking,
    pub(crate) guarantees: Guarantees,
}

/// Chooses `budget` tokens: the guaranteed ones and the best. `out` is `[lists, budget]`, each list ascending; `entries` as for
/// [`top_n`]. Without `stretches` the first pass is done here.
pub(crate) fn pick(
    sketches: &Sketches<'_>,
    Choice { seen, ranking, guarantees }: Choice,
    stretches: &[Stretch],
    memory: &mut Shortlist,
    entries: &mut [u64],
    out: &mut [u32],
    ahead: &Ahead,
) -> Result<()> {
    let group: usize = sketches.iter().map(|(_, queries)| queries.len()).sum();
    let lists = ranking.lists(group);
    let budget = out.len() / lists;
    let (sinks, recent_from) = guarantees.forced(seen, budget);
    let free = budget - sinks - (seen - recent_from);
    let mut own = std::mem::take(&mut memory.bounds);
    let stretches: Vec<&Bounds> = match stretches {
        [] => {
            own.find(sketches, 0..seen, ranking, ahead);
            vec![&own]
        }
        stretches => stretches.iter().map(|stretch| &stretch.0).collect(),
    };
    let softmax = match ranking {
        Ranking::Mean { scale } => shares(&stretches, group, scale),
        Ranking::Each => vec![],
    };
    memory.limit(&stretches, &softmax, ranking, group);
    memory.bounds = own;
    memory.choose_runs(sinks..recent_from, lists, free, entries, out)?;
    memory.score_again(sketches, &softmax, ranking, group);
    let count = memory.positions.len();
    for (list, out) in out.chunks_exact_mut(budget).enumerate() {
        let worth = &memory.worth[list * count..(list + 1) * count];
        let kept = top_n(worth, free, entries, &mut out[sinks..])?;
        for position in &mut out[sinks..sinks + kept] {
            *position = memory.positions[*position as usize];
        }
        out[..sinks].iter_mut().zip(0..).for_each(|(slot, position)| *slot = position);
        out[sinks + kept..].iter_mut().zip(recent_from..).for_each(|(slot, position)| *slot = position as u32);
    }
    Ok(())
}

/// Each query's softmax over everything; the total is then what a weight is multiplied with, a share of the mean.
fn shares(stretches: &[&Bounds], group: usize, scale: f32) -> Vec<Softmax> {
    let whole = |g: usize| stretches.iter().fold(Softmax::NOTHING, |sum, part| sum.merge(part.softmax[g], scale));
    let share = |softmax: Softmax| match softmax.total > 0.0 {
        true => Softmax { total: softmax.share() / group as f32, ..softmax },
        false => Softmax { largest: 0.0, total: 0.0 },
    };
    (0..group).map(|g| share(whole(g))).collect()
}

/// By what a span's means must be multiplied at least and at most. `then` are the softmaxes that made them, `softmax` those of
/// everything.
fn corrections(then: &[Softmax], softmax: &[Softmax], scale: f32) -> (f32, f32) {
    let (mut least, mut most) = (f32::INFINITY, 0.0f32);
    for (then, whole) in then.iter().zip(softmax) {
        if then.total > 0.0 && whole.total > 0.0 {
            let factor = ((then.largest - whole.largest) * scale).exp2() * then.total * whole.total;
            (least, most) = (least.min(factor), most.max(factor));
        }
    }
    (least.min(most), most)
}

impl Shortlist {
    /// Bounds of what the best token of each block is worth.
    fn limit(&mut self, stretches: &[&Bounds], softmax: &[Softmax], ranking: Ranking, group: usize) {
        self.lower.clear();
        self.upper.clear();
        match ranking {
            Ranking::Mean { scale } => {
                for bounds in stretches {
                    let spans =
                        bounds.largest.chunks_exact(VECTORS_OF_BLOCKS).zip(bounds.weighed_with.chunks_exact(group));
                    for (largest, then) in spans {
                        let (least, most) = corrections(then, softmax, scale);
                        self.lower.extend(largest.iter().map(|blocks| blocks.map(|mean| mean * least)));
                        self.upper.extend(largest.iter().map(|blocks| blocks.map(|mean| mean * most)));
                    }
                }
            }
            Ranking::Each => {
                for g in 0..group {
                    let vectors = stretches.iter().flat_map(|bounds| bounds.largest.chunks_exact(group));
                    self.lower.extend(vectors.map(|largest| largest[g]));
                }
            }
        }
    }

    /// The tokens of `middle` that are looked at again: whole blocks that can hold one of the `free` best, and what is left
    /// of the blocks at both ends.
    fn choose_runs(
        &mut self,
        middle: Range<usize>,
        lists: usize,
        free: usize,
        entries: &mut [u64],
        scratch: &mut [u32],
    ) -> Result<()> {
        let whole = middle.start.div_ceil(LANES)..middle.end / LANES;
        let per_list = self.lower.len() / lists;
        let lower = || self.lower.chunks_exact(per_list).map(|list| list.as_flattened());
        let upper = || match self.upper.is_empty() {
            true => self.lower.chunks_exact(per_list),
            false => self.upper.chunks_exact(per_list),
        };
        let mut bars = Vec::with_capacity(lists);
        for lower in lower() {
            let lower = &lower[whole.clone()];
            let kept = top_n(lower, free, entries, scratch)?;
            let least = scratch[..kept].iter().fold(f32::INFINITY, |bar, i| bar.min(lower[*i as usize]));
            // Weights are rounded: a hair of room. Not for scores, which are the same both times.
            bars.push(if self.upper.is_empty() { least } else { least * (1.0 - 1e-3) });
        }
        self.runs.clear();
        self.positions.clear();
        let blocks = middle.start / LANES..middle.end.div_ceil(LANES);
        for v in blocks.start / LANES..blocks.end.div_ceil(LANES) {
            let mut passing = 0u32;
            for (upper, bar) in upper().zip(&bars) {
                // Not `!(bound < bar)`: but for a bar that is no number everything passes.
                let mask = upper[v].iter().enumerate().fold(0, |m, (i, bound)| m | (u32::from(*bound >= *bar) << i));
                passing |= if bar.is_nan() { u32::MAX } else { mask };
            }
            for b in (v * LANES).max(blocks.start)..((v + 1) * LANES).min(blocks.end) {
                if passing >> (b % LANES) & 1 == 1 || !whole.contains(&b) {
                    let tokens = (b * LANES).max(middle.start)..((b + 1) * LANES).min(middle.end);
                    self.positions.extend(tokens.start as u32..tokens.end as u32);
                    match self.runs.last_mut() {
                        Some(run) if run.end == tokens.start && tokens.end - run.start <= SPAN => run.end = tokens.end,
                        _ => self.runs.push(tokens),
                    }
                }
            }
        }
        Ok(())
    }

    /// Fills `worth`.
    fn score_again(&mut self, sketches: &Sketches<'_>, softmax: &[Softmax], ranking: Ranking, group: usize) {
        let Self { runs, scores, worth, positions, .. } = self;
        scores.resize(VECTORS * group, [0.0; LANES]);
        worth.resize(ranking.lists(group) * positions.len(), 0.0);
        score_again(sketches, softmax, ranking, runs, scores, worth, positions.len());
    }
}

/// What scores weigh beside the largest.
#[inline(always)]
fn weight<S: Simd>(simd: S, scores: &[f32; LANES], softmax: &Softmax, scale: f32) -> S::F {
    exp2(simd, simd.mul_add(simd.load(scores), simd.splat(scale), simd.splat(-softmax.largest * scale)))
}

dispatch! {
    /// What the tokens of `runs` are worth, `[lists, count]`.
    fn score_again(
        sketches: &Sketches<'_>, softmax: &[Softmax], ranking: Ranking, runs: &[Range<usize>], scores: &mut [[f32; LANES]],
        worth: &mut [f32], count: usize,
    ) = score_again_kernel
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn score_again_kernel<S: Simd>(
    simd: S,
    sketches: &Sketches<'_>,
    softmax: &[Softmax],
    ranking: Ranking,
    runs: &[Range<usize>],
    scores: &mut [[f32; LANES]],
    worth: &mut [f32],
    count: usize,
) {
    let group = scores.len() / VECTORS;
    let mut at = 0;
    for run in runs {
        let mut first = 0;
        for (rows, queries) in sketches {
            score_kernel(simd, &rows.span(run.clone()), queries, &mut scores[first..], group, &mut Lines::default());
            first += queries.len();
        }
        for (i, scores) in scores.chunks_exact(group).take(run.len().div_ceil(LANES)).enumerate() {
            let tokens = at + i * LANES..(at + (i + 1) * LANES).min(at + run.len());
            match ranking {
                Ranking::Mean { scale } => {
                    let mut sum = simd.splat(0.0);
                    for (scores, softmax) in scores.iter().zip(softmax) {
                        sum = simd.mul_add(weight(simd, scores, softmax, scale), simd.splat(softmax.total), sum);
                    }
                    let mut lanes = [0.0; LANES];
                    simd.store(sum, &mut lanes);
                    worth[tokens.clone()].copy_from_slice(&lanes[..tokens.len()]);
                }
                Ranking::Each => {
                    for (worth, scores) in worth.chunks_exact_mut(count).zip(scores) {
                        worth[tokens.clone()].copy_from_slice(&scores[..tokens.len()]);
                    }
                }
            }
        }
        at += run.len();
    }
}
