//! A sparse decode step of one layer: importance, selection, attention over the chosen rows.

use crate::attention::{Which, accumulate, dense_decode, scaled};
use crate::layer::{LayerCache, LayerSketch};
use crate::partial::Partial;
use crate::selected::Selected;
use crate::team::share_each;
use crate::tip::{self, Mean, Queries};
use fasa_core::config::Scope;
use fasa_core::policy::Plan;
use fasa_core::select::scratch_len;
use fasa_core::sketch::{SketchRows, fold_query};
use fasa_core::{Error, Result};
use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

/// Buffers of one thread. A context's scores would otherwise be allocated, and their pages faulted in, at every step.
#[derive(Default)]
struct Scratch {
    folded: Vec<f32>,
    scores: Vec<f32>,
    mean: Mean,
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
/// cache is dense attention, bit for bit. KV heads are spread over the threads of rayon's current pool.
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
    let group = cache.group(queries, out)?;
    let (dim, len, kv_heads) = (cache.dim(), cache.len(), cache.kv_heads());
    if budget == 0 {
        return Err(Error::Range { what: "budget", problem: "a step reads at least one token" });
    }
    if cache.window() < len {
        return Err(Error::Range { what: "window", problem: "a layer with a sliding window is read densely" });
    }
    if budget >= len {
        dense_decode(queries, cache, out)?;
        let everything: Vec<u32> = (0..len as u32).collect();
        return Ok(Selected::of_equal_lists(everything, len));
    }
    let step = Step { layer, plan, sketch, len, group, dim, budget };
    let sketches = kv_heads * step.sketches();
    if sketch.heads() != sketches {
        return Err(Error::Length { what: "sketch.heads", want: sketches, got: sketch.heads() });
    }
    let mut positions = vec![0u32; kv_heads * step.sets() * budget];
    let failure = Mutex::new(None);
    let heads = positions.chunks_exact_mut(step.sets() * budget).zip(out.chunks_exact_mut(group * dim));
    share_each(heads, |kv_head, (positions, out)| {
        let queries = &queries[kv_head * group * dim..(kv_head + 1) * group * dim];
        if let Err(error) = Scratch::with(|scratch| step.select(kv_head, queries, positions, scratch)) {
            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            return;
        }
        let per_set = group / step.sets() * dim;
        let sets = queries.chunks_exact(per_set).zip(positions.chunks_exact(budget));
        for ((queries, set), out) in sets.zip(out.chunks_exact_mut(per_set)) {
            let mut partial = Partial::new(per_set / dim, dim);
            let queries = scaled(queries, dim);
            accumulate(&queries, cache, kv_head, Which::Chosen(set), &mut partial);
            partial.finish(out);
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
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

    /// The tokens of one KV head: `positions` is `[sets, budget]`.
    fn select(&self, kv_head: usize, queries: &[f32], positions: &mut [u32], scratch: &mut Scratch) -> Result<()> {
        let Scratch { folded, scores, mean, blocks, entries } = scratch;
        let (len, dim, budget) = (self.len, self.dim, self.budget);
        entries.resize(scratch_len(budget).max(4 * budget), 0);
        let per_sketch = self.group / self.sketches();
        let mut prepared = Vec::with_capacity(self.sketches());
        for (s, queries) in queries.chunks_exact(per_sketch * dim).enumerate() {
            prepared.push(self.prepare(kv_head * self.sketches() + s, queries, folded)?);
        }
        match self.plan.config().token_scope {
            Scope::KvHead if self.group > 1 => {
                scores.resize(len, 0.0);
                tip::group_mean(&prepared, 1.0 / (dim as f32).sqrt(), mean, scores);
            }
            _ => {
                scores.resize(self.group * len, 0.0);
                for ((rows, queries), scores) in prepared.iter().zip(scores.chunks_exact_mut(per_sketch * len)) {
                    tip::score(rows, queries, blocks, scores);
                }
            }
        }
        for (scores, set) in scores[..self.sets() * len].chunks_exact(len).zip(positions.chunks_exact_mut(budget)) {
            self.plan.config().guarantees.pick(scores, budget, entries, set)?;
        }
        Ok(())
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
mod tests;
