//! The CPU kernels in bytes per second, beside what the machine reads from memory (printed first).
//!
//! `cargo bench -p fasa-cpu --bench kernels`; give a part of a name to run some of them. Shapes are those of Llama 3: 32
//! query heads, 8 KV heads, 128 dimensions, the cache in f16. Bytes are what the method has to read, so a kernel's
//! bytes per second over the machine's is its share of the bound.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fasa_core::config::{ChunkCount, FasaConfig};
use fasa_core::criterion::{CriterionKind, Margin, Observation, Tally};
use fasa_core::policy::OwnedPlan;
use fasa_core::profile::{Model, Profile};
use fasa_core::sketch::{Precision, quantize_row};
use fasa_core::{Pairing, Rows, Scope};
use fasa_cpu::linear::linear;
use fasa_cpu::machine::read_bandwidth;
use fasa_cpu::{LayerCache, LayerSketch, causal_attention, dense_decode, fasa_decode};
use half::f16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::hint::black_box;

/// As in the `fasa` binary.
#[global_allocator]
static ALLOCATOR: fasa_cpu::HugePages = fasa_cpu::HugePages;

const QUERY_HEADS: usize = 32;
const KV_HEADS: usize = 8;
const DIM: usize = 128;
const BUDGET: usize = 256;

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-2.0..2.0)).collect()
}

/// A cache of noise: a million numbers, over and over, at another place for every row.
struct Context {
    keys: Vec<f16>,
    values: Vec<f16>,
    queries: Vec<f32>,
    len: usize,
}

impl Context {
    fn new(len: usize) -> Self {
        let pool: Vec<f16> = noise(1 << 20, 1).into_iter().map(f16::from_f32).collect();
        let rows = |salt: usize| {
            let row = |r: usize| ((r * 7919 + salt) * 31) % (pool.len() - DIM);
            (0..KV_HEADS * len).flat_map(|r| pool[row(r)..row(r) + DIM].iter().copied()).collect::<Vec<f16>>()
        };
        Self { keys: rows(0), values: rows(101), queries: noise(QUERY_HEADS * DIM, 2), len }
    }

    fn cache(&self) -> LayerCache<'_> {
        LayerCache::new(&self.keys[..], &self.values[..], KV_HEADS, self.len, DIM, self.len).expect("shapes")
    }

    fn plan(&self, config: FasaConfig) -> OwnedPlan {
        let model = Model {
            architecture: "llama",
            layers: 1,
            query_heads: QUERY_HEADS as u32,
            kv_heads: KV_HEADS as u32,
            head_dim: DIM as u32,
            rotary_dim: DIM as u32,
            rope_theta: 5e5,
            pairing: Pairing::HalfSplit,
            weights: 0,
            unrotated_layers: &[],
        };
        let chunks = model.chunks().expect("valid");
        let mut tally = Tally::new(CriterionKind::Margin, QUERY_HEADS, DIM / 2);
        let keys = noise(64 * DIM, 3);
        for (head, query) in self.queries.chunks_exact(DIM).enumerate() {
            let step = Observation { query, keys: Rows::contiguous(&keys, DIM).expect("rows"), chunks: &chunks };
            tally.observe(&Margin, head, &step).expect("fits");
        }
        let (scale, centre) = (vec![1.0; KV_HEADS * DIM], vec![0.0; KV_HEADS * DIM]);
        let scope = config.chunk_scope;
        let profile = Profile::new(model, CriterionKind::Margin, 0, scope, &tally, &scale, &centre, "noise");
        OwnedPlan::new(&profile.expect("fits").view().expect("valid"), config).expect("fits")
    }

    fn sketch(&self, plan: &OwnedPlan) -> (Vec<u8>, Vec<u8>) {
        let plan = plan.view();
        let (width, scale_width) =
            (plan.config().precision.row_bytes(plan.chunks()), plan.config().precision.scale_bytes());
        let rows = KV_HEADS * self.len;
        let (mut codes, mut scales) = (vec![0; rows * width], vec![0; rows * scale_width]);
        let mut row = vec![0.0; DIM];
        for (r, key) in self.keys.chunks_exact(DIM).enumerate() {
            row.iter_mut().zip(key).for_each(|(x, k)| *x = k.to_f32());
            let head = plan.head(0, r / self.len).expect("exists");
            let scale = &mut scales[r * scale_width..(r + 1) * scale_width];
            quantize_row(&head, &row, &mut codes[r * width..(r + 1) * width], scale).expect("fits");
        }
        (codes, scales)
    }
}

/// What a row of keys and values takes.
const ROW: u64 = 2 * 2 * DIM as u64;

fn decode(c: &mut Criterion) {
    eprintln!("the machine reads {:.1} GB/s", read_bandwidth(256 << 20, 15) / 1e9);
    let mut group = c.benchmark_group("decode");
    group.sample_size(20);
    for len in [8 << 10, 32 << 10, 128 << 10] {
        let context = Context::new(len);
        let (cache, mut out) = (context.cache(), vec![0.0; QUERY_HEADS * DIM]);
        group.throughput(Throughput::Bytes((KV_HEADS * len) as u64 * ROW));
        group.bench_function(BenchmarkId::new("dense", len), |b| {
            b.iter(|| dense_decode(black_box(&context.queries), &cache, &mut out).expect("shapes"))
        });
        let default = FasaConfig { dense_layers: 0, ..FasaConfig::DEFAULT };
        for (name, config) in [
            ("fasa default", default),
            ("fasa, tokens per query head", FasaConfig { token_scope: Scope::QueryHead, ..default }),
            ("fasa, f16 quarter", FasaConfig { precision: Precision::F16, chunks: ChunkCount::Share(4), ..default }),
            ("fasa, int8 half", FasaConfig { precision: Precision::Int8, ..default }),
        ] {
            let plan = context.plan(config);
            let (codes, scales) = context.sketch(&plan);
            let view = plan.view();
            let sketch =
                LayerSketch::new(&codes, &scales, config.precision, view.chunks(), view.rows(), len).expect("fits");
            let sets = if config.token_scope == Scope::KvHead { KV_HEADS } else { QUERY_HEADS };
            group.throughput(Throughput::Bytes((codes.len() + scales.len()) as u64 + (sets * BUDGET) as u64 * ROW));
            group.bench_function(BenchmarkId::new(name, len), |b| {
                b.iter(|| fasa_decode(0, &context.queries, &cache, &sketch, &view, BUDGET, &mut out).expect("shapes"))
            });
        }
    }
    group.finish();
}

/// 512 tokens read behind 7,680 others; the throughput is in products: 4 * DIM operations per query and key.
fn prefill(c: &mut Criterion) {
    let (len, new) = (8192, 512);
    let context = Context::new(len);
    let (queries, mut out) = (noise(new * QUERY_HEADS * DIM, 4), vec![0.0; new * QUERY_HEADS * DIM]);
    let mut group = c.benchmark_group("prefill");
    group.sample_size(10);
    group.throughput(Throughput::Elements((QUERY_HEADS * new * (len - new / 2) * 4 * DIM) as u64));
    group.bench_function("512 tokens behind 7,680", |b| {
        b.iter(|| causal_attention(black_box(&queries), QUERY_HEADS, &context.cache(), &mut out).expect("shapes"))
    });
    group.finish();
}

fn projection(c: &mut Criterion) {
    let (outputs, inputs) = (14_336, 4096);
    let weights: Vec<f16> = noise(outputs * inputs, 5).into_iter().map(f16::from_f32).collect();
    let (x, mut out) = (noise(inputs, 6), vec![0.0; outputs]);
    let mut group = c.benchmark_group("projection");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(2 * (outputs * inputs) as u64));
    group.bench_function("one token, 4096 to 14336, f16", |b| {
        b.iter(|| linear(black_box(&x), &weights[..], inputs, &mut out).expect("shapes"))
    });
    group.finish();
}

criterion_group!(benches, decode, prefill, projection);
criterion_main!(benches);
