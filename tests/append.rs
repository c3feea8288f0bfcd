//! A decode step writes its key, value and sketch row in place: what it allocates does not depend on how large the cache is.

mod fixture;
#[path = "fixture/model.rs"]
mod model;

use fasa_burn::method::Method;
use fasa_burn::model::Logits;
use fasa_burn::{Device, Dtype};
use fasa_core::profile::ProfileView;
use fasa_core::{Budget, FasaConfig};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn a_step_copies_no_cache() {
    let folder = fixture::folder().join("nano");
    let profile = std::fs::read(folder.join("fasa-default.profile")).expect("a profile");
    let view = ProfileView::parse(&profile).expect("a profile");
    let fasa = Method::fasa(&view, FasaConfig::DEFAULT, Budget::Tokens(32)).expect("it fits");
    let prompt: Vec<u32> = (0..100).map(|i| 5 + i * 7 % 4000).collect();

    for (dtype, method) in [Dtype::F32, Dtype::F16].into_iter().flat_map(|d| [(d, Method::Dense), (d, fasa.clone())]) {
        let model = model::load_as(&folder, &Device::flex(), dtype);
        let allocated = |capacity: usize| {
            let mut cache = model.new_cache(capacity);
            model.forward(&prompt, &mut cache, &Method::Dense, Logits::None).expect("runs");
            // The first steps make the sketch and each thread's buffers.
            for _ in 0..16 {
                model.forward(&[7], &mut cache, &method, Logits::Last).expect("runs");
            }
            let region = Region::new(ALLOCATOR);
            model.forward(&[9], &mut cache, &method, Logits::Last).expect("runs");
            region.change().bytes_allocated
        };
        let (small, large) = (allocated(128), allocated(64 * 1024));
        // One layer's keys alone take 16 MB or more in the large cache; buffers of a few threads may come on top of a step's own.
        assert!(
            large < small + 256 * 1024,
            "{dtype} {method:?}: {small} bytes in a small cache, {large} in a large one"
        );
    }
}
