//! The candle decoder against `fasa-burn`: the same tokens chosen, the same logits.

#[path = "../../../tests/fixture/mod.rs"]
mod fixture;
#[path = "../../../tests/fixture/model.rs"]
mod model;

use candle_core::Device;
use fasa_burn::method::Method;
use fasa_burn::model::{Logits, Watch, to_host};
use fasa_burn::ops::Recorder;
use fasa_core::profile::ProfileView;
use fasa_core::{Budget, FasaConfig};
use fasa_example_candle::Decoder;
use fasa_example_candle::cache::KvCache;
use fasa_example_candle::fasa::{Chosen, Fasa};

const BUDGET: Budget = Budget::Tokens(32);
/// Two decoders round differently, and a choice that is close enough falls either way. On a prompt of this length none of
/// these steps has one: noise of 2e-5 on the input of every layer, ten times what rounding does, changes no choice.
const PROMPT: usize = 208;
const STEPS: usize = 8;

fn worst(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max)
}

#[test]
fn every_step_reads_the_same_tokens() {
    let folder = fixture::folder().join("nano");
    let ids = fixture::Fixture::read(&folder.join("expected.safetensors")).u32("input_ids");
    let tokens: Vec<u32> = ids.iter().cycle().take(PROMPT + STEPS).copied().collect();
    let (prompt, steps) = tokens.split_at(PROMPT);
    let bytes = std::fs::read(folder.join("fasa-default.profile")).expect("a profile");
    let profile = ProfileView::parse(&bytes).expect("a profile");

    let burn = model::load(&folder);
    let candle = Decoder::load(&folder, &Device::Cpu).expect("a model");
    profile.model().matches(&candle.fingerprint()).expect("the profile belongs to the model");

    let method = Method::fasa(&profile, FasaConfig::DEFAULT, BUDGET).expect("fits");
    let mut fasa = Fasa::new(&profile, FasaConfig::DEFAULT, BUDGET).expect("fits");
    let mut burn_cache = burn.new_cache(tokens.len());
    let mut candle_cache = KvCache::new(candle.config(), tokens.len(), &Device::Cpu).expect("room");

    let want = burn.forward(prompt, &mut burn_cache, &method, Logits::Last).expect("runs").expect("logits");
    let got = candle.forward(prompt, &mut candle_cache, Some(&mut fasa)).expect("runs");
    let (got, want) = (got.to_vec1::<f32>().expect("host"), to_host(want).expect("host"));
    assert!(worst(&got, &want) < 1e-3, "prefill: logits differ by {}", worst(&got, &want));
    assert!(fasa.take_chosen().is_empty(), "a prefill is dense");

    for (i, token) in steps.iter().enumerate() {
        let recorder = Recorder::default();
        let mut watch = Watch { observer: None, recorder: Some(recorder.clone()) };
        let want = burn.forward_watched(&[*token], &mut burn_cache, &method, Logits::Last, &mut watch);
        let want = to_host(want.expect("runs").expect("logits")).expect("host");
        let got = candle.forward(&[*token], &mut candle_cache, Some(&mut fasa)).expect("runs");
        let got = got.to_vec1::<f32>().expect("host");

        let recorded = recorder.lock().expect("not poisoned").clone();
        let theirs: Vec<Chosen> = recorded
            .iter()
            .flat_map(|(layer, selected)| {
                let list =
                    |(kv_head, list): (usize, &[u32])| Chosen { layer: *layer, kv_head, positions: list.to_vec() };
                selected.lists().enumerate().map(list).collect::<Vec<_>>()
            })
            .collect();
        let config = candle.config();
        assert_eq!(theirs.len(), (config.num_hidden_layers - 1) * config.num_key_value_heads);
        assert_eq!(fasa.take_chosen(), theirs, "step {i}");
        assert!(worst(&got, &want) < 1e-3, "step {i}: logits differ by {}", worst(&got, &want));
    }
}
