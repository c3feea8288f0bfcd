//! A sparse decode step of one layer: importance, selection, attention over the chosen rows.

use crate::attention::{Partial, Which, accumulate, dense_decode};
use crate::layer::{LayerCache, LayerSketch};
use crate::tip;
use fasa_core::config::Scope;
use fasa_core::policy::{CachePolicy, Memory, Plan, Selection, Step};
use fasa_core::select::scratch_len;
use fasa_core::sketch::{Precision, fold_query};
use fasa_core::{Error, Result, Rows};
use rayon::prelude::*;
use std::cell::RefCell;

/// The tokens that a step attended to: `sets` ascending lists of `kept` positions, one per KV head or per query head.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selected {
    /// Number of lists.
    pub sets: usize,
    /// Positions per list.
    pub kept: usize,
    /// `[sets, kept]`.
    pub positions: Vec<u32>,
}

impl Selected {
    fn everything(len: usize) -> Self {
        Self { sets: 1, kept: len, positions: (0..len as u32).collect() }
    }
}

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
        return Ok(Selected::everything(len));
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
    Ok(Selected { sets: kv_heads * sets_per_head, kept: budget, positions })
}

/// One decode step of `layer` under any policy, head after head. For methods without kernels of their own.
///
/// # Errors
/// As [`fasa_decode`], and whatever the policy returns.
pub fn policy_decode(
    layer: usize,
    queries: &[f32],
    cache: &LayerCache<'_>,
    sketch: Option<&LayerSketch<'_>>,
    policy: &mut dyn CachePolicy,
    budget: usize,
    out: &mut [f32],
) -> Result<Vec<Selected>> {
    let group = cache.group(queries, out)?;
    let (dim, len) = (cache.dim(), cache.len());
    if budget == 0 {
        return Err(Error::Range { what: "budget", problem: "a step reads at least one token" });
    }
    let sets = policy.scope().rows(group, 1);
    // Full attention ignores the budget, so every list has room for all tokens.
    let (mut positions, mut lengths) = (vec![0; sets * len], vec![0; sets]);
    let (mut scores, mut entries) = (vec![0.0; Memory::scores_len(sets, len)], vec![0; scratch_len(budget.min(len))]);
    let mut selected = Vec::with_capacity(cache.kv_heads());
    for (kv_head, out) in out.chunks_exact_mut(group * dim).enumerate() {
        let queries = &queries[kv_head * group * dim..(kv_head + 1) * group * dim];
        let sketches = match sketch {
            None => vec![],
            Some(sketch) => {
                let per_head = sketch.heads() / cache.kv_heads();
                (0..per_head).map(|s| sketch.rows(kv_head * per_head + s, len)).collect::<Result<_>>()?
            }
        };
        let step = Step {
            layer,
            kv_head,
            queries: Rows::contiguous(queries, dim)?,
            keys: cache.key_rows(kv_head)?,
            sketches: &sketches,
        };
        let mut selection = Selection::new(&mut positions, &mut lengths, len)?;
        let mut memory = Memory { scores: &mut scores, entries: &mut entries };
        policy.select(&step, budget, &mut memory, &mut selection)?;
        for (g, (query, out)) in queries.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
            let mut partial = Partial::new(1, dim);
            let chosen = Which::Chosen(selection.of_query(g));
            accumulate(query, cache.keys(kv_head), cache.values(kv_head), dim, chosen, &mut partial);
            partial.finish(out);
        }
        let kept = (0..sets).map(|s| selection.set(s).len()).max().unwrap_or(0);
        let lists = (0..sets).flat_map(|s| selection.set(s).iter().copied());
        selected.push(Selected { sets, kept, positions: lists.collect() });
    }
    Ok(selected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fasa_core::attend::attend;
    use fasa_core::config::{ChunkCount, FasaConfig};
    use fasa_core::criterion::{CriterionKind, Margin, Observation, Tally};
    use fasa_core::policy::{Fasa, Full, Oracle, OwnedPlan, Ranked};
    use fasa_core::profile::{Model, Profile};
    use fasa_core::sketch::quantize_row;
    use fasa_core::{Guarantees, Pairing};
    use proptest::prelude::*;

    /// A random layer: cache, queries, a calibrated profile and the sketch that follows from it.
    struct Layer {
        kv_heads: usize,
        group: usize,
        dim: usize,
        len: usize,
        capacity: usize,
        queries: Vec<f32>,
        keys: Vec<f32>,
        values: Vec<f32>,
        profile: Profile,
    }

    fn noise(seed: u64) -> impl Iterator<Item = f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
    }

    impl Layer {
        fn random(kv_heads: usize, group: usize, dim: usize, len: usize, scope: Scope, seed: u64) -> Self {
            let capacity = len + 3;
            let numbers = |n: usize, salt: u64| noise(seed + salt).take(n).map(|x| 2.0 * x).collect::<Vec<f32>>();
            let (queries, keys) = (numbers(kv_heads * group * dim, 1), numbers(kv_heads * capacity * dim, 2));
            let model = Model {
                architecture: "llama",
                layers: 1,
                query_heads: (kv_heads * group) as u32,
                kv_heads: kv_heads as u32,
                head_dim: dim as u32,
                rotary_dim: dim as u32,
                rope_theta: 1e4,
                pairing: Pairing::HalfSplit,
                weights: 0,
            };
            let chunks = model.chunks().expect("valid");
            let mut tally = Tally::new(CriterionKind::Margin, kv_heads * group, dim / 2);
            for head in 0..kv_heads * group {
                let rows = &keys[head / group * capacity * dim..][..len * dim];
                let step = Observation {
                    query: &queries[head * dim..(head + 1) * dim],
                    keys: Rows::contiguous(rows, dim).expect("divides"),
                    chunks: &chunks,
                };
                tally.observe(&Margin, head, &step).expect("fits");
            }
            let (scale, centre) = (vec![0.7; kv_heads * dim], vec![0.1; kv_heads * dim]);
            let profile = Profile::new(model, CriterionKind::Margin, 0, scope, &tally, &scale, &centre, "noise");
            let values = numbers(kv_heads * capacity * dim, 3);
            Self { kv_heads, group, dim, len, capacity, queries, keys, values, profile: profile.expect("fits") }
        }

        fn cache(&self) -> LayerCache<'_> {
            LayerCache::new(&self.keys, &self.values, self.kv_heads, self.capacity, self.dim, self.len).expect("fits")
        }

        fn sketch(&self, plan: &Plan<'_>) -> (Vec<u8>, Vec<u8>) {
            let precision = plan.config().precision;
            let (codes, scales) = (precision.row_bytes(plan.chunks()), precision.scale_bytes());
            let rows = plan.rows() * self.capacity;
            let (mut code_table, mut scale_table) = (vec![0; rows * codes], vec![0; rows * scales]);
            for row in 0..plan.rows() {
                let head = plan.head(0, row).expect("exists");
                for t in 0..self.capacity {
                    let key = (row * self.kv_heads / plan.rows() * self.capacity + t) * self.dim;
                    let at = row * self.capacity + t;
                    let scale = &mut scale_table[at * scales..(at + 1) * scales];
                    let key = &self.keys[key..key + self.dim];
                    quantize_row(&head, key, &mut code_table[at * codes..(at + 1) * codes], scale).expect("fits");
                }
            }
            (code_table, scale_table)
        }

        /// Attention in plain code over one list of positions per query head.
        fn naive(&self, sets: impl Fn(usize) -> Option<Vec<u32>>) -> Vec<f32> {
            let (cache, dim) = (self.cache(), self.dim);
            let mut out = vec![0.0; self.queries.len()];
            for (head, (query, out)) in self.queries.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
                let keys = Rows::contiguous(cache.keys(head / self.group), dim).expect("divides");
                let values = Rows::contiguous(cache.values(head / self.group), dim).expect("divides");
                attend(query, keys, values, sets(head).as_deref(), out).expect("shapes");
            }
            out
        }
    }

    fn assert_near(got: &[f32], want: &[f32], tolerance: f32) {
        let norm = want.iter().map(|w| w * w).sum::<f32>().sqrt();
        let error = got.iter().zip(want).map(|(g, w)| (g - w) * (g - w)).sum::<f32>().sqrt();
        assert!(error <= tolerance * norm.max(1e-3), "{error} of {norm}");
    }

    fn scope() -> impl Strategy<Value = Scope> {
        prop_oneof![Just(Scope::KvHead), Just(Scope::QueryHead)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn dense_equals_the_naive_version(
            kv_heads in 1usize..4, group in prop::sample::select(vec![1usize, 2, 4, 8]), half in 1usize..70, len in 1usize..300, seed in any::<u32>(),
        ) {
            let layer = Layer::random(kv_heads, group, 2 * half, len, Scope::KvHead, seed.into());
            let mut out = vec![f32::NAN; layer.queries.len()];
            dense_decode(&layer.queries, &layer.cache(), &mut out).expect("shapes");
            assert_near(&out, &layer.naive(|_| None), 1e-5);
        }

        #[test]
        fn fasa_equals_the_policy_of_the_core(
            kv_heads in 1usize..4, group in prop::sample::select(vec![1usize, 2, 4]), half in 1usize..40, len in 2usize..300,
            pick in 0usize..4, share in 1u16..4, chunk_scope in scope(), token_scope in scope(),
            budget in 1usize..90, sinks in 0u32..5, recent in 0u32..9, seed in any::<u32>(),
        ) {
            let layer = Layer::random(kv_heads, group, 2 * half, len, chunk_scope, seed.into());
            let config = FasaConfig {
                precision: Precision::ALL[pick], chunks: ChunkCount::Share(share), chunk_scope, token_scope,
                guarantees: Guarantees { sinks, recent }, dense_layers: 0, ..FasaConfig::DEFAULT
            };
            let owned = OwnedPlan::new(&layer.profile.view().expect("valid"), config).expect("fits");
            let plan = owned.view();
            let (codes, scales) = layer.sketch(&plan);
            let sketch = LayerSketch::new(&codes, &scales, config.precision, plan.chunks(), plan.rows(), layer.capacity).expect("fits");
            let mut out = vec![f32::NAN; layer.queries.len()];
            let selected = fasa_decode(0, &layer.queries, &layer.cache(), &sketch, &plan, budget, &mut out).expect("shapes");
            prop_assert_eq!(selected.kept, budget.min(len));

            // The attention is that of the selected rows.
            let heads = kv_heads * group;
            let set = |head: usize| &selected.positions[head * selected.sets / heads * selected.kept..][..selected.kept];
            assert_near(&out, &layer.naive(|head| Some(set(head).to_vec())), 1e-5);

            // The selected rows are those of the reference, up to scores that rounding cannot tell apart: the sums of
            // importance over both sets agree.
            let mut policy = Ranked::new("fasa", Fasa::new(plan), config.guarantees);
            let mut reference_out = vec![0.0; out.len()];
            let reference = policy_decode(0, &layer.queries, &layer.cache(), Some(&sketch), &mut policy, budget, &mut reference_out).expect("shapes");
            let reference: Vec<u32> = reference.into_iter().flat_map(|s| s.positions).collect();
            if budget < len {
                let same = reference.iter().zip(&selected.positions).filter(|(a, b)| a == b).count();
                let moved = reference.len() - same;
                prop_assert!(moved <= reference.len() / 50 + budget, "{moved} of {}", reference.len());
                for (mine, theirs) in selected.positions.chunks(budget).zip(reference.chunks(budget)) {
                    let differing = mine.iter().filter(|p| !theirs.contains(p)).count();
                    prop_assert!(differing <= 1, "{mine:?} {theirs:?}");
                }
            }
        }

        #[test]
        fn a_covering_budget_is_dense_to_the_bit(len in 1usize..200, over in 0usize..9, seed in any::<u32>()) {
            let layer = Layer::random(2, 2, 16, len, Scope::KvHead, seed.into());
            let config = FasaConfig { dense_layers: 0, ..FasaConfig::DEFAULT };
            let owned = OwnedPlan::new(&layer.profile.view().expect("valid"), config).expect("fits");
            let (codes, scales) = layer.sketch(&owned.view());
            let sketch = LayerSketch::new(&codes, &scales, config.precision, 4, 2, layer.capacity).expect("fits");
            let (mut sparse, mut dense) = (vec![0.0; 64], vec![1.0; 64]);
            fasa_decode(0, &layer.queries, &layer.cache(), &sketch, &owned.view(), len + over, &mut sparse).expect("shapes");
            dense_decode(&layer.queries, &layer.cache(), &mut dense).expect("shapes");
            prop_assert_eq!(sparse, dense);
        }

        #[test]
        fn an_f32_sketch_of_all_chunks_chooses_as_the_oracle(
            group in prop::sample::select(vec![1usize, 2, 4]), half in 1usize..40, len in 2usize..300, budget in 1usize..60, seed in any::<u32>(),
        ) {
            let layer = Layer::random(2, group, 2 * half, len, Scope::KvHead, seed.into());
            let config = FasaConfig {
                precision: Precision::F32, chunks: ChunkCount::Share(1), token_scope: Scope::QueryHead, dense_layers: 0, ..FasaConfig::DEFAULT
            };
            let owned = OwnedPlan::new(&layer.profile.view().expect("valid"), config).expect("fits");
            let (codes, scales) = layer.sketch(&owned.view());
            let sketch = LayerSketch::new(&codes, &scales, config.precision, half, 2, layer.capacity).expect("fits");
            let mut out = vec![0.0; layer.queries.len()];
            let mut fasa = Ranked::new("fasa", Fasa::new(owned.view()), config.guarantees);
            let mut oracle = Ranked::new("oracle", Oracle { scope: Scope::QueryHead }, config.guarantees);
            let mine = policy_decode(0, &layer.queries, &layer.cache(), Some(&sketch), &mut fasa, budget, &mut out).expect("shapes");
            let theirs = policy_decode(0, &layer.queries, &layer.cache(), None, &mut oracle, budget, &mut out).expect("shapes");
            prop_assert_eq!(mine, theirs);
        }
    }

    #[test]
    fn long_contexts_are_split_over_threads() {
        let layer = Layer::random(1, 2, 8, 9000, Scope::KvHead, 5);
        let mut out = vec![0.0; 16];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads");
        pool.install(|| dense_decode(&layer.queries, &layer.cache(), &mut out)).expect("shapes");
        assert_near(&out, &layer.naive(|_| None), 1e-5);
    }

    #[test]
    fn full_keeps_everything_and_bad_shapes_are_refused() {
        let layer = Layer::random(2, 2, 8, 20, Scope::KvHead, 9);
        let (mut out, mut dense) = (vec![0.0; 32], vec![0.0; 32]);
        let selected = policy_decode(0, &layer.queries, &layer.cache(), None, &mut Full, 3, &mut out).expect("shapes");
        dense_decode(&layer.queries, &layer.cache(), &mut dense).expect("shapes");
        assert_eq!(selected[1].kept, 20);
        assert_near(&out, &dense, 1e-6);
        assert!(dense_decode(&layer.queries[..31], &layer.cache(), &mut dense[..31]).is_err());
        assert!(dense_decode(&layer.queries, &layer.cache(), &mut dense[..16]).is_err());
        assert!(policy_decode(0, &layer.queries, &layer.cache(), None, &mut Full, 0, &mut out).is_err());
        assert!(LayerCache::new(&layer.keys, &layer.values, 2, 23, 8, 24).is_err());
        assert!(LayerCache::new(&layer.keys, &layer.values, 2, 22, 8, 20).is_err());
        assert!(LayerSketch::new(&[0; 10], &[0; 10], Precision::Int4, 3, 2, usize::MAX).is_err());
    }
}
