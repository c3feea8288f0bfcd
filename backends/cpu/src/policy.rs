//! A decode step of one layer under any policy of the core.

use crate::attention::{Which, accumulate, scaled};
use crate::layer::{LayerCache, LayerSketch};
use crate::partial::Partial;
use crate::selected::Selected;
use fasa_core::policy::{CachePolicy, Memory, Selection, Step};
use fasa_core::select::scratch_len;
use fasa_core::{Error, Result, Rows};

/// One decode step of `layer` under any policy, head after head. For methods without kernels of their own: keys of a cache
/// in f16 are converted at every step.
///
/// # Errors
/// As [`fasa_decode`](crate::fasa_decode), and whatever the policy returns.
pub fn policy_decode(
    layer: usize,
    queries: &[f32],
    cache: &LayerCache<'_>,
    sketch: Option<&LayerSketch<'_>>,
    policy: &mut dyn CachePolicy,
    budget: usize,
    out: &mut [f32],
) -> Result<Selected> {
    let group = cache.group(queries, out)?;
    let (dim, len) = (cache.dim(), cache.len());
    if budget == 0 {
        return Err(Error::Range { what: "budget", problem: "a step reads at least one token" });
    }
    if cache.window() < len {
        return Err(Error::Range { what: "window", problem: "a layer with a sliding window is read densely" });
    }
    let sets = policy.scope().rows(group, 1);
    // Full attention ignores the budget, so every list has room for all tokens.
    let (mut positions, mut lengths) = (vec![0; sets * len], vec![0; sets]);
    let (mut scores, mut entries) = (vec![0.0; Memory::scores_len(sets, len)], vec![0; scratch_len(budget.min(len))]);
    let mut selected = Selected::default();
    for (kv_head, out) in out.chunks_exact_mut(group * dim).enumerate() {
        let queries = &queries[kv_head * group * dim..(kv_head + 1) * group * dim];
        let sketches = match sketch {
            None => vec![],
            Some(sketch) => {
                let per_head = sketch.heads() / cache.kv_heads();
                (0..per_head).map(|s| sketch.rows(kv_head * per_head + s, len)).collect::<Result<_>>()?
            }
        };
        let head = cache.head(kv_head);
        let keys = head.keys_f32();
        let step = Step {
            layer,
            kv_head,
            queries: Rows::contiguous(queries, dim)?,
            keys: Rows::contiguous(&keys, dim)?,
            sketches: &sketches,
        };
        let mut selection = Selection::new(&mut positions, &mut lengths, len)?;
        let mut memory = Memory { scores: &mut scores, entries: &mut entries };
        policy.select(&step, budget, &mut memory, &mut selection)?;
        for (g, (query, out)) in queries.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
            let mut partial = Partial::new(1, dim);
            let chosen = Which::Chosen(selection.of_query(g));
            accumulate(&scaled(query, dim), cache, kv_head, chosen, &mut partial);
            partial.finish(out);
        }
        (0..sets).for_each(|s| selected.push(selection.set(s)));
    }
    Ok(selected)
}
