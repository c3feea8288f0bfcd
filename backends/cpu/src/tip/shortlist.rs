//! The tokens that can be among the best, and what they are worth.
//!
//! [`Bounds`] say of every token what it is worth at least and at most, and of every block of sixteen tokens what its best is.
//! The Nth largest of the blocks' lower bounds is reached by N tokens, so a token whose upper bound lies under it is none of
//! the best N, nor is any token of a block whose upper bound does. What is left are hardly more than N tokens, of which the
//! best are found exactly.

use super::bounds::{Bounds, Softmax, VECTORS_OF_BLOCKS};
use super::{Asking, Queries, SPAN, Sketches, VECTORS, score_kernel};
use crate::exp::exp2;
use crate::isa::dispatch;
use crate::simd::{LANES, Simd};
use fasa_core::select::top_n;
use fasa_core::sketch::SketchRows;
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

/// Blocks per token kept from which a bar is sought among blocks. With fewer than one it lets everything pass.
const BLOCKS_PER_TOKEN: usize = 2;

/// Memory of [`pick`].
#[derive(Debug, Default)]
pub(crate) struct Shortlist {
    bounds: Bounds,
    /// What the best token of each block is worth at least, of one list.
    lower: Vec<[f32; LANES]>,
    /// By what that of each span is multiplied at most.
    most: Vec<f32>,
    /// Tokens that can be among the best of a list, ascending, and what they are worth.
    positions: Vec<u32>,
    worth: Vec<f32>,
    /// Their rows, one after the other, and the rows' scores.
    codes: Vec<u8>,
    scales: Vec<u8>,
    scores: Vec<[f32; LANES]>,
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
pub(crate) fn look(sketches: &Sketches<'_>, range: Range<usize>, ranking: Ranking) -> Stretch {
    let mut bounds = Bounds::default();
    bounds.find(sketches, range, ranking);
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
) -> Result<()> {
    let group: usize = sketches.iter().map(|(_, queries)| queries.len()).sum();
    let lists = ranking.lists(group);
    let budget = out.len() / lists;
    let (sinks, recent_from) = guarantees.forced(seen, budget);
    let free = budget - sinks - (seen - recent_from);
    let mut own = std::mem::take(&mut memory.bounds);
    let stretches: Vec<&Bounds> = match stretches {
        [] => {
            own.find(sketches, 0..seen, ranking);
            vec![&own]
        }
        stretches => stretches.iter().map(|stretch| &stretch.0).collect(),
    };
    let softmax = match ranking {
        Ranking::Mean { scale } => shares(&stretches, group, scale),
        Ranking::Each => vec![],
    };
    for (list, out) in out.chunks_exact_mut(budget).enumerate() {
        let among = Among { stretches: &stretches, lists, list, middle: sinks..recent_from };
        memory.limit(&among, &softmax, ranking);
        let bar = memory.bar(&among, free, entries, out)?;
        memory.candidates(&among, bar);
        if memory.positions.len() < free {
            // Some are no number.
            memory.candidates(&among, f32::NAN);
        }
        if let Ranking::Mean { scale } = ranking {
            memory.weigh_exactly(sketches, &softmax, scale)?;
        }
        let kept = top_n(&memory.worth, free, entries, &mut out[sinks..])?;
        for position in &mut out[sinks..sinks + kept] {
            *position = memory.positions[*position as usize];
        }
        out[..sinks].iter_mut().zip(0..).for_each(|(slot, position)| *slot = position);
        out[sinks + kept..].iter_mut().zip(recent_from..).for_each(|(slot, position)| *slot = position as u32);
    }
    memory.bounds = own;
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

/// What a list's tokens are sought among.
struct Among<'a> {
    /// One after the other; all but the last are whole spans.
    stretches: &'a [&'a Bounds],
    lists: usize,
    list: usize,
    /// The tokens that are not kept anyway.
    middle: Range<usize>,
}

impl Shortlist {
    /// Bounds of what the best token of each block is worth.
    fn limit(&mut self, among: &Among<'_>, softmax: &[Softmax], ranking: Ranking) {
        self.lower.clear();
        self.most.clear();
        for bounds in among.stretches {
            let spans = bounds.largest.chunks_exact(VECTORS_OF_BLOCKS * among.lists);
            for (s, largest) in spans.enumerate() {
                let (least, most) = match ranking {
                    Ranking::Mean { scale } => {
                        let group = softmax.len();
                        corrections(&bounds.weighed_with[s * group..(s + 1) * group], softmax, scale)
                    }
                    Ranking::Each => (1.0, 1.0),
                };
                self.most.push(most);
                let of_list = largest.iter().skip(among.list).step_by(among.lists);
                self.lower.extend(of_list.map(|blocks| blocks.map(|worth| worth * least)));
            }
        }
        if let Ranking::Mean { .. } = ranking {
            // Weights are rounded: a hair of room. Not for scores, which are the same both times.
            self.lower.iter_mut().flatten().for_each(|worth| *worth *= 1.0 - 1e-3);
        }
    }

    /// What `free` tokens of different blocks are worth at least.
    fn bar(&self, among: &Among<'_>, free: usize, entries: &mut [u64], scratch: &mut [u32]) -> Result<f32> {
        let middle = &among.middle;
        let whole = middle.start.div_ceil(LANES)..(middle.end / LANES).max(middle.start.div_ceil(LANES));
        let lower = &self.lower.as_flattened()[whole];
        let kept = top_n(lower, free, entries, scratch)?;
        let least = scratch[..kept].iter().fold(f32::INFINITY, |bar, i| bar.min(lower[*i as usize]));
        Ok(if kept < free { f32::NAN } else { least })
    }

    /// Tokens that can reach the bar: all if it is NaN.
    fn candidates(&mut self, among: &Among<'_>, bar: f32) {
        self.positions.clear();
        self.worth.clear();
        candidates(among, bar, &self.most, &mut self.positions, &mut self.worth);
    }

    /// What the candidates are worth by the softmaxes of everything.
    fn weigh_exactly(&mut self, sketches: &Sketches<'_>, softmax: &[Softmax], scale: f32) -> Result<()> {
        let group = softmax.len();
        let Self { positions, worth, codes, scales, scores, .. } = self;
        scores.resize(VECTORS * group, [0.0; LANES]);
        for (positions, worth) in positions.chunks(SPAN).zip(worth.chunks_mut(SPAN)) {
            let mut first = 0;
            for (rows, queries) in sketches {
                let (row_bytes, scale_bytes) =
                    (rows.precision().row_bytes(rows.chunks()), rows.precision().scale_bytes());
                codes.clear();
                scales.clear();
                for position in positions {
                    let at = *position as usize;
                    codes.extend_from_slice(&rows.codes()[at * row_bytes..(at + 1) * row_bytes]);
                    scales.extend_from_slice(&rows.scales()[at * scale_bytes..(at + 1) * scale_bytes]);
                }
                let rows = SketchRows::new(rows.precision(), rows.chunks(), positions.len(), codes, scales)?;
                score(&rows, queries, &mut scores[first..], group);
                first += queries.len();
            }
            mean(scores, softmax, scale, worth);
        }
        Ok(())
    }
}

dispatch! {
    /// The tokens of `among` that reach the bar, and what the first pass found them worth.
    fn candidates(among: &Among<'_>, bar: f32, most: &[f32], positions: &mut Vec<u32>, worth: &mut Vec<f32>) = candidates_kernel
}

#[inline(always)]
fn candidates_kernel<S: Simd>(
    simd: S,
    among: &Among<'_>,
    bar: f32,
    most: &[f32],
    positions: &mut Vec<u32>,
    worth: &mut Vec<f32>,
) {
    let Among { lists, list, middle, .. } = among;
    let everything = if bar.is_nan() { u32::MAX } else { 0 };
    let bar = simd.splat(bar);
    let mut most = most.iter();
    let mut factor = simd.splat(1.0);
    let mut first = 0;
    for bounds in among.stretches {
        let blocks = bounds.worth.chunks_exact(LANES * lists);
        for (v, (largest, blocks)) in bounds.largest.chunks_exact(*lists).zip(blocks).enumerate() {
            if v % VECTORS_OF_BLOCKS == 0 {
                factor = simd.splat(most.next().copied().unwrap_or(1.0));
            }
            let reach = simd.at_least(simd.mul(simd.load(&largest[*list]), factor), bar);
            for block in bits((reach | everything) & 0xffff) {
                let from = first + block * LANES;
                let block = &blocks[block * lists + list];
                let reach = simd.at_least(simd.mul(simd.load(block), factor), bar);
                for lane in bits((reach | everything) & lanes_within(from, middle)) {
                    positions.push((from + lane) as u32);
                    worth.push(block[lane]);
                }
            }
            first += LANES * LANES;
        }
    }
}

/// The lanes of sixteen tokens from `from` on that lie in `range`.
fn lanes_within(from: usize, range: &Range<usize>) -> u32 {
    let below = |end: usize| (1u32 << end.saturating_sub(from).min(LANES)) - 1;
    below(range.end) & !below(range.start)
}

/// The bits that are set, from the lowest on.
fn bits(mut set: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = set.trailing_zeros() as usize;
        set &= set.wrapping_sub(1);
        (bit < 32).then_some(bit)
    })
}

dispatch! {
    /// Scores of up to [`SPAN`] rows, as [`score_kernel`] lays them out.
    fn score(rows: &SketchRows<'_>, queries: &Queries, scores: &mut [[f32; LANES]], group: usize) = score_alone_kernel
}

#[inline(always)]
fn score_alone_kernel<S: Simd>(
    simd: S,
    rows: &SketchRows<'_>,
    queries: &Queries,
    scores: &mut [[f32; LANES]],
    group: usize,
) {
    score_kernel(simd, rows, queries, scores, group, &mut Asking::default());
}

dispatch! {
    /// Means of softmaxes whose totals are what a weight is multiplied with.
    fn mean(scores: &[[f32; LANES]], softmax: &[Softmax], scale: f32, worth: &mut [f32]) = mean_kernel
}

#[inline(always)]
fn mean_kernel<S: Simd>(simd: S, scores: &[[f32; LANES]], softmax: &[Softmax], scale: f32, worth: &mut [f32]) {
    let factor = simd.splat(scale);
    for (scores, worth) in scores.chunks_exact(softmax.len()).zip(worth.chunks_mut(LANES)) {
        let mut sum = simd.splat(0.0);
        for (scores, softmax) in scores.iter().zip(softmax) {
            let weight = exp2(simd, simd.mul_add(simd.load(scores), factor, simd.splat(-softmax.largest * scale)));
            sum = simd.mul_add(weight, simd.splat(softmax.total), sum);
        }
        let mut lanes = [0.0; LANES];
        simd.store(sum, &mut lanes);
        worth.copy_from_slice(&lanes[..worth.len()]);
    }
}
