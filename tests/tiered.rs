//! A cache whose keys and values lie in a file: the same tokens as with one in memory, whatever happens to it.

mod fixture;
#[path = "fixture/model.rs"]
mod model;
#[path = "fixture/nano.rs"]
mod nano;

use fasa_burn::cache::{KvCache, Placement, TierPlace};
use fasa_burn::generate::Options;
use fasa_burn::method::Method;
use fasa_burn::model::{Decoder, Logits, Watch, to_host};
use fasa_burn::ops::Recorder;
use fasa_burn::sequence::Sequence;
use fasa_burn::session;
use fasa_burn::{Device, Dtype};
use fasa_core::Budget;
use fasa_core::policy::Streaming;
use nano::{dense_and_sparse, options};
use std::path::Path;

fn folder() -> std::path::PathBuf {
    std::env::temp_dir()
}

/// Nano, with its caches in memory and with its caches in a file.
fn both(dtype: Dtype) -> [Decoder; 2] {
    let load = || model::load_as(&fixture::folder().join("nano"), &Device::flex(), dtype);
    let mut tiered = load();
    tiered.set_placement(Placement::Tiered(folder())).expect("a folder for temporary files");
    [load(), tiered]
}

fn methods() -> Vec<Method> {
    dense_and_sparse(32, Budget::Ratio(0.2))
}

fn prompt(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| 5 + i * i * 7 % 4000).collect()
}

/// Logits of every step to the bit, and the tokens that every layer chose.
#[test]
fn steps_are_those_of_a_cache_in_memory() {
    for dtype in [Dtype::F32, Dtype::F16] {
        let models = both(dtype);
        // One token, a chunk and one, several segments of the file.
        for (len, method) in [1, 513, 1200].into_iter().flat_map(|len| methods().into_iter().map(move |m| (len, m))) {
            let run = |model: &Decoder| {
                let (mut cache, recorder) = (model.new_cache(1), Recorder::default());
                model.forward(&prompt(len), &mut cache, &Method::Dense, Logits::None).expect("read");
                let mut logits = vec![];
                for token in 0..6 {
                    let mut watch = Watch { recorder: Some(recorder.clone()), ..Watch::default() };
                    let row = model.forward_watched(&[9 + token], &mut cache, &method, Logits::Last, &mut watch);
                    let row = to_host(row.expect("a step").expect("logits")).expect("host");
                    logits.extend(row.into_iter().map(f32::to_bits));
                }
                let chosen = std::mem::take(&mut *recorder.lock().expect("whole"));
                (logits, chosen, cache)
            };
            let [(want, chosen, here), (got, chosen_there, there)] = models.each_ref().map(run);
            assert!(want == got, "{dtype} {method:?} behind {len} tokens");
            assert!(chosen == chosen_there, "{dtype} {method:?} behind {len} tokens");
            assert!(here.tier().is_none());
            let used = there.tier().expect("it lies in a file");
            assert_eq!(used.place, TierPlace::File(&folder()));
            assert!(used.traffic.bytes_written >= (len * 6 * 2 * 2 * 64 * dtype.bytes()) as u64);
            assert_eq!(used.traffic.hit_rate().is_some(), !chosen.is_empty());
            if len > 1000 && matches!(method, Method::Fasa { budget: Budget::Tokens(_), .. }) {
                assert!(3 * there.device_bytes() < here.device_bytes(), "{}", there.device_bytes());
            }
        }
    }
}

/// Turns of a conversation: the text grows, is cut, goes on otherwise, and outgrows what was reserved.
#[test]
fn turns_are_those_of_a_cache_in_memory() {
    let models = both(Dtype::F16);
    for method in methods() {
        let talk = |model: &Decoder| {
            let (mut sequence, mut said) = (Sequence::new(model, 1), vec![]);
            for (keep, add, new) in [(0, 300, 9), (309, 5, 4), (250, 700, 9), (40, 1, 3), (44, 1100, 7), (0, 20, 5)] {
                let mut text = sequence.tokens()[..keep.min(sequence.tokens().len())].to_vec();
                text.extend(prompt(add));
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
fn batches_are_those_of_caches_in_memory() {
    let models = both(Dtype::F16);
    let methods = methods();
    let texts: Vec<Vec<u32>> = [700, 3, 90, 513].map(prompt).into();
    let write = |model: &Decoder| {
        let options: Vec<Options> = methods.iter().map(|method| options(method, 12)).collect();
        let asked: Vec<(&[u32], &Options)> = texts.iter().map(Vec::as_slice).zip(&options).collect();
        let outcomes = model.generate_batch(&asked, &mut |_, _| true).expect("runs");
        outcomes.into_iter().map(|outcome| outcome.expect("text").tokens).collect::<Vec<_>>()
    };
    let [want, got] = models.each_ref().map(write);
    assert_eq!(want, got);
}

/// A session is the same file whichever cache wrote it, and either reads it.
#[test]
fn sessions_do_not_depend_on_where_the_cache_lies() {
    let models = both(Dtype::F16);
    let folder = tempfile::tempdir().expect("a folder");
    for method in methods() {
        let save = |model: &Decoder| {
            let path = folder.path().join(format!("{:?}", model.placement() == &Placement::Device));
            let mut sequence = Sequence::new(model, 1);
            model.read(&mut sequence, &prompt(600), &options(&method, 1), &mut |_| true).expect("read");
            session::save(&path, model, &method, &mut sequence, &[]).expect("saved");
            path
        };
        let [here, there] = models.each_ref().map(save);
        assert!(std::fs::read(&here).expect("there") == std::fs::read(&there).expect("there"), "{method:?}");
        let go_on = |model: &Decoder, path: &Path| {
            let mut sequence = session::load(path, model, &method, 3).expect("its own").sequence;
            let text = [sequence.tokens(), &[7, 8, 9][..]].concat();
            let outcome = model.follow(&mut sequence, &text, &options(&method, 10), &mut |_| true).expect("text");
            assert_eq!(outcome.held_tokens, 600);
            outcome.tokens
        };
        let want = go_on(&models[0], &here);
        assert_eq!(go_on(&models[1], &here), want, "{method:?}");
        assert_eq!(go_on(&models[0], &there), want, "{method:?}");
    }
}

#[test]
fn what_a_tiered_cache_cannot_do_is_refused() {
    let [_, mut model] = both(Dtype::F32);
    let policy = Method::policy(Streaming::default(), Budget::Tokens(16), 0).expect("valid");
    let mut cache = model.new_cache(1);
    model.forward(&prompt(40), &mut cache, &Method::Dense, Logits::None).expect("read");
    let error = model.forward(&[1], &mut cache, &policy, Logits::Last).expect_err("refused").to_string();
    assert!(error.contains("`cache` is tiered") && error.contains("--cache device"), "{error}");
    let error = model.set_placement(Placement::Tiered("no/such/folder".into())).expect_err("refused").to_string();
    assert!(error.contains("`cache-dir` `no/such/folder` is no folder"), "{error}");
}

/// More than there is memory: an error of a cache on the device, and where it may, a move to the disk, which in turn says
/// what it lacks.
#[test]
fn a_cache_beyond_all_memory() {
    let [mut model, tiered] = both(Dtype::F16);
    let petabyte = 1 << 41;
    let reserve = |model: &Decoder| model.new_cache(1).reserve(petabyte).expect_err("too much").to_string();
    let error = reserve(&model);
    assert!(error.contains("too little memory") && error.contains("--cache tiered"), "{error}");
    let full = |error: &str| error.contains("needs") && error.contains("`--cache-dir`");
    assert!(full(&reserve(&tiered)));
    model.set_placement(Placement::Auto(folder())).expect("a folder for temporary files");
    let error = reserve(&model);
    assert!(full(&error) || model.placement().is_in_memory() || !cfg!(target_os = "linux"), "{error}");
    let mut small: KvCache = model.new_cache(1);
    small.reserve(10).expect("little");
    assert!(small.tier().is_none());
}
