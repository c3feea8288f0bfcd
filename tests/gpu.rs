//! A GPU, or software that plays one, against the processor: the same logits, dense and sparse, from the same tokens; the
//! same greedy text; and what a GPU cannot do is refused.
//!
//! `cargo test -p fasa-cli --features wgpu --test gpu`; on another device, `FASA_TEST_DEVICE=cuda` with that feature. Without
//! a device the tests say so and pass.

mod fixture;
#[path = "fixture/gpu.rs"]
mod gpu;
#[path = "fixture/model.rs"]
mod model;
#[path = "fixture/nano.rs"]
mod nano;

use fasa_burn::method::Method;
use fasa_burn::model::{Decoder, Logits, Watch, to_host};
use fasa_burn::ops::Recorder;
use fasa_burn::{Device, Dtype};
use fasa_core::policy::{Oracle, Ranked};
use fasa_core::{Budget, FasaConfig, Guarantees, Scope};
use gpu::{device, json, name, refused};
use nano::{fasa, options, text};

fn method(config: FasaConfig, profile: &str, budget: u32) -> Method {
    fasa(profile, config, Budget::Tokens(budget))
}

fn load(device: &Device, dtype: Dtype) -> Decoder {
    model::load_as(&fixture::folder().join("nano"), device, dtype)
}

fn methods() -> [(&'static str, Method); 5] {
    let int8 = FasaConfig { precision: fasa_core::sketch::Precision::Int8, ..FasaConfig::DEFAULT };
    let single = FasaConfig { precision: fasa_core::sketch::Precision::F32, ..FasaConfig::PAPER };
    [
        ("dense", Method::Dense),
        ("default", method(FasaConfig::DEFAULT, "fasa-default.profile", 48)),
        ("int8", method(int8, "fasa-default.profile", 48)),
        ("paper", method(FasaConfig::PAPER, "fasa-paper.profile", 48)),
        ("f32", method(single, "fasa-paper.profile", 48)),
    ]
}

/// Logits of a prompt in two chunks, one of them few tokens, and of steps after it; the cache grows on the way. And what the
/// steps attended to.
fn run(model: &Decoder, method: &Method) -> (Vec<f32>, Recorder) {
    let prompt = text(609);
    let (mut cache, recorder) = (model.new_cache(1), Recorder::default());
    model.forward(&prompt[..601], &mut cache, &Method::Dense, Logits::None).expect("runs");
    let logits = model.forward(&prompt[601..], &mut cache, &Method::Dense, Logits::All).expect("runs");
    let mut all = to_host(logits.expect("logits")).expect("host");
    for token in &prompt[..4] {
        let mut watch = Watch { observer: None, recorder: Some(recorder.clone()) };
        let row = model.forward_watched(&[*token], &mut cache, method, Logits::Last, &mut watch);
        all.extend(to_host(row.expect("runs").expect("logits")).expect("host"));
    }
    (all, recorder)
}

#[test]
fn logits_and_chosen_tokens_are_those_of_the_processor() {
    let Some(device) = device() else { return };
    let (there, here) = (load(&device, Dtype::F32), load(&Device::flex(), Dtype::F32));
    for (name, method) in methods() {
        let ((there, there_chosen), (here, here_chosen)) = (run(&there, &method), run(&here, &method));
        assert_eq!(there.len(), here.len());
        let worst = there.iter().zip(&here).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-3, "{name}: a logit differs by {worst}");
        let (there, here) = (there_chosen.lock().expect("whole"), here_chosen.lock().expect("whole"));
        assert_eq!(*there, *here, "{name}");
        assert_eq!(there.is_empty(), name == "dense");
    }
}

#[test]
fn greedy_tokens_are_those_of_the_processor() {
    let Some(device) = device() else { return };
    let (there, here) = (load(&device, Dtype::F32), load(&Device::flex(), Dtype::F32));
    for (name, method) in methods().into_iter().filter(|(name, _)| ["dense", "default", "paper"].contains(name)) {
        let write = |model: &Decoder| {
            let outcome = model.generate(&text(700), &mut model.new_cache(8), &options(&method, 12), &mut |_| true);
            outcome.expect("it writes").tokens
        };
        assert_eq!(write(&there), write(&here), "{name}");
    }
}

/// 16 bits where the device has them: near the processor's logits, and refused by name elsewhere.
#[test]
fn half_precision() {
    let Some(device) = device() else { return };
    // Products of the prompt round to 8 bits of mantissa in bf16, to 11 in f16.
    for (dtype, of_the_processor, most) in [(Dtype::F16, Dtype::F16, 0.2), (Dtype::Bf16, Dtype::F32, 1.0)] {
        if !dtype.runs_on(&device) {
            let error = fasa_burn::cache::KvCache::new(load(&device, Dtype::F32).config(), 8, dtype, &device);
            let message = error.expect_err("not on this device").to_string();
            assert!(message.contains(dtype.name()) && message.contains("--dtype f32"), "{message}");
            continue;
        }
        let (there, here) = (load(&device, dtype), load(&Device::flex(), of_the_processor));
        for (name, method) in methods().into_iter().take(2) {
            let (there, here) = (run(&there, &method).0, run(&here, &method).0);
            let worst = there.iter().zip(&here).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < most, "{dtype}, {name}: a logit differs by {worst}");
        }
    }
}

/// Steps that are recorded and run again, each way to attend in turns, over a bound of their recording, after going back, and
/// in a cache that grows: logits of steps that are watched, which are never recorded.
#[test]
fn steps_that_run_again_are_ordinary_steps() {
    let Some(device) = device() else { return };
    let model = load(&device, Dtype::F32);
    let (prompt, ways) = (text(400), [Method::Dense, method(FasaConfig::DEFAULT, "fasa-default.profile", 48)]);
    let run = |watched: bool| {
        let mut cache = model.new_cache(420);
        model.forward(&prompt, &mut cache, &Method::Dense, Logits::None).expect("runs");
        let mut all = Vec::new();
        let mut step = |cache: &mut fasa_burn::cache::KvCache, method: &Method, token: u32| {
            let recorder = watched.then(Recorder::default);
            let logits =
                model.forward_watched(&[token], cache, method, Logits::Last, &mut Watch { observer: None, recorder });
            all.push(to_host(logits.expect("runs").expect("logits")).expect("host"));
        };
        for i in 0..30 {
            step(&mut cache, &ways[usize::from(i > 4)], prompt[i]);
        }
        for i in 0..8 {
            cache.truncate(410);
            step(&mut cache, &ways[i % 2], prompt[i + 50]);
        }
        model.forward(&prompt[..3], &mut cache, &Method::Dense, Logits::None).expect("runs");
        (0..4).for_each(|i| step(&mut cache, &ways[1], prompt[i]));
        all
    };
    for (i, (again, ordinary)) in run(false).iter().zip(run(true)).enumerate() {
        let worst = again.iter().zip(&ordinary).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "step {i}: a logit differs by {worst}");
    }
}

#[test]
fn methods_that_decide_on_the_host_are_refused() {
    let Some(device) = device() else { return };
    let model = load(&device, Dtype::F32);
    let oracle = Ranked::new("oracle", Oracle { scope: Scope::QueryHead }, Guarantees { sinks: 0, recent: 0 });
    let oracle = Method::policy(oracle, Budget::Tokens(8), 0).expect("valid");
    let error = model.forward(&[1], &mut model.new_cache(4), &oracle, Logits::Last).expect_err("refused").to_string();
    assert!(error.contains("`method`") && error.contains("--device cpu"), "{error}");
}

/// The main job through the binary.
#[test]
fn the_main_job() {
    if device().is_none() {
        return;
    }
    let name = name();
    let listed = json(&["devices"]);
    let found = listed["devices"].as_array().expect("a list").iter().find(|d| d["name"] == name.as_str());
    assert!(found.is_some_and(|d| d["problem"].is_null() && d["description"].is_string()), "{listed}");
    let demo = |device: &str| {
        json(&["demo", "--device", device, "--tokens", "900", "--budget", "96", "--timed-steps", "2", "--dtype", "f32"])
    };
    let (there, here) = (demo(&name), demo("cpu"));
    for key in ["right", "answer", "answer_dense", "tokens_kept"] {
        assert_eq!(there[key], here[key], "{key}: {there}");
    }
    assert_eq!(there["right"], true, "{there}");
}

#[test]
fn what_is_not_there_is_refused_with_the_mend() {
    refused(&["demo", "--device", "wgpu:77"], &["`wgpu:77`", "this machine has", "fasa devices"]);
    refused(&["demo", "--device", "gpu"], &["`gpu` is unknown", "vulkan"]);
    if !cfg!(feature = "metal") {
        refused(&["demo", "--device", "metal"], &["`metal` is not in this build", "--features metal"]);
    }
    if device().is_some() {
        let device = name();
        refused(&["generate", "x", "--device", &device, "--method", "oracle"], &["`method`", "--device cpu"]);
    }
}
