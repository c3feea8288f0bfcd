//! A GPU's cache with keys and values in the host's memory: the same tokens as with all of it on the GPU.
//!
//! `cargo test -p fasa-cli --features wgpu --test gpu_tiered`; on another device, `FASA_TEST_DEVICE=cuda` with that feature.
//! Without a device the tests say so and pass.

mod fixture;
#[path = "fixture/gpu.rs"]
mod gpu;
#[path = "fixture/model.rs"]
mod model;
#[path = "fixture/nano.rs"]
mod nano;

use fasa_burn::cache::{HostOptions, KvCache, Placement, TierPlace};
use fasa_burn::generate::Options;
use fasa_burn::method::Method;
use fasa_burn::model::{Decoder, Logits, Watch, to_host};
use fasa_burn::ops::Recorder;
use fasa_burn::sequence::Sequence;
use fasa_burn::session;
use fasa_burn::{Device, Dtype};
use fasa_core::{Budget, Scope};
use gpu::{device, json, name, refused};
use nano::{dense_and_sparse, options, text};
use serde_json::Value;

/// Nano in single precision, with its caches on the device and with their rows in the host's memory.
fn both(device: &Device) -> [Decoder; 2] {
    let load = || model::load_as(&fixture::folder().join("nano"), device, Dtype::F32);
    let mut hosted = load();
    hosted.set_placement(Placement::Host).expect("a GPU");
    [load(), hosted]
}

fn methods() -> Vec<Method> {
    dense_and_sparse(48, Budget::Ratio(0.1))
}

/// Logits of a prompt's end and of steps after it, and the tokens that every layer chose: one token, a chunk and one, more than
/// a block of the host's. With rows that stay on the device, and with none.
#[test]
fn steps_are_those_of_a_cache_on_the_device() {
    let Some(device) = device() else { return };
    let models = both(&device);
    // Longer prompts take minutes on software: one method behind the longest.
    let cases = [(1, 0..4), (513, 0..4), (1100, 1..2)];
    for (len, method) in cases.into_iter().flat_map(|(len, which)| which.map(move |m| (len, methods().swap_remove(m))))
    {
        let run = |model: &Decoder, kept_per_chosen: usize| {
            let (mut cache, recorder) = (model.new_cache(1), Recorder::default());
            cache.set_host(HostOptions { kept_per_chosen, ..HostOptions::default() });
            let prompt = text(len);
            let read = model.forward(&prompt, &mut cache, &Method::Dense, Logits::Last).expect("read");
            let mut logits = to_host(read.expect("logits")).expect("host");
            for token in 0..6 {
                let mut watch = Watch { recorder: Some(recorder.clone()), ..Watch::default() };
                let row = model.forward_watched(&[9 + token], &mut cache, &method, Logits::Last, &mut watch);
                logits.extend(to_host(row.expect("a step").expect("logits")).expect("host"));
            }
            let chosen = std::mem::take(&mut *recorder.lock().expect("whole"));
            (logits, chosen, cache)
        };
        let (want, chosen, here) = run(&models[0], 4);
        assert!(here.tier().is_none());
        for kept_per_chosen in [4, 0] {
            let what = format!("{method:?} behind {len} tokens, {kept_per_chosen}");
            let (got, chosen_there, there) = run(&models[1], kept_per_chosen);
            let worst = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{what}: a logit differs by {worst}");
            assert!(chosen == chosen_there, "{what}");
            let used = there.tier().expect("it lies in the host's memory");
            assert!(matches!(used.place, TierPlace::Host { .. }));
            let rows = (6 * 2 * 2 * 64 * 4 * (len + 6)) as u64;
            assert!(used.bytes >= rows && used.traffic.bytes_written == rows, "{what}: {used:?}");
            assert_eq!(used.traffic.hit_rate().is_some(), !chosen.is_empty());
            match (used.traffic.hit_rate(), kept_per_chosen) {
                // The new token's row never comes from the host, and the lists of a head share rows.
                (Some(share), 0) if len > 500 => {
                    let Method::Fasa { plan, .. } = &method else { panic!("only FASA chooses") };
                    let alone = plan.view().config().token_scope == Scope::KvHead;
                    assert!(share < if alone { 0.05 } else { 0.8 }, "{what}: {share}");
                }
                (Some(_), 0) => {}
                (Some(share), _) => assert!(share > 0.5, "{what}: {share}"),
                (None, _) => {}
            }
            for layer in [0, 5] {
                let numbers = |cache: &KvCache| {
                    let (keys, values) = cache.rows(layer).expect("rows");
                    (to_host(keys).expect("host"), to_host(values).expect("host"))
                };
                let ((keys, values), (keys_there, values_there)) = (numbers(&here), numbers(&there));
                let far = |a: &[f32], b: &[f32]| a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-4);
                assert!(keys.len() == keys_there.len() && !far(&keys, &keys_there), "{what}");
                assert!(values.len() == values_there.len() && !far(&values, &values_there), "{what}");
            }
        }
    }
}

/// Turns of a conversation: the text grows, is cut, goes on otherwise, and outgrows what was reserved.
#[test]
fn turns_are_those_of_a_cache_on_the_device() {
    let Some(device) = device() else { return };
    let models = both(&device);
    for method in methods().into_iter().skip(1).take(2) {
        let talk = |model: &Decoder| {
            let (mut sequence, mut said) = (Sequence::new(model, 1), vec![]);
            for (keep, add, new) in [(0, 300, 5), (305, 5, 3), (250, 300, 4), (40, 1, 3), (44, 1000, 4), (0, 20, 3)] {
                let mut text = sequence.tokens()[..keep.min(sequence.tokens().len())].to_vec();
                text.extend(nano::text(add));
                let outcome = model.follow(&mut sequence, &text, &options(&method, new), &mut |_| true);
                said.push(outcome.expect("text").tokens);
            }
            said
        };
        let [want, got] = models.each_ref().map(talk);
        assert_eq!(want, got, "{method:?}");
    }
}

#[test]
fn batches_and_sessions() {
    let Some(device) = device() else { return };
    let (models, methods) = (both(&device), methods());
    let texts: Vec<Vec<u32>> = [400, 3, 90, 513].map(text).into();
    let write = |model: &Decoder| {
        let options: Vec<Options> = methods.iter().map(|method| options(method, 5)).collect();
        let asked: Vec<(&[u32], &Options)> = texts.iter().map(Vec::as_slice).zip(&options).collect();
        let outcomes = model.generate_batch(&asked, &mut |_, _| true).expect("runs");
        outcomes.into_iter().map(|outcome| outcome.expect("text").tokens).collect::<Vec<_>>()
    };
    let [want, got] = models.each_ref().map(write);
    assert_eq!(want, got);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("session");
    let mut sequence = Sequence::new(&models[1], 1);
    let method = &methods[1];
    models[1].read(&mut sequence, &text(600), &options(method, 1), &mut |_| true).expect("read");
    session::save(&path, &models[1], method, &mut sequence, &[]).expect("saved");
    let go_on = |model: &Decoder| {
        let mut sequence = session::load(&path, model, method, 3).expect("its own").sequence;
        let text = [sequence.tokens(), &[7, 8, 9][..]].concat();
        model.follow(&mut sequence, &text, &options(method, 8), &mut |_| true).expect("text").tokens
    };
    assert_eq!(go_on(&models[0]), go_on(&models[1]));
}

/// Under a limit that the cache exceeds: an error where it must lie on the device, the same text where it need not.
#[test]
fn a_context_larger_than_the_device() {
    if device().is_none() {
        return;
    }
    let name = name();
    let folder = tempfile::tempdir().expect("a folder");
    let text: Vec<String> = (0..160).map(|i| format!("The {} house has {} windows.", i % 97, i * 7 % 101)).collect();
    let path = folder.path().join("prompt.txt");
    std::fs::write(&path, text.join(" ")).expect("written");
    let path = path.to_str().expect("UTF-8");
    let mut generate = vec!["generate", "--prompt-file", path, "--budget", "64", "--max-new-tokens", "8"];
    generate.extend(["--device", &name, "--dtype", "f32"]);
    let with = |more: &[&'static str]| [&generate[..], more].concat();
    let want = json(&with(&["--cache", "device"]));
    assert!(want["tier"].is_null(), "{want}");
    // The weights are 23 MB, the cache takes 6 kB per token.
    refused(
        &with(&["--cache", "device", "--device-memory", "30MB"]),
        &["too little memory", "--cache tiered", "30000000"],
    );
    for cache in [&["--cache", "auto", "--device-memory", "30MB"][..], &["--cache", "tiered"]] {
        let got = json(&with(cache));
        assert_eq!((&got["tokens"], &got["text"]), (&want["tokens"], &want["text"]), "{cache:?}");
        let tier = &got["tier"];
        assert!(tier["folder"].is_null() && tier["host_bytes"].as_u64() > Some(6_000_000), "{tier}");
        assert!(tier["hit_rate"].as_f64() > Some(0.3), "{tier}");
    }
    refused(&with(&["--cache", "tiered", "--cache-dir", "."]), &["`--cache-dir`", "host's memory"]);
    let short = ["generate", "x", "--device", &name, "--dtype", "f32", "--cache"];
    let fits = json(&[&short[..], &["auto", "--max-new-tokens", "1"]].concat());
    assert!(fits["tier"].is_null(), "{fits}");
    refused(&[&short[..], &["tiered", "--method", "oracle"]].concat(), &["`method`", "--device cpu"]);
    refused(&["generate", "x", "--device-memory", "1GB"], &["`--device-memory`", "ulimit"]);
    refused(&["generate", "x", "--device-memory", "much"], &["`much`", "40GiB"]);
}

/// Where each kind keeps its bytes, with rows that stay on the device and without; what a limit refuses.
#[test]
fn memory_is_measured() {
    if device().is_none() {
        return;
    }
    let name = name();
    let mut bench = vec!["bench", "memory", "--device", &name, "--dtype", "f32", "--lengths", "2k", "--steps", "3"];
    bench.extend(["--budget", "64"]);
    let with = |more: &[&'static str]| [&bench[..], more].concat();
    let report = json(&with(&["--rows-kept", "0,4", "--host-memory", "8MB"]));
    assert!(report["link_bytes_per_second"].as_f64() > Some(0.0), "{report}");
    let results = report["results"].as_array().expect("a list");
    let of = |key: &str| results.iter().map(|result| result[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("what"), ["fasa-m", "fasa-m", "fasa-c", "dense"]);
    assert_eq!(of("rows_kept"), [0.into(), 4.into(), Value::Null, Value::Null]);
    // A block of 1,024 tokens of six layers is 6 MB.
    assert_eq!(of("own_rows"), [1024, 1024, 2048, 2048]);
    // Six layers, two KV heads, 64 dimensions in f32.
    let dense = 6 * 2 * 512 * 2048;
    for result in results {
        let number = |key: &str| result[key].as_u64().expect("a number");
        assert!(result["tokens_per_second"].as_f64() > Some(0.0) && number("device_reserved_bytes") > 0, "{result}");
        match result["what"].as_str() {
            Some("fasa-m") => {
                assert!(number("tier_bytes") == dense / 2 && number("device_bytes") < dense * 2 / 3, "{result}");
                // One layer is dense.
                assert!(result["bytes_moved_per_step"].as_f64() > Some(dense as f64 / 6.0), "{result}");
                assert!(result["link_share"].as_f64() > Some(0.0), "{result}");
            }
            _ => assert!(number("device_bytes") >= dense && number("tier_bytes") == 0, "{result}"),
        }
    }
    let hits = |i: usize| results[i]["hit_rate"].as_f64().expect("a share");
    assert!(hits(0) < 0.02 && hits(1) > 0.1, "{} {}", hits(0), hits(1));
    let limited = ["--device-memory", "34MB", "--what", "dense,fasa-m"];
    let report = json(&with(&limited));
    assert_eq!((&report["refused"][0]["what"], &report["results"][0]["what"]), (&"dense".into(), &"fasa-m".into()));
    assert!(report["refused"][0]["why"].as_str().is_some_and(|why| why.contains("34000000")), "{report}");
    refused(
        &with(&["--device-memory", "34MB", "--what", "dense", "--format", "json"]),
        &["too little memory", "--cache tiered"],
    );
    refused(&["bench", "memory", "--host-memory", "8MB"], &["`--host-memory`", "file"]);
}
