//! The binary as a user runs it: what it prints, and how it says what is wrong.

mod binary;
mod fixture;

use binary::{edit, fasa, json, nano, refused};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[test]
fn the_main_job() {
    let report = json(&["demo", "--format", "json", "--timed-steps", "8"]);
    assert!(report["tokens_seen"].as_u64() >= Some(6000), "{report}");
    assert!(report["depth"].as_f64() < Some(0.5), "{report}");
    assert_eq!(report["answer"], report["expected"], "{report}");
    assert_eq!(report["right"], true);
    assert_eq!(report["tokens_kept"], 128);
    let bytes = |key: &str| report[key].as_u64().expect("a count");
    assert_eq!(report["dtype"], "f16");
    // Five of six layers read 128 rows and a sketch of 18 bytes instead of 256 per token and KV head; one is dense.
    let (seen, row, heads) = (bytes("tokens_seen"), 256, 2);
    assert_eq!(bytes("cache_bytes_per_step_dense"), 6 * heads * seen * row);
    assert_eq!(bytes("cache_bytes_per_step_fasa"), heads * seen * row + 5 * heads * (seen * 18 + 128 * row));
    assert!(report["tokens_per_second_fasa"].as_f64() > Some(0.0));
}

#[test]
fn weights_and_cache_in_either_format() {
    for (dtype, row) in [("f32", 512), ("f16", 256)] {
        let with = |arguments: &[&str]| json(&[arguments, &["--dtype", dtype, "--format", "json"]].concat());
        let generated = with(&["generate", "Rain fell on the", "--max-new-tokens", "3", "--method", "dense"]);
        assert_eq!(generated["dtype"], dtype);
        let seen = generated["tokens_seen"].as_u64().expect("a count");
        assert_eq!(generated["cache_bytes_per_step"].as_u64(), Some(6 * 2 * seen * row));
        assert_eq!(with(&["inspect", "nano"])["cache_bytes_per_token"].as_u64(), Some(6 * 2 * row));
        let demo = with(&["demo", "--tokens", "2000", "--timed-steps", "2"]);
        assert_eq!((&demo["dtype"], &demo["right"]), (&dtype.into(), &true.into()));
        let eval = with(&["eval", "needle", "--instances", "1", "--tokens", "600"]);
        assert_eq!(eval["dtype"], dtype);
    }
}

/// A weight that half precision cannot hold: an error where it was asked for, single precision with a note where not.
#[test]
fn weights_too_large_for_half_precision() {
    let folder = nano();
    let weights = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("there");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    // The embedding of token 0 comes first. 2^17 in BF16.
    bytes[8 + header..][..2].copy_from_slice(&[0x00, 0x48]);
    std::fs::write(&weights, bytes).expect("written");
    let common = ["generate", "x", "--method", "dense", "--max-new-tokens", "1", "--format", "json", "--model"];
    let arguments = [&common[..], &[folder.path().to_str().expect("UTF-8")]].concat();
    let parts = ["model.safetensors", "`model.embed_tokens.weight`", "1.31072e5", "--dtype f32"];
    refused(&[&arguments[..], &["--dtype", "f16"]].concat(), &parts);
    let output = fasa(&arguments);
    assert!(output.status.success());
    let note = String::from_utf8_lossy(&output.stderr);
    assert!(["`model.embed_tokens.weight`", "1.31072e5", "f32"].iter().all(|part| note.contains(part)), "{note}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["dtype"], "f32");
}

#[test]
fn the_main_job_needs_no_arguments() {
    let output = fasa(&[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success());
    for part in ["Question: ", "right: ", "tokens attended per step", "cache bytes read per step", "decode tokens/s"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains('\u{1b}'), "no colours in a pipe: {text:?}");
}

#[test]
fn benches_print_what_the_bytes_allow() {
    let small = ["bench", "decode", "--lengths", "300,600", "--steps", "2", "--budget", "32", "--format", "json"];
    let report = json(&small);
    let results = report["results"].as_array().expect("a list");
    assert_eq!(results.len(), 4, "{report}");
    for result in results {
        assert!(result["tokens_per_second"].as_f64() > Some(0.0), "{report}");
        assert!(result["bound_tokens_per_second"].as_f64() > Some(0.0), "{report}");
    }
    let attention = ["bench", "attention", "--shape", "4,2,64", "--lengths", "1k", "--steps", "2", "--format", "json"];
    let report = json(&attention);
    assert!(report["results"][0]["fasa_over_dense"].as_f64() > Some(0.0), "{report}");
    // 1,024 rows of 256 bytes per head; 1,024 sketch rows of 18 and 256 rows.
    let allowed = 1024.0 * 256.0 / (1024.0 * 18.0 + 256.0 * 256.0);
    assert!((report["results"][0]["bound_over_dense"].as_f64().expect("a number") - allowed).abs() < 1e-9, "{report}");
    let report = json(&["bench", "prefill", "--lengths", "600,700", "--format", "json"]);
    assert_eq!(report["results"][1]["from"], 600, "{report}");
    refused(&["bench", "decode", "--lengths", "0"], &["0", "length"]);
    refused(&["bench", "decode", "--random", "gpt-2"], &["gpt-2", "llama-3.2-1b"]);
    refused(&["bench", "attention", "--shape", "4,3,64"], &["4,3,64", "divisor"]);
    refused(&["bench", "attention", "--budget", "0"], &["--budget", "1"]);
}

/// Dense attention below a length: set by hand, measured and remembered, or refused where it means nothing.
#[test]
fn short_contexts_are_dense() {
    let home = tempfile::tempdir().expect("a folder");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fasa"));
        command.env("XDG_CACHE_HOME", home.path()).env("HOME", home.path());
        command.args(arguments).args(["--threads", "1"]).output().expect("the binary runs")
    };
    let report = |arguments: &[&str]| {
        let output = run(&[arguments, &["--format", "json"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let prompt = "Rain fell on the harbour. ".repeat(20);
    let generate = ["generate", prompt.as_str(), "--max-new-tokens", "2", "--budget", "32"];
    let set = |below: &str| report(&[&generate[..], &["--dense-below", below]].concat());
    let seen = set("0")["tokens_seen"].as_u64().expect("a count");
    for (below, kept) in [(0, 32), (seen, 32), (seen + 1, seen)] {
        let report = set(&below.to_string());
        assert_eq!((&report["tokens_kept"], &report["dense_below"]), (&kept.into(), &below.into()));
    }
    // Nothing was measured yet; then it was, for this budget alone.
    assert_eq!(report(&generate)["dense_below"], 0);
    let measured = report(&["bench", "crossover", "--model", "nano", "--budget", "32"]);
    let file = measured["remembered_in"].as_str().expect("a path");
    assert_eq!(report(&generate)["dense_below"], measured["faster_from"]);
    assert_eq!(report(&[&generate[..4], &["--budget", "33"]].concat())["dense_below"], 0);
    std::fs::write(file, "[").expect("written");
    let output = run(&generate);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(2) && error.contains("crossover.json") && error.contains("delete it"),
        "{error}"
    );
    refused(&["generate", "x", "--method", "dense", "--dense-below", "9"], &["--dense-below", "--method fasa"]);
    refused(&["generate", "x", "--dense-below", "soon"], &["soon", "measured"]);
}

#[test]
fn a_covering_budget_gives_the_dense_tokens() {
    let prompt = "The secret code of calm-otter is 31415. Few people ever saw the calm otter. \
                  Question: What is the secret code of calm-otter?\nAnswer:";
    let tokens = |extra: &[&str]| {
        let mut arguments = vec!["generate", prompt, "--max-new-tokens", "40", "--format", "json"];
        arguments.extend(extra);
        json(&arguments)["tokens"].clone()
    };
    let dense = tokens(&["--method", "dense"]);
    assert_eq!(dense.as_array().map(Vec::len), Some(40));
    for extra in [&["--budget", "200"][..], &["--budget", "100%"], &["--preset", "paper", "--budget", "4096"]] {
        assert_eq!(tokens(extra), dense, "{extra:?}");
    }
    for method in ["oracle", "streaming"] {
        assert_eq!(tokens(&["--method", method, "--budget", "200"]), dense, "{method}");
    }
}

#[test]
fn prompts_come_from_an_argument_a_file_or_standard_input() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, "The old road led to").expect("written");
    let file = file.to_str().expect("UTF-8");
    let common = ["--max-new-tokens", "6", "--format", "json"];
    let text = |arguments: &[&str]| json(&[arguments, &common].concat())["text"].clone();
    let by_argument = text(&["generate", "The old road led to"]);
    assert_eq!(text(&["generate", "--prompt-file", file]), by_argument);
    let output = Command::new(env!("CARGO_BIN_EXE_fasa"))
        .arg("generate")
        .args(common)
        .stdin(std::fs::File::open(file).expect("there"))
        .output()
        .expect("the binary starts");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["text"], by_argument);
}

#[test]
fn sampling_repeats_with_its_seed_and_stops_where_told() {
    let run = |extra: &[&str]| {
        let common = ["generate", "Rain fell on the", "--max-new-tokens", "24", "--format", "json"];
        json(&[&common, extra].concat())
    };
    let drawn = ["--temperature", "1.2", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.01"];
    let with_seed = |seed| run(&[&drawn[..], &["--seed", seed]].concat())["tokens"].clone();
    assert_eq!(with_seed("1"), with_seed("1"));
    assert_ne!(with_seed("1"), with_seed("2"));
    let whole = run(&[])["text"].as_str().expect("text").to_owned();
    let stop: String = whole.chars().skip(5).take(3).collect();
    let cut = run(&["--stop", &stop]);
    assert_eq!(cut["text"].as_str(), whole.split(&stop).next());
    assert_eq!(cut["stop"], "listener");
}

#[test]
fn text_is_streamed_to_stdout_and_the_summary_to_stderr() {
    let output = fasa(&["generate", "The old road led to", "--max-new-tokens", "6"]);
    let expected = json(&["generate", "The old road led to", "--max-new-tokens", "6", "--format", "json"]);
    let text = format!("{}\n", expected["text"].as_str().expect("text"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), text);
    assert!(String::from_utf8_lossy(&output.stderr).contains("tokens read"));
}

#[test]
fn calibrate_is_deterministic_and_inspect_reads_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let run = |file: &str, extra: &[&str]| {
        let common = ["calibrate", "--samples", "2", "--tokens", "600", "--format", "json", "--output", file];
        json(&[&common, extra].concat())
    };
    let (first, second) = (path("first.profile"), path("second.profile"));
    let report = run(&first, &[]);
    assert_eq!((report["criterion"].as_str(), report["samples"].as_u64()), (Some("margin"), Some(2)));
    run(&second, &[]);
    assert_eq!(std::fs::read(&first).expect("there"), std::fs::read(&second).expect("there"));
    let inspected = json(&["inspect", &first, "--format", "json"]);
    assert_eq!(inspected["heads"].as_array().map(Vec::len), Some(12));
    assert_eq!(inspected["heads"][0]["ranking"].as_array().map(Vec::len), Some(32));
    let answer = json(&["generate", "Rain fell", "--profile", &first, "--max-new-tokens", "4", "--format", "json"]);
    assert_eq!(answer["tokens"].as_array().map(Vec::len), Some(4));

    let text = path("text.txt");
    std::fs::write(&text, "The otter sat by the brook and waited for rain. ".repeat(60)).expect("written");
    let own = ["--text", &text, "--judged", "40", "--tokens", "300", "--samples", "1", "--preset", "paper"];
    let common = ["calibrate", "--format", "json", "--output", &second];
    let report = json(&[&common[..], &own].concat());
    assert_eq!((report["criterion"].as_str(), report["steps"].as_u64()), (Some("agreement"), Some(40)));
    refused(
        &["generate", "x", "--profile", &second],
        &["second.profile", "agreement", "calibrate with the same preset"],
    );
}

#[test]
fn the_shipped_model_and_profiles_are_what_they_say() {
    for profile in ["fasa-default.profile", "fasa-paper.profile"] {
        let path = fixture::folder().join("nano").join(profile);
        let inspected = json(&["inspect", path.to_str().expect("UTF-8"), "--format", "json"]);
        assert_eq!(inspected["model"]["architecture"], "llama");
        assert_eq!(inspected["model"]["layers"], 6);
    }
    let model = json(&["inspect", "nano", "--format", "json"]);
    assert_eq!((model["parameters"].as_u64(), model["tensors"].as_u64()), (Some(5_770_496), Some(56)));
}

#[test]
fn broken_models_are_refused_by_file_and_field() {
    type Damage = (&'static str, fn(&Path), &'static [&'static str]);
    let cases: [Damage; 9] = [
        ("no weights", |f| std::fs::remove_file(f.join("model.safetensors")).expect("removed"), &["model.safetensors"]),
        ("no tokenizer", |f| std::fs::remove_file(f.join("tokenizer.json")).expect("removed"), &["tokenizer.json"]),
        ("no config", |f| std::fs::remove_file(f.join("config.json")).expect("removed"), &["config.json"]),
        (
            "truncated weights",
            |f| {
                let bytes = std::fs::read(f.join("model.safetensors")).expect("there");
                std::fs::write(f.join("model.safetensors"), &bytes[..bytes.len() / 2]).expect("written");
            },
            &["model.safetensors", "bytes"],
        ),
        (
            "another shape",
            |f| edit(&f.join("config.json"), |t| t.replace("\"intermediate_size\": 768", "\"intermediate_size\": 760")),
            &["model.safetensors", "gate_proj", "760", "768"],
        ),
        (
            "an unknown architecture",
            |f| {
                edit(&f.join("config.json"), |t| {
                    t.replace("\"llama\"", "\"mamba\"").replace("LlamaForCausalLM", "MambaForCausalLM")
                })
            },
            &["config.json", "mamba", "LlamaForCausalLM"],
        ),
        (
            "an unknown rope",
            |f| {
                edit(&f.join("config.json"), |t| {
                    t.replace(
                        "\"rope_scaling\": null",
                        "\"rope_scaling\": {\"rope_type\": \"spiral\", \"factor\": 2.0}",
                    )
                })
            },
            &["config.json", "rope_scaling", "spiral"],
        ),
        ("half a config", |f| edit(&f.join("config.json"), |t| t[..t.len() / 2].to_owned()), &["config.json"]),
        (
            "layers that are not there",
            |f| edit(&f.join("config.json"), |t| t.replace("\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7")),
            &["model.layers.6.", "missing"],
        ),
    ];
    for (what, damage, parts) in cases {
        let folder = nano();
        damage(folder.path());
        println!("{what}");
        refused(&["generate", "x", "--model", folder.path().to_str().expect("UTF-8")], parts);
    }
    // One layer fewer than the checkpoint has: weights must not be ignored silently.
    let folder = nano();
    edit(&folder.path().join("config.json"), |t| t.replace("\"num_hidden_layers\": 6", "\"num_hidden_layers\": 5"));
    refused(
        &["generate", "x", "--model", folder.path().to_str().expect("UTF-8")],
        &["model.layers.5.", "does not have"],
    );
    refused(&["generate", "x", "--model", "no-such-folder"], &["no-such-folder", "--model"]);
}

#[test]
fn bad_profiles_are_refused() {
    let folder = nano();
    let model = folder.path().to_str().expect("UTF-8");
    let profile = folder.path().join("fasa-default.profile");
    let good = std::fs::read(&profile).expect("there");
    let run = |bytes: &[u8], parts: &[&str]| {
        std::fs::write(&profile, bytes).expect("written");
        refused(&["generate", "x", "--model", model], &[&["fasa-default.profile"], parts].concat());
    };
    let mut flipped = good.clone();
    flipped[2000] ^= 1;
    run(&flipped, &["checksum"]);
    run(&good[..good.len() - 1], &["bytes long"]);
    run(b"not a profile at all, but long enough", &["not a FASA profile"]);
    run(&[], &["not a FASA profile"]);
    std::fs::remove_file(&profile).expect("removed");
    refused(&["generate", "x", "--model", model], &["fasa-default.profile", "fasa calibrate"]);
    refused(&["inspect", model.replace("/", "/no-").as_str()], &["cannot read"]);

    // The same shape with other weights: flip one bit of the first key projection.
    std::fs::write(&profile, &good).expect("written");
    let weights = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("there");
    let last = bytes.len() - 2;
    bytes[last] ^= 1; // the final norm is stored last
    std::fs::write(&weights, bytes).expect("written");
    refused(&["generate", "x", "--model", model], &["fasa-default.profile", "another model", "weights"]);
}

#[test]
fn bad_requests_are_refused() {
    let long = "word ".repeat(9000);
    let folder = tempfile::tempdir().expect("a folder");
    let file: PathBuf = folder.path().join("long.txt");
    std::fs::write(&file, long).expect("written");
    let file = file.to_str().expect("UTF-8");
    let cases: [(&[&str], &[&str]); 15] = [
        (&["generate", "--prompt-file", file], &["positions", "8192", "shorten the prompt"]),
        (&["generate", "x", "--budget", "0"], &["--budget", "at least 1"]),
        (&["generate", "x", "--budget", "0%"], &["--budget", "above 0%"]),
        (&["generate", "x", "--budget", "0.1"], &["--budget", "3%"]),
        (&["generate", "x", "--chunks", "33"], &["chunks", "half the head dimension"]),
        (&["generate", "x", "--chunks", "0"], &["chunks"]),
        (&["generate", "x", "--temperature", "-1"], &["temperature"]),
        (&["generate", "x", "--temperature", "1", "--top-p", "1.5"], &["top_p"]),
        (&["generate", "x", "--max-new-tokens", "0"], &["max_new_tokens", "at least 1"]),
        (&["generate", "x", "--device", "abacus"], &["abacus", "cpu"]),
        (&["generate", "--prompt-file", "no-such-file"], &["no-such-file"]),
        (&["calibrate", "--tokens", "100", "--output", file], &["too short"]),
        (&["calibrate", "--text", "no-such-file"], &["no-such-file"]),
        (&["calibrate", "--criterion", "agreement"], &["--output"]),
        (&["eval", "riddle"], &["riddle", "needle, kv, chain, recall"]),
    ];
    for (arguments, parts) in cases {
        refused(arguments, parts);
    }
}

/// Every method in one run; a second run asks only what is new.
/// Ctrl-C in the middle of a prompt ends the run with the shell's status for it, and leaves no half-written profile.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_run_cleanly() {
    let folder = tempfile::tempdir().expect("a folder");
    let profile = folder.path().join("never.profile");
    let runs: [&[&str]; 4] = [
        &["demo"],
        &["generate", "Once", "--max-new-tokens", "8000"],
        &["calibrate", "--samples", "64", "--output", profile.to_str().expect("UTF-8")],
        &["eval", "kv", "--instances", "1000"],
    ];
    for arguments in runs {
        let child = Command::new(env!("CARGO_BIN_EXE_fasa"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        // Long enough to be past the start, far shorter than the run.
        std::thread::sleep(std::time::Duration::from_millis(700));
        let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
        assert!(status.success());
        let output = child.wait_with_output().expect("it ends");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(130), "{arguments:?}: {message}");
        assert!(!message.contains("panicked") && message.contains("stopped"), "{arguments:?}: {message}");
    }
    assert!(!profile.exists());
}

#[test]
fn devices_are_listed_and_others_refused() {
    let report = json(&["devices", "--format", "json"]);
    assert_eq!(report["devices"][0]["name"], "cpu", "{report}");
    assert!(report["devices"][0]["description"].as_str().is_some_and(|d| d.contains("threads")), "{report}");
    let text = String::from_utf8(fasa(&["devices"]).stdout).expect("UTF-8");
    assert!(text.starts_with("cpu "), "{text}");
    for kind in report["not_built"].as_array().expect("a list") {
        let kind = kind.as_str().expect("a name");
        assert!(text.contains(kind), "{text}");
        refused(&["generate", "x", "--device", kind], &[kind, "not in this build", "--features", "fasa devices"]);
    }
    for bad in ["gpu", "cuda:x", "cpu:1"] {
        refused(&["demo", "--device", bad], &[bad, "unknown", "vulkan"]);
    }
}
