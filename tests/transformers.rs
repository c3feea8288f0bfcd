//! The decoder against PyTorch: logits and greedy tokens that `transformers` computed in single precision.
//!
//! `FASA_MODELS=dir` tries every checkpoint folder of another directory (those with `expected.safetensors`).

mod fixture;
#[path = "fixture/model.rs"]
mod model;

use fasa_burn::method::Method;
use fasa_burn::model::{Logits, to_host};
use fasa_burn::{Device, Dtype};
use fixture::Fixture;
use std::path::{Path, PathBuf};

/// How far logits may be off in half precision.
const HALF_TOLERANCE: f32 = 2e-2;

/// Folders with a checkpoint and its reference, and how far logits may be off in each.
fn models() -> Vec<(PathBuf, f32)> {
    let folders = |root: PathBuf| {
        let entries = std::fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
        let mut all: Vec<PathBuf> = entries.map(|e| e.expect("readable").path()).collect();
        all.retain(|p| p.join("expected.safetensors").is_file());
        all.sort();
        all
    };
    match std::env::var_os("FASA_MODELS") {
        Some(root) => folders(root.into()).into_iter().map(|f| (f, 2e-3)).collect(),
        None => {
            let tiny = folders(fixture::folder().join("families")).into_iter().map(|f| (f, 2e-4));
            tiny.chain([(fixture::folder().join("nano"), 2e-3)]).collect()
        }
    }
}

#[test]
fn logits_and_greedy_tokens() {
    for (folder, tolerance) in models() {
        like_the_reference(&folder, Dtype::F32, tolerance);
    }
}

/// Half precision rounds keys and values, and the weights of the tiny checkpoints, which are stored in f32. Seen: at most
/// 1.3e-2 on nano, whose logits reach 25, and 1.1e-2 on the tiny ones, whose logits reach 5.5.
#[test]
fn logits_and_greedy_tokens_in_half_precision() {
    for (folder, _) in models() {
        like_the_reference(&folder, Dtype::F16, HALF_TOLERANCE);
    }
}

fn like_the_reference(folder: &Path, dtype: Dtype, tolerance: f32) {
    let model = model::load_as(folder, &Device::flex(), dtype);
    let expected = Fixture::read(&folder.join("expected.safetensors"));
    let ids = expected.u32("input_ids");
    let want = expected.f32("logits");
    let prompt_len = if expected.has("prompt_len") { expected.u32("prompt_len")[0] as usize } else { ids.len() };
    let name = format!("{} {dtype}", folder.display());

    let mut cache = model.new_cache(ids.len());
    let logits = model.forward(&ids, &mut cache, &Method::Dense, Logits::All).expect("runs").expect("logits");
    compare(&format!("{name} prefill"), &to_host(logits).expect("host"), &want, tolerance);

    // The same tokens one by one: every decode step must give what the whole gives at its position.
    let mut cache = model.new_cache(1);
    let mut stepped = Vec::new();
    for id in &ids {
        let row = model.forward(&[*id], &mut cache, &Method::Dense, Logits::Last).expect("runs").expect("logits");
        stepped.extend(to_host(row).expect("host"));
    }
    compare(&format!("{name} decode"), &stepped, &want, tolerance);

    let mut cache = model.new_cache(prompt_len);
    let mut next = &ids[..prompt_len];
    let mut token;
    let mut greedy = Vec::new();
    for _ in 0..expected.shape("greedy")[0] {
        let row = model.forward(next, &mut cache, &Method::Dense, Logits::Last).expect("runs").expect("logits");
        let row = to_host(row).expect("host");
        token = [argmax(&row)];
        greedy.push(token[0]);
        next = &token;
    }
    assert_eq!(greedy, expected.u32("greedy"), "{name}");
}

/// The same weights cut into three files give the same logits to the bit.
#[test]
fn shards_equal_one_file() {
    let whole = fixture::folder().join("families/llama");
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::copy(whole.join("config.json"), folder.path().join("config.json")).expect("copied");
    let bytes = std::fs::read(whole.join("model.safetensors")).expect("weights");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut names = tensors.names();
    names.sort();
    let mut weight_map = serde_json::Map::new();
    for (i, part) in names.chunks(names.len().div_ceil(3)).enumerate() {
        let file = format!("model-{:05}-of-00003.safetensors", i + 1);
        let views = part.iter().map(|n| (n.to_string(), tensors.tensor(n).expect("listed")));
        std::fs::write(folder.path().join(&file), safetensors::serialize(views, None).expect("bytes"))
            .expect("written");
        weight_map.extend(part.iter().map(|n| (n.to_string(), file.clone().into())));
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map }).to_string();
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).expect("written");
    let logits = |folder: &Path| {
        let model = model::load(folder);
        let mut cache = model.new_cache(8);
        let row = model.forward(&[1, 2, 3], &mut cache, &Method::Dense, Logits::All).expect("runs").expect("logits");
        to_host(row).expect("host")
    };
    assert_eq!(logits(folder.path()), logits(&whole));
}

fn argmax(row: &[f32]) -> u32 {
    let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.expect("not empty").0 as u32
}

#[allow(clippy::print_stdout)] // shown by `--nocapture`: how far from the reference
fn compare(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    println!("{what}: largest difference {worst:.1e}");
    assert!(worst <= tolerance, "{what}: a logit is off by {worst}");
}
