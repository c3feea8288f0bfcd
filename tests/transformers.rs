//! The decoder against PyTorch: logits and greedy tokens that `transformers` computed in single precision.
//!
//! `FASA_MODELS=dir` tries every checkpoint folder of another directory (those with `expected.safetensors`);
//! `FASA_FAMILIES=dir` the same with the tolerance of the tiny checkpoints.

mod fixture;
#[path = "fixture/model.rs"]
mod model;

use burn::tensor::Tensor;

use fasa_burn::calibrate::{Calibration, Sample};
use fasa_burn::checkpoint::Checkpoint;
use fasa_burn::config::{ModelConfig, RopeScaling};
use fasa_burn::generate::Cancel;
use fasa_burn::method::Method;
use fasa_burn::model::{Decoder, Logits, Observer, Watch, to_host};
use fasa_burn::ops::Recorder;
use fasa_burn::sequence::Sequence;
use fasa_burn::{Device, Dtype};
use fasa_core::criterion::CriterionKind;
use fasa_core::sketch::Precision;
use fasa_core::{Budget, FasaConfig, Guarantees, Scope};
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
    let families = |root: PathBuf| folders(root).into_iter().map(|f| (f, 2e-4)).collect::<Vec<_>>();
    match (std::env::var_os("FASA_MODELS"), std::env::var_os("FASA_FAMILIES")) {
        (Some(root), _) => folders(root.into()).into_iter().map(|f| (f, 2e-3)).collect(),
        (None, Some(root)) => families(root.into()),
        (None, None) => families(fixture::folder().join("families"))
            .into_iter()
            .chain([(fixture::folder().join("nano"), 2e-3)])
            .collect(),
    }
}

#[test]
fn logits_and_greedy_tokens() {
    for (folder, tolerance) in models() {
        like_the_reference(&folder, Dtype::F32, tolerance);
    }
}

/// Half precision rounds keys and values, and the weights of the tiny checkpoints, which are stored in f32. Seen: at most
/// 1.3e-2 on nano, whose logits reach 25, and 1.6e-2 on the tiny ones, whose logits reach 5.5. How far another checkpoint's
/// logits may move depends on its weights, so those of the environment's folders are compared in single precision only.
#[test]
fn logits_and_greedy_tokens_in_half_precision() {
    for (folder, _) in models().into_iter().filter(|_| of_this_repository()) {
        like_the_reference(&folder, Dtype::F16, HALF_TOLERANCE);
    }
}

fn of_this_repository() -> bool {
    ["FASA_MODELS", "FASA_FAMILIES"].into_iter().all(|name| std::env::var_os(name).is_none())
}

fn like_the_reference(folder: &Path, dtype: Dtype, tolerance: f32) {
    let model = load(folder, dtype, tolerance);
    let expected = Fixture::read(&folder.join("expected.safetensors"));
    let ids = expected.u32("input_ids");
    let want = expected.f32("logits");
    let prompt_len = if expected.has("prompt_len") { expected.u32("prompt_len")[0] as usize } else { ids.len() };
    let name = format!("{} {dtype}", folder.display());

    let mut cache = model.new_cache(ids.len());
    let logits = model.forward(&ids, &mut cache, &Method::Dense, Logits::All).expect("runs").expect("logits");
    compare(&format!("{name} prefill"), &to_host(logits).expect("host"), &want, tolerance);

    // The same tokens one by one: every decode step must give what the whole gives at its position. Where the length of the
    // context changes the rotary frequencies, those of the whole hold from the last such length on.
    let together = (1..=ids.len()).rev().find(|len| model.config().rope.changes_at(*len)).unwrap_or(0);
    let mut cache = model.new_cache(1);
    let mut stepped = match together {
        0 => Vec::new(),
        _ => {
            let rows = model.forward(&ids[..together], &mut cache, &Method::Dense, Logits::All).expect("runs");
            to_host(rows.expect("logits")).expect("host")
        }
    };
    for id in &ids[together..] {
        let row = model.forward(&[*id], &mut cache, &Method::Dense, Logits::Last).expect("runs").expect("logits");
        stepped.extend(to_host(row).expect("host"));
    }
    compare(&format!("{name} decode"), &stepped, &want, tolerance);

    let greedy = |announced: usize| {
        let mut cache = model.new_cache(prompt_len);
        cache.expect(announced);
        let (mut text, mut read) = (ids[..prompt_len].to_vec(), 0);
        for _ in 0..expected.shape("greedy")[0] {
            // Phi-3's `generate` reads everything again where its angles change over.
            let long = matches!(model.config().rope.scaling, RopeScaling::Long { .. });
            if long && model.config().rope.changes_at(text.len()) {
                cache.truncate(0);
                read = 0;
            }
            let row = model.forward(&text[read..], &mut cache, &Method::Dense, Logits::Last).expect("runs");
            read = text.len();
            text.push(argmax(&to_host(row.expect("logits")).expect("host")));
        }
        text.split_off(prompt_len)
    };
    let mut got = greedy(0);
    // With dynamic frequencies, `transformers` goes on with those of the longest text that the same object has read before,
    // which here may be the one whose logits are compared.
    if got != expected.u32("greedy") && matches!(model.config().rope.scaling, RopeScaling::Dynamic { .. }) {
        got = greedy(ids.len());
    }
    assert_eq!(got, expected.u32("greedy"), "{name}");
}

/// A prompt in pieces is the prompt at once, also where rotary frequencies follow its length.
#[test]
fn pieces_of_an_announced_length() {
    for (folder, tolerance) in models() {
        let model = model::load(&folder);
        let ids = Fixture::read(&folder.join("expected.safetensors")).u32("input_ids");
        let mut cache = model.new_cache(ids.len());
        let whole = model.forward(&ids, &mut cache, &Method::Dense, Logits::All).expect("runs").expect("logits");
        let mut cache = model.new_cache(1);
        cache.expect(ids.len());
        let mut pieces = Vec::new();
        for piece in ids.chunks(37) {
            let rows = model.forward(piece, &mut cache, &Method::Dense, Logits::All).expect("runs").expect("logits");
            pieces.extend(to_host(rows).expect("host"));
        }
        compare(&folder.display().to_string(), &pieces, &to_host(whole).expect("host"), tolerance);
    }
}

/// LongRoPE has one set of angles for short contexts and one for long ones: a context does not change over.
#[test]
fn a_short_context_does_not_become_a_long_one() {
    let model = model::load(&fixture::folder().join("families/phi3-long"));
    let read = |cache: &mut fasa_burn::cache::KvCache, tokens: usize| {
        model.forward(&vec![5; tokens], cache, &Method::Dense, Logits::None).map(|_| ())
    };
    let mut cache = model.new_cache(80);
    read(&mut cache, 60).expect("short");
    read(&mut cache, 4).expect("still short");
    let error = read(&mut cache, 1).expect_err("no longer short").to_string();
    assert!(error.contains("65 positions") && error.contains("KvCache::expect"), "{error}");
    // One that was announced, or read at once, goes on; so does one that begins anew.
    cache.truncate(0);
    cache.expect(65);
    read(&mut cache, 60).expect("announced");
    read(&mut cache, 20).expect("announced");
    cache.truncate(0);
    read(&mut cache, 65).expect("at once");
    read(&mut cache, 1).expect("long");
    // Generating counts what may be written.
    let options = fasa_burn::generate::Options {
        method: Method::Dense,
        max_new_tokens: 8,
        sampling: fasa_burn::sampling::Sampling::default(),
        stop_ids: Vec::new(),
        cancel: Cancel::default(),
    };
    let written = model.generate(&[5; 60], &mut model.new_cache(1), &options, &mut |_| true).expect("runs").tokens;
    assert_eq!(written.len(), 8);
    // A sequence knows its tokens, and reads them again where it must: as if all had been read at once.
    let mut sequence = Sequence::new(&model, 1);
    model.follow(&mut sequence, &[5; 50], &options, &mut |_| true).expect("short");
    let outcome = model.follow(&mut sequence, &[5; 60], &options, &mut |_| true).expect("long");
    assert_eq!((outcome.held_tokens, outcome.tokens), (0, written));
    let outcome = model.follow(&mut sequence, &[5; 62], &options, &mut |_| true).expect("long");
    assert!(outcome.held_tokens >= 60);
}

/// Both spellings of the rotary parameters give one model.
#[test]
fn older_spellings_of_the_configuration_equal_the_newer() {
    let mut compared = 0;
    for (folder, _) in models() {
        let Ok(json) = std::fs::read(folder.join("config.legacy.json")) else { continue };
        let older = ModelConfig::from_json(json, &folder.join("config.legacy.json")).expect("a config");
        assert_eq!(older, ModelConfig::read(&folder).expect("a config"), "{}", folder.display());
        compared += 1;
    }
    assert!(compared > 0 || !of_this_repository());
}

/// With a budget that covers the context FASA gives the greedy tokens of dense attention; with a small one, what it reads
/// are the tokens whose true rotary pairs score best: a naive computation over the rotated queries and keys.
#[test]
fn fasa_on_every_family() {
    for (folder, _) in models() {
        let model = model::load(&folder);
        let ids = Fixture::read(&folder.join("expected.safetensors")).u32("input_ids");
        let sample = Sample { tokens: ids.clone(), judged: (ids.len() / 2..ids.len()).collect() };
        let calibration = Calibration {
            criterion: CriterionKind::Margin,
            agreement_k: 8,
            scope: Scope::KvHead,
            pairing: None,
            text: "a test".into(),
        };
        let cancel = Cancel::default();
        let profile = model.calibrate(&[sample], &calibration, &cancel, &mut |_, _| {}).expect("calibrates");
        let view = model.profile(profile.as_bytes(), &folder).expect("of this model");
        let guarantees = Guarantees { sinks: 0, recent: 0 };
        let config = FasaConfig { precision: Precision::F32, guarantees, dense_layers: 0, ..FasaConfig::DEFAULT };
        let step = |budget: usize| {
            let method = Method::fasa(&view, config, Budget::Tokens(budget as u32)).expect("fits");
            let (last, context) = ids.split_last().expect("ids");
            let mut cache = model.new_cache(ids.len());
            model.forward(context, &mut cache, &Method::Dense, Logits::None).expect("runs");
            let (mut queries, recorder) = (Queries::default(), Recorder::default());
            let mut watch = Watch { observer: Some(&mut queries), recorder: Some(recorder.clone()) };
            let row = model.forward_watched(&[*last], &mut cache, &method, Logits::Last, &mut watch).expect("runs");
            let chosen = recorder.lock().expect("no panic").clone();
            (to_host(row.expect("logits")).expect("host"), queries.0, chosen, cache)
        };
        let mut cache = model.new_cache(ids.len());
        let (last, context) = ids.split_last().expect("ids");
        model.forward(context, &mut cache, &Method::Dense, Logits::None).expect("runs");
        let dense = model.forward(&[*last], &mut cache, &Method::Dense, Logits::Last).expect("runs").expect("logits");
        let name = folder.display().to_string();
        let dense = to_host(dense).expect("host");
        assert_eq!(step(ids.len()).0, dense, "{name}: a budget that covers the context");

        let budget = 12;
        let (sparse, queries, chosen, cache) = step(budget);
        let (numbers, dim) = (model.config(), model.config().head_dim);
        let group = numbers.num_key_value_groups();
        // Layers with a sliding window attend to all of it.
        let without: Vec<usize> =
            (0..numbers.num_hidden_layers).filter(|layer| numbers.window(*layer).is_none()).collect();
        assert_eq!(chosen.iter().map(|(layer, _)| *layer).collect::<Vec<_>>(), without, "{name}");
        assert_eq!(sparse == dense, without.is_empty(), "{name}");
        for (layer, selected) in chosen {
            let keys = to_host(cache.rows(layer).expect("rows").0).expect("host");
            let turns = numbers.unrotated_layers.get(layer).is_none_or(|flag| *flag == 0);
            let half = if turns { numbers.rope.rotary_dim / 2 } else { 0 };
            for (head, keys) in keys.chunks_exact(ids.len() * dim).enumerate() {
                let dominant: Vec<u16> = view.ranking(layer, head).take(dim / 4).collect();
                let mut scores = vec![0.0f64; ids.len()];
                for query in queries[layer][head * group * dim..][..group * dim].chunks_exact(dim) {
                    let score = |key: &[f32]| -> f64 {
                        let pair = |i: &u16| match usize::from(*i) {
                            i if i < half => (i, i + half),
                            i => (2 * i, 2 * i + 1),
                        };
                        let products = dominant.iter().map(pair).map(|(a, b)| {
                            f64::from(query[a]) * f64::from(key[a]) + f64::from(query[b]) * f64::from(key[b])
                        });
                        products.sum::<f64>() / (dim as f64).sqrt()
                    };
                    let raw: Vec<f64> = keys.chunks_exact(dim).map(score).collect();
                    let max = raw.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = raw.iter().map(|s| (s - max).exp()).sum();
                    scores.iter_mut().zip(&raw).for_each(|(sum, s)| *sum += (s - max).exp() / total);
                }
                let got = selected.lists().nth(head).expect("a list per KV head");
                assert_eq!(got.len(), budget, "{name}");
                // The current token is always kept; of the others, none left out may beat one that was taken.
                let others = got.iter().filter(|t| **t as usize + 1 != ids.len());
                let worst = others.map(|t| scores[*t as usize]).fold(f64::INFINITY, f64::min);
                let left = (0..ids.len()).filter(|t| !got.contains(&(*t as u32)));
                let best = left.map(|t| scores[t]).fold(0.0, f64::max);
                assert!(worst >= best * (1.0 - 1e-3), "{name}, layer {layer}, head {head}: {worst} kept, {best} not");
            }
        }
    }
}

/// The query of the newest token in every layer.
#[derive(Default)]
struct Queries(Vec<Vec<f32>>);

impl Observer for Queries {
    fn queries(&mut self, _layer: usize, _position: usize, queries: &Tensor<3>) {
        self.0.push(to_host(queries.clone()).expect("host"));
    }
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

/// The model, with the rotary frequencies of its reference.
///
/// `from_pretrained` of `transformers` keeps them in single precision whatever the weights are loaded in, and so does
/// [`Decoder::load`]. But a model that was moved by `model.to(torch.bfloat16)` has rounded ones, and some references were
/// computed with those: where the logits of a checkpoint in bfloat16 say so, it is compared with rounded frequencies.
fn load(folder: &Path, dtype: Dtype, tolerance: f32) -> Decoder {
    let with = |rounded: bool| {
        let mut config = ModelConfig::read(folder).expect("a config");
        config.rope.bfloat16 = rounded;
        let checkpoint = Checkpoint::open(folder).expect("weights");
        Decoder::load(config, &checkpoint, &Device::flex(), dtype, &mut |_, _| {}).expect("a model")
    };
    let model = with(false);
    let json = std::fs::read_to_string(folder.join("config.json")).expect("readable");
    if !json.contains("\"dtype\": \"bfloat16\"") || of_this_repository() {
        return model;
    }
    let expected = Fixture::read(&folder.join("expected.safetensors"));
    let (ids, want) = (expected.u32("input_ids"), expected.f32("logits"));
    let mut cache = model.new_cache(ids.len());
    let logits = model.forward(&ids, &mut cache, &Method::Dense, Logits::All).expect("runs").expect("logits");
    if largest_difference(&to_host(logits).expect("host"), &want) <= tolerance { model } else { with(true) }
}

fn largest_difference(got: &[f32], want: &[f32]) -> f32 {
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max)
}

fn argmax(row: &[f32]) -> u32 {
    let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.expect("not empty").0 as u32
}

#[allow(clippy::print_stdout)] // shown by `--nocapture`: how far from the reference
fn compare(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let worst = largest_difference(got, want);
    println!("{what}: largest difference {worst:.1e}");
    assert!(worst <= tolerance, "{what}: a logit is off by {worst}");
}
