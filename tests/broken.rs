//! Checkpoints that are broken or malicious: each is refused with the file, the field and the way out, quickly and without
//! much memory.

mod fixture;

use safetensors::tensor::{SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A copy of nano, whole or in two shards.
fn nano(sharded: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let from = fixture::folder().join("nano");
    for file in ["config.json", "tokenizer.json", WEIGHTS] {
        std::fs::copy(from.join(file), folder.path().join(file)).expect("copied");
    }
    if sharded {
        let bytes = std::fs::read(from.join(WEIGHTS)).expect("there");
        let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
        let (mut shards, mut map) = ([Vec::new(), Vec::new()], BTreeMap::new());
        for (name, view) in tensors.tensors() {
            let shard = usize::from(name.contains("layers.3") || name.contains("layers.4"));
            map.insert(name.clone(), shard_name(shard));
            shards[shard].push((name, view));
        }
        for (number, tensors) in shards.into_iter().enumerate() {
            save(&folder.path().join(shard_name(number)), tensors);
        }
        write_index(folder.path(), &map);
        std::fs::remove_file(folder.path().join(WEIGHTS)).expect("removed");
    }
    folder
}

fn shard_name(number: usize) -> String {
    format!("model-0000{}-of-00002.safetensors", number + 1)
}

fn save(path: &Path, tensors: Vec<(String, TensorView<'_>)>) {
    std::fs::write(path, safetensors::serialize(tensors, None).expect("serializes")).expect("written");
}

fn write_index(folder: &Path, map: &BTreeMap<String, String>) {
    let index = serde_json::json!({ "weight_map": map }).to_string();
    std::fs::write(folder.join(INDEX), index).expect("written");
}

fn edit(path: &Path, change: impl FnOnce(String) -> String) {
    let text = std::fs::read_to_string(path).expect("readable");
    let changed = change(text.clone());
    assert_ne!(text, changed, "the edit changes {}", path.display());
    std::fs::write(path, changed).expect("writable");
}

/// Writes the weights again with other tensors.
fn rewrite(folder: &Path, change: impl FnOnce(&mut Vec<(String, TensorView<'_>)>)) {
    let bytes = std::fs::read(folder.join(WEIGHTS)).expect("there");
    let mut tensors = SafeTensors::deserialize(&bytes).expect("safetensors").tensors();
    change(&mut tensors);
    save(&folder.join(WEIGHTS), tensors);
}

/// Replaces the header of the weights, the length in front with it.
fn reheader(folder: &Path, change: impl FnOnce(String) -> String) {
    let path = folder.join(WEIGHTS);
    let bytes = std::fs::read(&path).expect("there");
    let (length, rest) = bytes.split_first_chunk::<8>().expect("a length");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let text = String::from_utf8(header.to_vec()).expect("JSON");
    let changed = change(text.clone());
    assert_ne!(text, changed);
    let front = (changed.len() as u64).to_le_bytes();
    std::fs::write(path, [&front[..], changed.as_bytes(), data].concat()).expect("written");
}

/// Runs with two gigabytes of address space and expects status 2 and a message with every one of `parts`.
fn refused(what: &str, folder: &Path, parts: &[&str]) {
    let started = Instant::now();
    let mut command = Command::new("sh");
    let script = "ulimit -v 2000000; exec \"$0\" generate x --method dense --max-new-tokens 1 --model \"$1\"";
    command.args(["-c", script, env!("CARGO_BIN_EXE_fasa")]).arg(folder).stdin(Stdio::null());
    let output = command.output().expect("the binary starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{what}: {message}");
    assert!(!message.contains("panicked"), "{what}: {message}");
    for part in parts {
        assert!(message.contains(part), "{what} should say `{part}`: {message}");
    }
    assert!(started.elapsed() < Duration::from_secs(30), "{what} took {:?}", started.elapsed());
}

type Damage = fn(&Path);

#[test]
fn broken_weights() {
    let one: [(&str, Damage, &[&str]); 9] = [
        (
            "a dtype that is no float",
            |f| reheader(f, |h| h.replacen("\"BF16\"", "\"I16\"", 1)),
            &[WEIGHTS, "I16", "F32, F16 or BF16"],
        ),
        (
            "an extra tensor",
            |f| {
                rewrite(f, |tensors| {
                    let copy = tensors[0].1.clone();
                    tensors.push(("model.layers.6.self_attn.q_proj.weight".into(), copy));
                });
            },
            &["model.layers.6.self_attn.q_proj.weight", "does not have", "config.json"],
        ),
        (
            "missing tensors, all of them listed",
            |f| {
                rewrite(f, |tensors| {
                    tensors.retain(|(name, _)| !name.contains("layers.2.mlp") && name != "model.norm.weight")
                })
            },
            &[
                "4 of the model's",
                "layers.2.mlp.up_proj.weight",
                "layers.2.mlp.gate_proj.weight",
                "`model.norm.weight`",
            ],
        ),
        (
            "a truncated file",
            |f| {
                let bytes = std::fs::read(f.join(WEIGHTS)).expect("there");
                std::fs::write(f.join(WEIGHTS), &bytes[..bytes.len() - 1000]).expect("written");
            },
            &[WEIGHTS, "truncated", "download it again"],
        ),
        (
            "an empty file",
            |f| std::fs::write(f.join(WEIGHTS), b"").expect("written"),
            &[WEIGHTS, "0 bytes", "download it again"],
        ),
        (
            "a header of 16 exabytes",
            |f| std::fs::write(f.join(WEIGHTS), [0xff; 64]).expect("written"),
            &[WEIGHTS, "header claims 18446744073709551615 bytes"],
        ),
        (
            "a header of 90 megabytes in a file of 64 bytes",
            |f| {
                std::fs::write(f.join(WEIGHTS), [&90_000_000u64.to_le_bytes()[..], &[b' '; 56]].concat())
                    .expect("written")
            },
            &[WEIGHTS, "inside its header of 90000000 bytes"],
        ),
        (
            "a tensor as large as memory goes",
            |f| reheader(f, |h| h.replacen("\"shape\":[4096,256]", "\"shape\":[4294967296,4294967296]", 1)),
            &[WEIGHTS, "header is damaged"],
        ),
        (
            "a header that is nested without end",
            |f| reheader(f, |_| "[".repeat(1 << 20)),
            &[WEIGHTS, "header is damaged"],
        ),
    ];
    for (what, damage, parts) in one {
        let folder = nano(false);
        damage(folder.path());
        refused(what, folder.path(), parts);
    }
}

#[test]
fn broken_shards() {
    // Whole, they load.
    let folder = nano(true);
    let arguments = ["generate", "x", "--method", "dense", "--max-new-tokens", "1", "--model"];
    let output = Command::new(env!("CARGO_BIN_EXE_fasa")).args(arguments).arg(folder.path()).output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cases: [(&str, Damage, &[&str]); 6] = [
        (
            "a missing shard",
            |f| std::fs::remove_file(f.join(shard_name(1))).expect("removed"),
            &[INDEX, "model-00002-of-00002.safetensors", "download the missing shard"],
        ),
        (
            "an index that names itself",
            |f| edit(&f.join(INDEX), |t| t.replace(&shard_name(1), INDEX)),
            &[INDEX, "no plain .safetensors file name"],
        ),
        (
            "shards that lead to each other",
            |f| {
                let [a, b] = [f.join(shard_name(0)), f.join(shard_name(1))];
                std::fs::remove_file(&a).expect("removed");
                std::fs::remove_file(&b).expect("removed");
                std::os::unix::fs::symlink(&a, &b).expect("linked");
                std::os::unix::fs::symlink(&b, &a).expect("linked");
            },
            &["model-0000"],
        ),
        (
            "a shard outside the folder",
            |f| edit(&f.join(INDEX), |t| t.replace(&shard_name(1), "../../etc/x.safetensors")),
            &[INDEX, "../../etc/x.safetensors", "source you trust"],
        ),
        (
            "a tensor that is not in its shard",
            |f| edit(&f.join(INDEX), |t| t.replacen(&shard_name(1), &shard_name(0), 1)),
            &[INDEX, "model.layers.3", "should be in the shard", "same revision"],
        ),
        ("half an index", |f| edit(&f.join(INDEX), |t| t[..t.len() / 2].to_owned()), &[INDEX, "damaged", "download"]),
    ];
    for (what, damage, parts) in cases {
        let folder = nano(true);
        damage(folder.path());
        refused(what, folder.path(), parts);
    }
}

#[test]
fn vocabularies_that_do_not_belong_together() {
    let vocab = |f: &Path, size: &str| {
        edit(&f.join("config.json"), |t| t.replace("\"vocab_size\": 4096", &format!("\"vocab_size\": {size}")));
    };
    let small = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":null,"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"a":0,"b":1,"x":2},"unk_token":"a"}}"#;
    let folder = nano(false);
    vocab(folder.path(), "4000");
    refused("fewer rows than tokens", folder.path(), &["tokenizer.json", "4095", "`vocab_size` is 4000"]);
    let folder = nano(false);
    vocab(folder.path(), "4200");
    let parts = [WEIGHTS, "model.embed_tokens.weight", "[4096, 256]", "[4200, 256]", "config.json"];
    refused("more rows than the weights have", folder.path(), &parts);
    let folder = nano(false);
    std::fs::write(folder.path().join("tokenizer.json"), small).expect("written");
    refused("a tokenizer of another model", folder.path(), &["tokenizer.json", "3 tokens", "4096", "another model"]);
    let folder = nano(false);
    let settings = r#"{"added_tokens_decoder": {"5": {"content": "<|endoftext|>"}}}"#;
    std::fs::write(folder.path().join("tokenizer_config.json"), settings).expect("written");
    refused(
        "special tokens of another model",
        folder.path(),
        &["tokenizer_config.json", "<|endoftext|>", "id 5", "id 0"],
    );
    for (file, text) in [("tokenizer.json", "{\"version\": \"1.0\""), ("tokenizer_config.json", "[1")] {
        let folder = nano(false);
        std::fs::write(folder.path().join(file), text).expect("written");
        refused("half a file", folder.path(), &[file, "use the tokenizer"]);
    }
}
