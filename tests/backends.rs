//! Backends against each other: the same model gives the same logits, dense and sparse, and attends to the same tokens.
//!
//! `cargo test --workspace --test backends`

mod fixture;
#[path = "fixture/model.rs"]
mod model;

use fasa_burn::method::Method;
use fasa_burn::model::{Logits, Watch, to_host};
use fasa_burn::ops::Recorder;
use fasa_burn::{Device, Dtype, Error};
use fasa_core::profile::ProfileView;
use fasa_core::{Budget, FasaConfig};
use fasa_cpu::Selected;

const TOLERANCE: f32 = 1e-3;

/// Logits of a prompt and of the steps after it, and the tokens that the steps attended to.
fn run(device: &Device, config: FasaConfig, profile: &str) -> (Vec<f32>, Vec<(usize, Selected)>) {
    let folder = fixture::folder().join("nano");
    let model = model::load_as(&folder, device, Dtype::F32);
    let profile = std::fs::read(folder.join(profile)).expect("a profile");
    let view = ProfileView::parse(&profile).expect("a profile");
    let method = Method::fasa(&view, config, Budget::Tokens(24)).expect("it fits");
    let ids = fixture::Fixture::read(&folder.join("expected.safetensors")).u32("input_ids");
    let prompt: Vec<u32> = ids.iter().cycle().take(150).copied().collect();
    let (mut cache, recorder) = (model.new_cache(1), Recorder::default());
    let logits = model.forward(&prompt, &mut cache, &Method::Dense, Logits::All).expect("runs").expect("logits");
    let mut all = to_host(logits).expect("host");
    for token in &ids[..6] {
        let mut watch = Watch { observer: None, recorder: Some(recorder.clone()) };
        let row = model.forward_watched(&[*token], &mut cache, &method, Logits::Last, &mut watch);
        all.extend(to_host(row.expect("runs").expect("logits")).expect("host"));
    }
    let selected = recorder.lock().expect("not poisoned").clone();
    (all, selected)
}

#[test]
#[allow(deprecated)] // NdArray is deprecated upstream and kept as the second reference
fn ndarray_agrees_with_flex() {
    for (config, profile) in [(FasaConfig::DEFAULT, "fasa-default.profile"), (FasaConfig::PAPER, "fasa-paper.profile")]
    {
        let (flex, flex_tokens) = run(&Device::flex(), config, profile);
        let (ndarray, ndarray_tokens) = run(&Device::ndarray(), config, profile);
        let worst = flex.iter().zip(&ndarray).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < TOLERANCE, "{profile}: a logit differs by {worst}");
        assert_eq!(flex_tokens, ndarray_tokens, "{profile}");
    }
}

/// Families with what the others lack: windows, capped scores, other norms and activations.
#[test]
#[allow(deprecated)] // as above
fn ndarray_agrees_with_flex_on_other_families() {
    for name in ["gemma2", "gemma3", "granite", "mistral-window", "olmo2", "stablelm-parallel"] {
        let folder = fixture::folder().join("families").join(name);
        let ids = fixture::Fixture::read(&folder.join("expected.safetensors")).u32("input_ids");
        let [flex, ndarray] = [Device::flex(), Device::ndarray()].map(|device| {
            let model = model::load_as(&folder, &device, Dtype::F32);
            let (mut cache, (last, prompt)) = (model.new_cache(1), ids.split_last().expect("ids"));
            let logits = model.forward(prompt, &mut cache, &Method::Dense, Logits::All).expect("runs");
            let mut all = to_host(logits.expect("logits")).expect("host");
            let row = model.forward(&[*last], &mut cache, &Method::Dense, Logits::Last).expect("runs");
            all.extend(to_host(row.expect("logits")).expect("host"));
            all
        });
        let worst = flex.iter().zip(&ndarray).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < TOLERANCE, "{name}: a logit differs by {worst}");
    }
}

#[test]
#[allow(deprecated)] // as above
fn what_a_backend_does_not_compute_with_is_refused() {
    let folder = fixture::folder().join("nano");
    let config = fasa_burn::config::ModelConfig::read(&folder).expect("a config");
    let checkpoint = fasa_burn::checkpoint::Checkpoint::open(&folder).expect("weights");
    let refused = |error: Error| {
        let message = error.to_string();
        assert!(["dtype", "f16", "NdArray", "--dtype f32"].iter().all(|part| message.contains(part)), "{message}");
    };
    let device = Device::ndarray();
    let decoder = fasa_burn::model::Decoder::load(config.clone(), &checkpoint, &device, Dtype::F16, &mut |_, _| {});
    refused(decoder.expect_err("no half precision"));
    refused(fasa_burn::cache::KvCache::new(&config, 8, Dtype::F16, &device).expect_err("no half precision"));
    let wide = fasa_burn::model::Decoder::load(config, &checkpoint, &Device::flex(), Dtype::Bf16, &mut |_, _| {});
    let message = wide.expect_err("on GPUs only").to_string();
    assert!(["dtype", "bf16", "--dtype f16", "--device cuda"].iter().all(|part| message.contains(part)), "{message}");
}
