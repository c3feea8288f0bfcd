//! GGUF files: the same numbers, tokens and logits as the packages that made them.

mod fixture;

use fasa_burn::checkpoint::Checkpoint;
use fasa_burn::gguf::Gguf;
use fasa_burn::method::Method;
use fasa_burn::model::{Decoder, Logits, to_host};
use fasa_burn::text::TokenizerSettings;
use fasa_burn::{Device, Dtype};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn path(name: &str) -> PathBuf {
    fixture::folder().join("gguf").join(name)
}

fn open(name: &str) -> Gguf {
    Gguf::open(&path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The largest difference to the logits that `transformers` computed from the same weights, not quantized.
fn differs(name: &str, dtype: Dtype) -> f32 {
    let file = open(&format!("{name}.gguf"));
    let config = file.config().expect("a config");
    let checkpoint = Checkpoint::from_gguf(file).expect("weights");
    let model = Decoder::load(config, &checkpoint, &Device::flex(), dtype, &mut |_, _| {}).expect("a model");
    let expected = fixture::Fixture::read(&fixture::folder().join("families").join(name).join("expected.safetensors"));
    let (ids, want) = (expected.u32("input_ids"), expected.f32("logits"));
    let mut cache = model.new_cache(ids.len());
    let logits = model.forward(&ids, &mut cache, &Method::Dense, Logits::All).expect("runs").expect("logits");
    let logits = to_host(logits).expect("host");
    assert_eq!(logits.len(), want.len());
    logits.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_are_those_of_transformers() {
    // Not quantized, with llama's queries and keys in their interleaved order.
    let exact = differs("llama", Dtype::F32);
    assert!(exact < 2e-4, "{exact}");
    // BF16 and frequencies given one by one; 8 bits. The logits' standard deviation is above 1; wrongly ordered rows or
    // unscaled frequencies are off by more than 1.
    for (name, tolerance) in [("llama3-rope", 0.1), ("qwen3", 0.2)] {
        let rounded = differs(name, Dtype::F32);
        assert!(rounded > 1e-4 && rounded < tolerance, "{name}: {rounded}");
    }
    let half = differs("llama", Dtype::F16);
    assert!(half < 2e-2, "{half}");
}

#[test]
fn tokens_are_those_of_the_tokenizers_own_library() {
    let expected: Value = serde_json::from_slice(&std::fs::read(path("expected.json")).expect("there")).expect("JSON");
    for name in ["llama", "qwen3"] {
        let tokenizer = open(&format!("{name}.gguf")).tokenizer().expect("a tokenizer");
        let texts = expected["texts"].as_array().expect("a list").iter().map(|text| text.as_str().expect("a text"));
        let ids = expected[name].as_array().expect("a list");
        let mut compared = 0;
        for (text, ids) in texts.chain(["<|im_start|>user"]).zip(ids) {
            let want: Vec<u32> =
                ids.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect();
            let got = tokenizer.encode(text).expect("encodes");
            assert_eq!(got, want, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&got).expect("decodes"), text, "{name}");
            compared += 1;
        }
        assert_eq!(compared, ids.len());
    }
}

#[test]
fn settings_come_from_the_metadata() {
    let settings = |file: &Gguf| {
        let json = file.tokenizer_settings().expect("settings");
        TokenizerSettings::from_json(&json, Path::new("m.gguf")).expect("valid")
    };
    let (llama, qwen3) = (open("llama.gguf"), open("qwen3.gguf"));
    let tokens = |file: &Gguf| settings(file).special_tokens().get("eos_token").map(|text| (*text).to_owned());
    assert_eq!((tokens(&llama).as_deref(), tokens(&qwen3).as_deref()), (Some("</s>"), Some("<|im_end|>")));
    assert_eq!(settings(&llama).chat_template().expect("none"), None);
    assert!(settings(&qwen3).chat_template().expect("one").is_some_and(|t| t.contains("<|im_start|>")));
    // Llama's texts begin with a token, Qwen's do not.
    let bos = |file: &Gguf| settings(file).bos(&file.tokenizer().expect("a tokenizer"), None).expect("valid");
    assert_eq!((bos(&llama), bos(&qwen3)), (Some(1), None));
    let config = qwen3.config().expect("a config");
    assert_eq!((config.vocab_size, config.bos_token_id, &config.eos_token_ids[..]), (320, Some(0), &[2][..]));
}

/// A file that is damaged anywhere in its front is refused or read, never more.
#[test]
fn damaged_files_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let bad = folder.path().join("bad.gguf");
    let good = std::fs::read(path("qwen3.gguf")).expect("there");
    let open = |bytes: &[u8]| {
        std::fs::write(&bad, bytes).expect("written");
        Gguf::open(&bad).map(|file| {
            // Whatever is accepted answers.
            let _ = (file.config(), file.tokenizer(), file.tokenizer_settings());
            let _ = Checkpoint::from_gguf(file);
        })
    };
    let refused = |what: &str, bytes: &[u8], part: &str| {
        let message = open(bytes).expect_err(what).to_string();
        assert!(message.contains("bad.gguf") && message.contains(part), "{what}: {message}");
    };
    assert!(open(&good).is_ok());
    for length in (0..4000).step_by(7).chain([good.len() / 2, good.len() - 40]) {
        refused(&format!("{length} bytes"), &good[..length], "");
    }
    let with = |at: usize, number: u64| {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        bytes
    };
    refused("no GGUF", &with(0, 0), "no GGUF file");
    refused("another version", &with(4, 1), "version 1");
    for number in [u64::MAX, 1 << 60, 1 << 40, 100_000_000] {
        refused("a count of tensors", &with(8, number), "entries");
        refused("a count of fields", &with(16, number), "entries");
        refused("the length of a name", &with(24, number), "bytes");
    }
    // Every length, type and count in turn takes absurd values.
    for at in (24..3000).step_by(3) {
        for number in [u64::MAX, u64::from(u32::MAX), 1 << 33, 0] {
            let _ = open(&with(at, number));
        }
    }
    refused("nothing", &[], "too short");
}
