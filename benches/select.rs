//! Time per score of finding the best N of n scores, on one thread.
//!
//! `cargo bench -p fasa-core --bench select`; criterion prints scores per second, 2 Gelem/s are 0.5 ns per score.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fasa_core::select::{scratch_len, top_n};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::hint::black_box;

/// Independent, normally distributed scores (Box-Muller): what attention scores of unrelated tokens look like.
fn normal(n: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(n as u64);
    let mut uniform = || rng.random_range(f32::MIN_POSITIVE..1.0);
    (0..n).map(|_| (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos()).collect()
}

/// Every score beats all before it: the worst order for a selection in one pass.
fn rising(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

fn select(c: &mut Criterion) {
    for (order, make) in [("normal", normal as fn(usize) -> Vec<f32>), ("rising", rising)] {
        let mut group = c.benchmark_group(format!("top-n of {order} scores"));
        for n in [1 << 12, 1 << 15, 1 << 17] {
            let scores = make(n);
            group.throughput(Throughput::Elements(n as u64));
            for best in [64, 256, 2048] {
                // What the documentation recommends, and the least that is allowed.
                for (memory, entries) in [("", 4 * best), (", least scratch", scratch_len(best))] {
                    let (mut scratch, mut out) = (vec![0; entries], vec![0; best]);
                    let id = BenchmarkId::from_parameter(format!("{best} of {n}{memory}"));
                    group.bench_function(id, |b| {
                        b.iter(|| top_n(black_box(&scores), best, &mut scratch, &mut out).expect("buffers fit"))
                    });
                }
            }
        }
        group.finish();
    }
}

criterion_group!(benches, select);
criterion_main!(benches);
