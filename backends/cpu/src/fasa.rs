//! A sparse decode step of one layer: importance, selection, attention over the chosen rows.

use crate::attention::{Which, dense_from, scaled};
use crate::layer::{LayerCache, LayerSketch};
use crate::partial::Partial;
use crate::selected::Selected;
use crate::source::{Failure, Source};
use crate::team::share_each;
use crate::tip::shortlist::{self, Choice, STRETCH, Stretch};
use crate::tip::{self, Mean, Queries, Ranking, Shortlist};
use fasa_core::config::Scope;
use fasa_core::policy::Plan;
use fasa_core::select::scratch_len;
use fasa_core::sketch::{SketchRows, fold_query};
use fasa_core::{Error, Result};
use std::cell::Cell;

/// Fewest sketch rows worth a thread of their own.
const ROWS_PER_PIECE: usize = 4096;

/// Buffers of one thread. A context's scores would otherwise be allocated, and their pages faulted in, at every step.
#[derive(Default)]
struct Scratch {
    folded: Vec<f32>,
    scores: Vec<f32>,
    mean: Mean,
    shortlist: Shortlist,
    blocks: Vec<[f32; 16]>,
    entries: Vec<u64>,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

impl Scratch {
    /// Runs `work` with this thread's buffers. A task that is stolen meanwhile finds none and makes its own.
    fn with<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
        let mut scratch = SCRATCH.take().unwrap_or_default();
        let result = work(&mut scratch);
        SCRATCH.set(Some(scratch));
        result
    }
}

/// One FASA decode step of `layer`: scores the sketch, keeps `budget` tokens, attends to those.
///
/// `queries` and `out` are `[query_heads, dim]`; the sketch has a row for each of the cache's. A budget that covers the
/// cache is dense attention, bit for bit. KV heads are spread over the threads of rayon's current pool; where there are
/// more threads than heads, a long context's scores are too.
///
/// # Errors
/// [`Error::Length`] or [`Error::Range`] if shapes, plan and sketch disagree, the budget is 0, or the layer has a sliding
/// window, which is read densely.
pub fn fasa_decode(
    layer: usize,
    queries: &[f32],
    cache: &LayerCache<'_>,
    sketch: &LayerSketch<'_>,
    plan: &Plan<'_>,
    budget: usize,
    out: &mut [f32],
) -> Result<Selected> {
    fasa_from(layer, queries, cache, sketch, plan, budget, out)
}

/// [`fasa_decode`] of rows that may lie elsewhere.
pub(crate) fn fasa_from<C: Source>(
    layer: usize,
    queries: &[f32],
    cache: &C,
    sketch: &LayerSketch<'_>,
    plan: &Plan<'_>,
    budget: usize,
    out: &mut [f32],
) -> Result<Selected, C::Error> {
    let shape = cache.shape();
    let group = shape.group(queries, out)?;
    let (dim, len, kv_heads) = (shape.dim, shape.len, shape.kv_heads);
    if budget == 0 {
        return Err(Error::Range { what: "budget", problem: "a step reads at least one token" }.into());
    }
    if shape.window < len {
        let problem = "a layer with a sliding window is read densely";
        return Err(Error::Range { what: "window", problem }.into());
    }
    if budget >= len {
        dense_from(queries, cache, out)?;
        let everything: Vec<u32> = (0..len as u32).collect();
        return Ok(Selected::of_equal_lists(everything, len));
    }
    let step = Step { layer, plan, sketch, len, group, dim, budget };
    let sketches = kv_heads * step.sketches();
    if sketch.heads() != sketches {
        return Err(Error::Length { what: "sketch.heads", want: sketches, got: sketch.heads() }.into());
    }
    let mut positions = vec![0u32; kv_heads * step.sets() * budget];
    let failure = Failure::default();
    let of_head = |kv_head: usize| &queries[kv_head * group * dim..(kv_head + 1) * group * dim];

    // The first pass over a head's sketch, by several threads.
    let pieces = step.pieces(kv_heads);
    let mut stretches: Vec<Stretch> = Vec::new();
    if pieces > 1 {
        stretches.resize_with(kv_heads * pieces, Stretch::default);
        share_each(stretches.iter_mut(), |i, stretch| {
            let seen = step.look(i / pieces, of_head(i / pieces), i % pieces, pieces);
            *stretch = failure.record(seen.map_err(C::Error::from)).unwrap_or_default();
        });
    }

    let heads = positions.chunks_exact_mut(step.sets() * budget).zip(out.chunks_exact_mut(group * dim));
    share_each(heads, |kv_head, (positions, out)| {
        let queries = of_head(kv_head);
        let stretches = stretches.get(kv_head * pieces..(kv_head + 1) * pieces).unwrap_or_default();
        let selected = Scratch::with(|scratch| step.select(kv_head, queries, stretches, positions, scratch));
        if failure.record(selected.map_err(C::Error::from)).is_none() {
            return;
        }
        let per_set = group / step.sets() * dim;
        let sets = queries.chunks_exact(per_set).zip(positions.chunks_exact(budget));
        for ((queries, set), out) in sets.zip(out.chunks_exact_mut(per_set)) {
            let mut partial = Partial::new(per_set / dim, dim);
            let queries = scaled(queries, dim);
            failure.record(cache.accumulate(&queries, kv_head, Which::Chosen(set), &mut partial));
            partial.finish(out);
        }
    });
    failure.into_result()?;
    Ok(Selected::of_equal_lists(positions, budget))
}

/// What the heads of one step share.
struct Step<'a> {
    layer: usize,
    plan: &'a Plan<'a>,
    sketch: &'a LayerSketch<'a>,
    len: usize,
    group: usize,
    dim: usize,
    budget: usize,
}

impl Step<'_> {
    /// Lists of tokens per KV head.
    fn sets(&self) -> usize {
        self.plan.config().token_scope.rows(self.group, 1)
    }

    /// Sketches per KV head.
    fn sketches(&self) -> usize {
        self.plan.config().chunk_scope.rows(self.group, 1)
    }

    fn ranking(&self) -> Ranking {
        match self.plan.config().token_scope {
            Scope::KvHead if self.group > 1 => Ranking::mean(1.0 / (self.dim as f32).sqrt()),
            _ => Ranking::Each,
        }
    }

    /// Into how many pieces the first pass over a sketch is split.
    fn pieces(&self, kv_heads: usize) -> usize {
        match shortlist::pays(self.len, self.budget) {
            true => rayon::current_num_threads().div_ceil(kv_heads).min(self.len / ROWS_PER_PIECE).max(1),
            false => 1,
        }
    }

    /// One piece of the first pass.
    fn look(&self, kv_head: usize, queries: &[f32], piece: usize, pieces: usize) -> Result<Stretch> {
        let per_piece = self.len.div_ceil(pieces).next_multiple_of(STRETCH);
        let (from, to) = ((piece * per_piece).min(self.len), ((piece + 1) * per_piece).min(self.len));
        let prepared = Scratch::with(|scratch| self.prepare_all(kv_head, queries, &mut scratch.folded))?;
        Ok(shortlist::look(&prepared, from..to, self.ranking()))
    }

    /// The tokens of one KV head: `positions` is `[sets, budget]`.
    fn select(
        &self,
        kv_head: usize,
        queries: &[f32],
        stretches: &[Stretch],
        positions: &mut [u32],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Scratch { folded, scores, mean, shortlist, blocks, entries } = scratch;
        let (len, dim, budget, guarantees) = (self.len, self.dim, self.budget, self.plan.config().guarantees);
        entries.resize(scratch_len(budget).max(4 * budget), 0);
        let prepared = self.prepare_all(kv_head, queries, folded)?;
        let ranking = self.ranking();
        if shortlist::pays(len, budget) {
            let choice = Choice { seen: len, ranking, guarantees };
            return shortlist::pick(&prepared, choice, stretches, shortlist, entries, positions);
        }
        match ranking {
            Ranking::Mean { .. } => {
                scores.resize(len, 0.0);
                tip::group_mean(&prepared, 1.0 / (dim as f32).sqrt(), mean, scores);
            }
            Ranking::Each => {
                scores.resize(self.group * len, 0.0);
                let mut scores = &mut scores[..];
                for (rows, queries) in &prepared {
                    let (now, later) = std::mem::take(&mut scores).split_at_mut(queries.len() * len);
                    tip::score(rows, queries, blocks, now);
                    scores = later;
                }
            }
        }
        for (scores, set) in scores[..self.sets() * len].chunks_exact(len).zip(positions.chunks_exact_mut(budget)) {
            guarantees.pick(scores, budget, entries, set)?;
        }
        Ok(())
    }

    /// The sketches of one KV head, and their queries in the form in which each is scored.
    fn prepare_all(
        &self,
        kv_head: usize,
        queries: &[f32],
        folded: &mut Vec<f32>,
    ) -> Result<Vec<(SketchRows<'_>, Queries)>> {
        let per_sketch = self.group / self.sketches() * self.dim;
        let sketches = kv_head * self.sketches()..;
        queries
            .chunks_exact(per_sketch)
            .zip(sketches)
            .map(|(queries, row)| self.prepare(row, queries, folded))
            .collect()
    }

    /// One sketch, and its queries in the form in which it is scored.
    fn prepare(&self, row: usize, queries: &[f32], folded: &mut Vec<f32>) -> Result<(SketchRows<'_>, Queries)> {
        let head = self.plan.head(self.layer, row)?;
        let rows = self.sketch.rows(row, self.len)?;
        if rows.precision() != head.precision() || rows.chunks() != head.chunks() {
            return Err(Error::Range { what: "sketch", problem: "it was made for another plan" });
        }
        let channels = head.channels().len();
        folded.resize(queries.len() / self.dim * channels, 0.0);
        for (query, folded) in queries.chunks_exact(self.dim).zip(folded.chunks_exact_mut(channels)) {
            fold_query(&head, query, folded)?;
        }
        Ok((rows, Queries::new(folded, head.precision(), head.chunks())))
    }
}

#[cfg(test)]
pub(crate) mod tests;
