//! What must hold exactly: a sketch that loses nothing chooses as the oracle does, a budget that covers the context is
//! dense attention.

mod fixture;
#[path = "fixture/model.rs"]
mod model;

use fasa_burn::cache::KvCache;
use fasa_burn::evicting::Evicting;
use fasa_burn::method::Method;
use fasa_burn::model::{Decoder, Logits, Observer, Watch, to_host};
use fasa_burn::ops::Recorder;
use fasa_burn::trace::{self, Trace};
use fasa_burn::{Device, Dtype};
use fasa_core::config::ChunkCount;
use fasa_core::policy::{EvictingPolicy, H2o, Oracle, RKv, Ranked, SnapKv, Streaming, Tova};
use fasa_core::profile::ProfileView;
use fasa_core::sketch::Precision;
use fasa_core::{Budget, FasaConfig, Scope};
use fasa_cpu::Selected;

const BUDGET: Budget = Budget::Tokens(48);

const BOTH: [Dtype; 2] = [Dtype::F32, Dtype::F16];

struct Nano {
    model: Decoder,
    profile: Vec<u8>,
    prompt: Vec<u32>,
    steps: Vec<u32>,
}

/// Queries of one step, layer by layer: `[query_heads, head_dim]`.
#[derive(Default)]
struct Queries(Vec<Vec<f32>>);

impl Observer for Queries {
    fn queries(&mut self, _layer: usize, _position: usize, queries: &burn::tensor::Tensor<3>) {
        self.0.push(to_host(queries.clone()).expect("host"));
    }
}

impl Nano {
    fn load(dtype: Dtype) -> Self {
        let folder = fixture::folder().join("nano");
        // The reference ids are ordinary text; repeated, they make a longer one whose end asks for its beginning.
        let ids = fixture::Fixture::read(&folder.join("expected.safetensors")).u32("input_ids");
        Self {
            model: model::load_as(&folder, &Device::flex(), dtype),
            profile: std::fs::read(folder.join("fasa-default.profile")).expect("a profile"),
            prompt: ids.iter().cycle().take(300).copied().collect(),
            steps: ids.iter().take(24).copied().collect(),
        }
    }

    fn fasa(&self, config: FasaConfig, budget: Budget) -> Method {
        Method::fasa(&ProfileView::parse(&self.profile).expect("a profile"), config, budget).expect("it fits")
    }

    fn all_chunks(&self, precision: Precision) -> Method {
        let chunks = ChunkCount::Share(1);
        self.fasa(FasaConfig { precision, chunks, token_scope: Scope::QueryHead, ..FasaConfig::DEFAULT }, BUDGET)
    }

    fn oracle(&self) -> Method {
        let config = FasaConfig::DEFAULT;
        let policy = Ranked::new("oracle", Oracle { scope: Scope::QueryHead }, config.guarantees);
        Method::policy(policy, BUDGET, config.dense_layers).expect("a budget")
    }

    fn read_prompt(&self) -> KvCache {
        let mut cache = self.model.new_cache(self.prompt.len() + self.steps.len());
        self.model.forward(&self.prompt, &mut cache, &Method::Dense, Logits::None).expect("runs");
        cache
    }

    /// Logits of every step, and the tokens each layer attended to.
    fn run(&self, method: &Method) -> (Vec<f32>, Vec<(usize, Selected)>) {
        let (mut cache, recorder) = (self.read_prompt(), Recorder::default());
        let mut logits = Vec::new();
        for token in &self.steps {
            let mut watch = Watch { observer: None, recorder: Some(recorder.clone()) };
            let row = self.model.forward_watched(&[*token], &mut cache, method, Logits::Last, &mut watch);
            logits.extend(to_host(row.expect("runs").expect("logits")).expect("host"));
        }
        let selected = recorder.lock().expect("not poisoned").clone();
        (logits, selected)
    }
}

/// Positions per layer and query head, whatever the grouping of lists.
fn per_head(selected: &[(usize, Selected)], heads: usize) -> Vec<(usize, Vec<u32>)> {
    let lists = selected.iter().flat_map(|(layer, s)| s.lists().map(|list| (*layer, list.to_vec())));
    let lists: Vec<_> = lists.collect();
    assert_eq!(lists.len() % heads, 0);
    lists
}

#[test]
fn an_f32_sketch_of_all_chunks_is_the_oracle() {
    for dtype in BOTH {
        an_f32_sketch_of_all_chunks_is_the_oracle_in(Nano::load(dtype));
    }
}

fn an_f32_sketch_of_all_chunks_is_the_oracle_in(nano: Nano) {
    let heads = nano.model.config().num_attention_heads;
    let (fasa_logits, fasa) = nano.run(&nano.all_chunks(Precision::F32));
    let (oracle_logits, oracle) = nano.run(&nano.oracle());
    let (fasa, oracle) = (per_head(&fasa, heads), per_head(&oracle, heads));
    assert_eq!(fasa.len(), nano.steps.len() * 5 * heads); // five sparse layers
    assert!(fasa == oracle, "the same tokens in every layer, head and step");
    assert_eq!(fasa_logits, oracle_logits);
}

#[test]
fn an_f16_sketch_of_all_chunks_differs_by_rounding_alone() {
    for dtype in BOTH {
        an_f16_sketch_of_all_chunks_differs_by_rounding_alone_in(Nano::load(dtype));
    }
}

fn an_f16_sketch_of_all_chunks_differs_by_rounding_alone_in(nano: Nano) {
    let config = nano.model.config().clone();
    let (heads, dim, group) = (config.num_attention_heads, config.head_dim, config.num_key_value_groups());
    // One step: after the first differing token the hidden states part, and with them what is to be compared.
    let mut cache = nano.read_prompt();
    let seen = nano.prompt.len() + 1;
    let mut compared = 0;
    for token in &nano.steps {
        let mut step = |method: &Method| {
            cache.truncate(seen - 1);
            let (recorder, mut queries) = (Recorder::default(), Queries::default());
            let mut watch = Watch { observer: Some(&mut queries), recorder: Some(recorder.clone()) };
            nano.model.forward_watched(&[*token], &mut cache, method, Logits::None, &mut watch).expect("runs");
            let keys: Vec<f32> = to_host(cache.rows(1).expect("rows").0).expect("host");
            let selected = recorder.lock().expect("not poisoned").clone();
            (per_head(&selected, heads), queries.0, keys)
        };
        let (half, _, _) = step(&nano.all_chunks(Precision::F16));
        let (oracle, queries, keys) = step(&nano.oracle());
        // Layer 1 is the first sparse one: both methods see the same queries and keys there.
        for head in 0..heads {
            let query = &queries[1][head * dim..(head + 1) * dim];
            let key = |t: u32| &keys[(head / group * seen + t as usize) * dim..][..dim];
            let score = |t: u32| query.iter().zip(key(t)).map(|(q, k)| f64::from(q * k)).sum::<f64>();
            let rounding =
                |t: u32| query.iter().zip(key(t)).map(|(q, k)| f64::from((q * k).abs())).sum::<f64>() / 1024.0;
            let ((layer, mine), (_, theirs)) = (&half[head], &oracle[head]);
            assert_eq!(*layer, 1);
            let only = |a: &[u32], b: &[u32]| a.iter().copied().filter(|t| !b.contains(t)).collect::<Vec<_>>();
            for (kept, lost) in only(mine, theirs).into_iter().zip(only(theirs, mine)) {
                let gap = (score(kept) - score(lost)).abs();
                assert!(gap <= rounding(kept) + rounding(lost), "head {head}: {kept} kept for {lost}, apart by {gap}");
            }
            compared += 1;
        }
    }
    assert_eq!(compared, nano.steps.len() * heads);
}

#[test]
fn a_covering_budget_is_dense_to_the_bit() {
    for dtype in BOTH {
        a_covering_budget_is_dense_to_the_bit_in(Nano::load(dtype));
    }
}

fn a_covering_budget_is_dense_to_the_bit_in(nano: Nano) {
    let (dense, _) = nano.run(&Method::Dense);
    let all = Budget::Tokens((nano.prompt.len() + nano.steps.len()) as u32);
    for budget in [all, Budget::Tokens(u32::MAX), Budget::Ratio(1.0)] {
        for precision in Precision::ALL {
            let (logits, _) = nano.run(&nano.fasa(FasaConfig { precision, ..FasaConfig::DEFAULT }, budget));
            assert_eq!(logits, dense, "{budget:?} {precision:?}");
        }
    }
    let (sparse, _) = nano.run(&nano.fasa(FasaConfig::DEFAULT, Budget::Tokens(8)));
    assert_ne!(sparse, dense, "a small budget is something else");
}

/// A method that evicts, over the prompt that `trace` was taken from.
fn evicting<P: EvictingPolicy + Clone + Send + 'static>(nano: &Nano, policy: P, scope: Scope, trace: &Trace) -> Method {
    let config = nano.model.config();
    let (kv_heads, group) = (config.num_key_value_heads, config.num_key_value_groups());
    let read = Evicting::read(&policy, scope, kv_heads, group, 1, trace).expect("reads");
    let within = read.within(BUDGET.tokens(usize::MAX), group, trace).expect("a budget");
    assert!(read.within(1, group, trace).is_err(), "no room for a row beside the new one");
    Method::policy(within, BUDGET, 1).expect("a budget")
}

fn trace_of(nano: &Nano) -> Trace {
    let mut cache = nano.model.new_cache(nano.prompt.len());
    let mut queries = trace::Queries::new(nano.model.config().num_hidden_layers, 0);
    let mut watch = Watch { observer: Some(&mut queries), recorder: None };
    nano.model.forward_watched(&nano.prompt, &mut cache, &Method::Dense, Logits::None, &mut watch).expect("runs");
    queries.finish(&cache).expect("on the host")
}

/// StreamingLLM selects and evicts the same sets: run either way, every number is the same.
#[test]
fn evicting_over_a_kept_cache_is_selecting_where_the_sets_are_the_same() {
    let nano = Nano::load(Dtype::F16);
    let trace = trace_of(&nano);
    let selecting = nano.run(&Method::policy(Streaming::default(), BUDGET, 1).expect("a budget"));
    assert_eq!(nano.run(&evicting(&nano, Streaming::default(), Scope::KvHead, &trace)), selecting);
}

#[test]
fn evicted_rows_never_come_back_and_budgets_hold() {
    let nano = Nano::load(Dtype::F16);
    let trace = trace_of(&nano);
    for scope in [Scope::KvHead, Scope::QueryHead] {
        let methods = [
            ("snapkv", evicting(&nano, SnapKv::default(), scope, &trace)),
            ("h2o", evicting(&nano, H2o::default(), scope, &trace)),
            ("tova", evicting(&nano, Tova::default(), scope, &trace)),
            ("rkv", evicting(&nano, RKv::default().with_buffer(4), scope, &trace)),
        ];
        for (name, method) in methods {
            let (_, selected) = nano.run(&method);
            let heads = scope.rows(nano.model.config().num_attention_heads, nano.model.config().num_key_value_heads);
            let lists = per_head(&selected, heads);
            let per_step = 5 * heads;
            assert_eq!(lists.len(), nano.steps.len() * per_step, "{name}");
            for (at, (_, list)) in lists.iter().enumerate() {
                let (step, place) = (at / per_step, at % per_step);
                let now = (nano.prompt.len() + step) as u32;
                assert_eq!(list.last(), Some(&now), "{name}: the current token is attended to");
                let most = match name {
                    "snapkv" => 48 + step,
                    "rkv" => 48 + 4,
                    _ => 48,
                };
                assert!(list.len() <= most && list.len() >= 48, "{name} {step}: {}", list.len());
                if step > 0 {
                    let before = &lists[(step - 1) * per_step + place].1;
                    let again = |t: &u32| *t == now || before.contains(t);
                    assert!(list.iter().all(again), "{name}: a dropped row came back at step {step}");
                }
            }
        }
    }
}
