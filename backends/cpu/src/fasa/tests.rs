//! The fast path against the policies and the attention of the core.

use super::*;
use crate::dense_decode;
use crate::policy::policy_decode;
use fasa_core::attend::attend;
use fasa_core::config::{ChunkCount, FasaConfig};
use fasa_core::criterion::{CriterionKind, Margin, Observation, Tally};
use fasa_core::policy::{Fasa, Full, Oracle, OwnedPlan, Ranked};
use fasa_core::profile::{Model, Profile};
use fasa_core::sketch::Precision;
use fasa_core::sketch::quantize_row;
use fasa_core::{Guarantees, Pairing, Rows};
use half::f16;
use proptest::prelude::*;

/// A random layer: cache, queries, a calibrated profile and the sketch that follows from it.
pub(crate) struct Layer {
    pub(crate) kv_heads: usize,
    pub(crate) group: usize,
    pub(crate) dim: usize,
    pub(crate) len: usize,
    pub(crate) capacity: usize,
    pub(crate) queries: Vec<f32>,
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
    /// Keys and values in half precision, which then are what the others say as well.
    pub(crate) halves: Option<[Vec<f16>; 2]>,
    pub(crate) profile: Profile,
}

pub(crate) fn noise(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

impl Layer {
    pub(crate) fn random(kv_heads: usize, group: usize, dim: usize, len: usize, scope: Scope, seed: u64) -> Self {
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
            unrotated_layers: &[],
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
        let profile = profile.expect("fits");
        Self { kv_heads, group, dim, len, capacity, queries, keys, values, halves: None, profile }
    }

    /// The same with a cache in f16, if wanted.
    pub(crate) fn rounded(mut self, wanted: bool) -> Self {
        if wanted {
            let halves = [&self.keys, &self.values].map(|x| x.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>());
            [self.keys, self.values] = halves.each_ref().map(|x| x.iter().map(|x| x.to_f32()).collect());
            self.halves = Some(halves);
        }
        self
    }

    pub(crate) fn cache(&self) -> LayerCache<'_> {
        if let Some([keys, values]) = &self.halves {
            return LayerCache::new(&keys[..], &values[..], self.kv_heads, self.capacity, self.dim, self.len)
                .expect("fits");
        }
        LayerCache::new(&self.keys[..], &self.values[..], self.kv_heads, self.capacity, self.dim, self.len)
            .expect("fits")
    }

    pub(crate) fn sketch(&self, plan: &Plan<'_>) -> (Vec<u8>, Vec<u8>) {
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
        let dim = self.dim;
        let mut out = vec![0.0; self.queries.len()];
        for (head, (query, out)) in self.queries.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
            let rows = |all: &'_ [f32]| all[head / self.group * self.capacity * dim..][..self.len * dim].to_vec();
            let (keys, values) = (rows(&self.keys), rows(&self.values));
            let keys = Rows::contiguous(&keys, dim).expect("divides");
            let values = Rows::contiguous(&values, dim).expect("divides");
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

/// [`fasa_decode`] attends to the tokens it selects, and selects those of the policy in the core.
fn assert_as_in_the_core(layer: &Layer, config: FasaConfig, budget: usize) -> Result<(), TestCaseError> {
    let (kv_heads, group, len) = (layer.kv_heads, layer.group, layer.len);
    let owned = OwnedPlan::new(&layer.profile.view().expect("valid"), config).expect("fits");
    let plan = owned.view();
    let (codes, scales) = layer.sketch(&plan);
    let sketch =
        LayerSketch::new(&codes, &scales, config.precision, plan.chunks(), plan.rows(), layer.capacity).expect("fits");
    let mut out = vec![f32::NAN; layer.queries.len()];
    let selected = fasa_decode(0, &layer.queries, &layer.cache(), &sketch, &plan, budget, &mut out).expect("shapes");
    let lists: Vec<&[u32]> = selected.lists().collect();
    prop_assert!(lists.iter().all(|l| l.len() == budget.min(len)));

    // The attention is that of the selected rows.
    let heads = kv_heads * group;
    let set = |head: usize| lists[head * lists.len() / heads];
    assert_near(&out, &layer.naive(|head| Some(set(head).to_vec())), 1e-5);

    // The selected rows are those of the reference, but for one at the end of a list whose score rounding cannot tell
    // from that of the next: the kernels sum in another order.
    let mut policy = Ranked::new("fasa", Fasa::new(plan), config.guarantees);
    let mut reference_out = vec![0.0; out.len()];
    let reference =
        policy_decode(0, &layer.queries, &layer.cache(), Some(&sketch), &mut policy, budget, &mut reference_out)
            .expect("shapes");
    if budget >= len {
        return Ok(()); // everything, in one list for all heads
    }
    prop_assert_eq!(reference.lists().len(), lists.len());
    for (mine, theirs) in lists.iter().zip(reference.lists()) {
        prop_assert_eq!(mine.len(), theirs.len());
        let differing = mine.iter().filter(|p| !theirs.contains(p)).count();
        prop_assert!(differing <= 1, "{mine:?} {theirs:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn dense_equals_the_naive_version(
        kv_heads in 1usize..4, group in prop::sample::select(vec![1usize, 2, 3, 4, 8]), half in 1usize..129, len in 1usize..300, seed in any::<u32>(), rounded in any::<bool>(),
    ) {
        let layer = Layer::random(kv_heads, group, 2 * half, len, Scope::KvHead, seed.into()).rounded(rounded);
        let mut out = vec![f32::NAN; layer.queries.len()];
        dense_decode(&layer.queries, &layer.cache(), &mut out).expect("shapes");
        assert_near(&out, &layer.naive(|_| None), 1e-5);
    }

    #[test]
    fn fasa_equals_the_policy_of_the_core(
        kv_heads in 1usize..4, group in prop::sample::select(vec![1usize, 2, 3, 4, 8]),
        // The sizes that have kernels of their own come as often as all others together.
        half in prop_oneof![1usize..40, prop::sample::select(vec![16usize, 32, 64, 128])], len in 2usize..700,
        pick in 0usize..4, share in 1u16..4, chunk_scope in scope(), token_scope in scope(),
        budget in 1usize..90, sinks in 0u32..5, recent in 0u32..9, seed in any::<u32>(), rounded in any::<bool>(),
    ) {
        let layer = Layer::random(kv_heads, group, 2 * half, len, chunk_scope, seed.into()).rounded(rounded);
        let config = FasaConfig {
            precision: Precision::ALL[pick], chunks: ChunkCount::Share(share), chunk_scope, token_scope,
            guarantees: Guarantees { sinks, recent }, dense_layers: 0, ..FasaConfig::DEFAULT
        };
        assert_as_in_the_core(&layer, config, budget)?;
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn long_contexts_are_looked_at_twice(
        kv_heads in 1usize..3, group in prop::sample::select(vec![1usize, 3, 4, 8]), half in prop::sample::select(vec![7usize, 16, 32, 64]),
        len in 600usize..10_000, pick in 0usize..4, chunk_scope in scope(), token_scope in scope(), budget in 1usize..40,
        sinks in 0u32..40, recent in 0u32..40, threads in 1usize..6, seed in any::<u32>(),
    ) {
        let layer = Layer::random(kv_heads, group, 2 * half, len, chunk_scope, seed.into());
        let config = FasaConfig {
            precision: Precision::ALL[pick], chunks: ChunkCount::Share(2), chunk_scope, token_scope,
            guarantees: Guarantees { sinks, recent }, dense_layers: 0, ..FasaConfig::DEFAULT
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| assert_as_in_the_core(&layer, config, budget))?;
    }
}

#[test]
fn scores_that_are_no_numbers_are_chosen_last() {
    let mut layer = Layer::random(1, 2, 32, 20_000, Scope::KvHead, 7);
    // Rows that overflow in the sketch's score: everything but a few tokens.
    for t in (0..20_000).filter(|t| t % 100 != 7) {
        layer.keys[t * 32..(t + 1) * 32].fill(f32::NAN);
    }
    for token_scope in [Scope::KvHead, Scope::QueryHead] {
        let config = FasaConfig { precision: Precision::F32, token_scope, dense_layers: 0, ..FasaConfig::DEFAULT };
        let owned = OwnedPlan::new(&layer.profile.view().expect("valid"), config).expect("fits");
        let (codes, scales) = layer.sketch(&owned.view());
        let sketch = LayerSketch::new(&codes, &scales, config.precision, owned.view().chunks(), 1, layer.capacity)
            .expect("fits");
        let mut out = vec![0.0; layer.queries.len()];
        let selected =
            fasa_decode(0, &layer.queries, &layer.cache(), &sketch, &owned.view(), 40, &mut out).expect("shapes");
        for list in selected.lists() {
            assert!(list.windows(2).all(|w| w[0] < w[1]));
            let forced = list.iter().filter(|p| **p < 4 || **p >= 19_984).count();
            assert_eq!((list.len(), forced), (40, 20));
            assert!(list[4..24].iter().all(|p| p % 100 == 7), "{list:?}");
        }
    }
}

#[test]
fn scores_may_rise_beyond_what_weights_hold() {
    for (group, seed) in [(1, 1), (4, 2), (6, 3), (8, 4)] {
        let mut layer = Layer::random(1, group, 32, 4000, Scope::KvHead, seed);
        // Later spans score far above what the first ones are weighed with.
        for (t, key) in layer.keys.chunks_exact_mut(32).enumerate() {
            key.iter_mut().for_each(|x| *x *= (1 + t / 512 * 4) as f32);
        }
        for precision in [Precision::F32, Precision::Int8] {
            let config = FasaConfig { precision, dense_layers: 0, ..FasaConfig::DEFAULT };
            assert_as_in_the_core(&layer, config, 24).expect("as in the core");
        }
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
    assert!(selected.lists().all(|l| l.len() == 20));
    assert_near(&out, &dense, 1e-6);
    assert!(dense_decode(&layer.queries[..31], &layer.cache(), &mut dense[..31]).is_err());
    assert!(dense_decode(&layer.queries, &layer.cache(), &mut dense[..16]).is_err());
    assert!(policy_decode(0, &layer.queries, &layer.cache(), None, &mut Full, 0, &mut out).is_err());
    assert!(LayerCache::new(&layer.keys[..], &layer.values[..], 2, 23, 8, 24).is_err());
    assert!(LayerCache::new(&layer.keys[..], &layer.values[..], 2, 22, 8, 20).is_err());
    assert!(LayerSketch::new(&[0; 10], &[0; 10], Precision::Int4, 3, 2, usize::MAX).is_err());
}
