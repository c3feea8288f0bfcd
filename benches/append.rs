//! Time of one append to the KV cache, over the length of what is there. It must not grow.
//!
//! `cargo bench -p fasa-burn --bench append`

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use fasa_burn::cache::KvCache;
use fasa_burn::config::ModelConfig;
use fasa_burn::{Device, Dtype};
use std::hint::black_box;
use std::path::Path;

fn append(c: &mut Criterion) {
    let config = include_bytes!("../fixtures/nano/config.json");
    let config = ModelConfig::from_json(config, Path::new("config.json")).expect("valid");
    let device = Device::flex();
    let mut group = c.benchmark_group("append one token, all layers");
    for len in [1 << 12, 1 << 15, 1 << 17] {
        let mut cache = KvCache::new(&config, len + 1, Dtype::F16, &device).expect("flex computes in f16");
        cache.append_zeros(len).expect("memory");
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter(|| {
                cache.append_zeros(1).expect("memory");
                cache.truncate(len);
                black_box(cache.len())
            })
        });
    }
    group.finish();
}

criterion_group!(benches, append);
criterion_main!(benches);
