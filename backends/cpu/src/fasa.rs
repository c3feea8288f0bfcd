//! A sparse decode step of one layer: importance, selection, attention over the chosen rows.

use crate::attention::{Partial, Which, accumulate, dense_decode};
use crate::layer::{LayerCache, LayerSketch};
use crate::selected::Selected;
use crate::tip;
use fasa_core::config::Scope;
use fasa_core::policy::Plan;
use fasa_core::select::scratch_len;
use fasa_core::sketch::{Precision, fold_query};
use fasa_core::{Error, Result};
use rayon::prelude::*;
use std::cell::RefCell;

/// Buffers of one thread. A context's scores would otherwise be allocated, and their pages faulted in, at every step.
#[derive(Default)]
struct Scratch {
    folded: Vec<f32>,
    scores: Vec<f32>,
    importance: Vec<f32>,
    entries: Vec<u64>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// One FASA decode step of `layer`: scores the sketch, keeps `budget` tokens, attends to those.
///
/// `queries` and `out` are `[query_heads, dim]`; the sketch has a row for each of the cache's. A budget that covers the
/// cache is dense attention, bit for bit.
///
/// # Errors
/// [`Error::Length`] or [`Error::Range`] if shapes, plan and sketch disagree, or the budget is 0.
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
    if budget >= len {
        dense_decode(queries, cache, out)?;
        let everything: Vec<u32> = (0..len as u32).collect();
        return Ok(Selected::of_equal_lists(everything, len));
    }
    let config = plan.config();
    let sets_per_head = config.token_scope.rows(group, 1);
    let sketches_per_head = config.chunk_scope.rows(group, 1);
    if sketch.heads() != kv_heads * sketches_per_head {
        return Err(Error::Length { what: "sketch.heads", want: kv_heads * sketches_per_head, got: sketch.heads() });
    }
    let mut positions = vec![0u32; kv_heads * sets_per_head * budget];
    let scale = 1.0 / (dim as f32).sqrt();

    let one_head = |kv_head: usize, positions: &mut [u32], out: &mut [f32], scratch: &mut Scratch| -> Result<()> {
        let queries = &queries[kv_head * group * dim..(kv_head + 1) * group * dim];
        scratch.scores.resize(group * len, 0.0);
        scratch.entries.resize(scratch_len(budget).max(4 * budget), 0);
        let queries_per_sketch = group / sketches_per_head;
        for s in 0..sketches_per_head {
            let row = kv_head * sketches_per_head + s;
            let head = plan.head(layer, row)?;
            let channels = head.channels().len();
            scratch.folded.resize(queries_per_sketch * channels, 0.0);
            let first = s * queries_per_sketch;
            for (g, folded) in scratch.folded.chunks_exact_mut(channels).enumerate() {
                fold_query(&head, &queries[(first + g) * dim..(first + g + 1) * dim], folded)?;
            }
            let rows = sketch.rows(row, len)?;
            if rows.precision() != head.precision() || rows.chunks() != head.chunks() {
                return Err(Error::Range { what: "sketch", problem: "it was made for another plan" });
            }
            let scores = &mut scratch.scores[first * len..(first + queries_per_sketch) * len];
            if rows.precision() == Precision::F32 {
                // The exact format is there to compare with: it sums in the reference's order, to the bit.
                for (folded, scores) in scratch.folded.chunks_exact(channels).zip(scores.chunks_exact_mut(len)) {
                    fasa_core::sketch::score(&rows, folded, scores)?;
                }
            } else {
                tip::score(&rows, &scratch.folded, scores);
            }
        }
        let importance = match config.token_scope {
            Scope::KvHead if group > 1 => {
                scratch.importance.resize(len, 0.0);
                tip::group_mean(&mut scratch.scores, scale, &mut scratch.importance);
                &scratch.importance
            }
            _ => &scratch.scores,
        };
        for (row, set) in importance.chunks_exact(len).zip(positions.chunks_exact_mut(budget)) {
            config.guarantees.pick(row, budget, &mut scratch.entries, set)?;
        }
        let queries_per_set = group / sets_per_head * dim;
        let sets = positions.chunks_exact(budget);
        for ((queries, set), out) in
            queries.chunks_exact(queries_per_set).zip(sets).zip(out.chunks_exact_mut(queries_per_set))
        {
            let mut partial = Partial::new(queries_per_set / dim, dim);
            accumulate(queries, cache.keys(kv_head), cache.values(kv_head), dim, Which::Chosen(set), &mut partial);
            partial.finish(out);
        }
        Ok(())
    };
    positions
        .par_chunks_exact_mut(sets_per_head * budget)
        .zip(out.par_chunks_exact_mut(group * dim))
        .enumerate()
        .try_for_each(|(kv_head, (positions, out))| {
            SCRATCH.with(|scratch| one_head(kv_head, positions, out, &mut scratch.borrow_mut()))
        })?;
    Ok(Selected::of_equal_lists(positions, budget))
}

#[cfg(test)]
mod tests;
