//! The binary with a tiered cache: the same text, and what happens when its file or its memory runs out.
#![cfg(target_os = "linux")]

mod binary;
mod fixture;

use binary::{json, refused};
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Thousands of tokens to read, and then a few to write.
fn long_prompt(folder: &Path, words: usize) -> PathBuf {
    let path = folder.join("prompt.txt");
    let text: Vec<String> = (0..words).map(|i| format!("The {} house has {} windows.", i % 97, i * 7 % 101)).collect();
    std::fs::write(&path, text.join(" ")).expect("written");
    path
}

/// Runs under a shell's limits.
fn limited(limits: &str, arguments: &[&str]) -> Output {
    let script = format!("{limits}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_fasa")]).args(arguments);
    command.stdin(Stdio::null()).output().expect("a shell")
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).expect("there").next().is_none()
}

#[test]
fn the_same_text_from_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let prompt = long_prompt(folder.path(), 60);
    let prompt = prompt.to_str().expect("UTF-8");
    let disk = tempfile::tempdir().expect("a folder");
    let common = ["generate", "--prompt-file", prompt, "--max-new-tokens", "24", "--format", "json"];
    for method in [&["--budget", "32"][..], &["--method", "dense"], &["--preset", "paper", "--budget", "5%"]] {
        let run = |cache: &[&str]| json(&[&common[..], method, cache].concat());
        let device = run(&["--cache", "device"]);
        let tiered = run(&["--cache", "tiered", "--cache-dir", disk.path().to_str().expect("UTF-8")]);
        assert_eq!(device["tokens"], tiered["tokens"], "{method:?}");
        assert_eq!(device["text"], tiered["text"]);
        assert_eq!((&device["tier"], run(&[])["tier"].clone()), (&Value::Null, Value::Null), "it fits into memory");
        let tier = &tiered["tier"];
        assert_eq!(tier["folder"].as_str(), disk.path().to_str());
        assert!(tier["bytes_written"].as_u64() > Some(0), "{tier}");
        assert_eq!(tier["hit_rate"].is_null(), method.contains(&"dense"), "{tier}");
        assert!(is_empty(disk.path()), "the file has no name, and is gone");
    }
    let demo = json(&["demo", "--tokens", "2000", "--timed-steps", "2", "--cache", "tiered", "--format", "json"]);
    assert_eq!(demo["right"], true, "{demo}");
}

#[test]
fn what_does_not_go_together_is_refused() {
    let generate = ["generate", "x", "--max-new-tokens", "2"];
    let with = |more: &[&'static str]| [&generate[..], more].concat();
    refused(&with(&["--cache", "tiered", "--cache-dir", "no/such/folder"]), &["no/such/folder", "is no folder"]);
    refused(&with(&["--cache", "device", "--cache-dir", "."]), &["`--cache-dir`", "`--cache device`"]);
    refused(&with(&["--cache", "tiered", "--method", "oracle"]), &["fasa and dense", "`--cache device`"]);
}

/// A limit on the size of files stands for a disk that is full: the system refuses the room in the same call.
#[test]
fn a_full_disk_is_an_error_that_names_the_folder() {
    let disk = tempfile::tempdir().expect("a folder");
    let path = disk.path().to_str().expect("UTF-8");
    let arguments = ["generate", "x", "--cache", "tiered", "--cache-dir", path];
    let output = limited("trap '' XFSZ; ulimit -f 64", &arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    for part in [path, "needs 1", "bytes in this folder", "`--cache-dir`"] {
        assert!(message.contains(part), "should say `{part}`: {message}");
    }
    assert!(output.stdout.is_empty() && !message.contains("panicked"), "{message}");
    assert!(is_empty(disk.path()));
}

/// Under a limit on memory that the cache exceeds: an error with the way out where it must lie in memory, the same text
/// where it need not, without being asked for or with.
#[test]
fn a_context_larger_than_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let prompt = long_prompt(folder.path(), 680);
    let disk = folder.path().to_str().expect("UTF-8");
    let mut arguments = vec!["generate", "--prompt-file", prompt.to_str().expect("UTF-8"), "--budget", "64"];
    arguments.extend(["--max-new-tokens", "12", "--threads", "2", "--dtype", "f32", "--format", "json", "--cache"]);
    let run = |limits: &str, cache: &[&'static str]| limited(limits, &[&arguments[..], cache].concat());
    let report = |output: Output| -> Value {
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{message}");
        serde_json::from_slice(&output.stdout).expect("JSON on stdout")
    };
    let want = report(run("true", &["device"]));
    assert!(want["tokens_seen"].as_u64() > Some(6000), "{want}");
    // Kilobytes of data. The cache takes 6 kB per token, the weights are 23 MB.
    let limit = "ulimit -d 66000";
    let output = run(limit, &["device"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("too little memory") && message.contains("--cache tiered"), "{message}");
    assert!(output.stdout.is_empty(), "no token");
    for cache in ["tiered", "auto"] {
        let with = [&arguments[..], &[cache, "--cache-dir", disk]].concat();
        if cache == "auto" && on_tmpfs(folder.path()) {
            continue; // a file in memory would not help, so it is not tried
        }
        let got = report(limited(limit, &with));
        assert_eq!(got["tokens"], want["tokens"], "{cache}");
        let memory = got["tier"]["memory_bytes"].as_u64().expect("a second tier");
        assert!(8 * memory < got["tier"]["file_bytes"].as_u64().expect("bytes"), "{got}");
    }
}

/// Where each kind keeps its bytes, in figures and as a picture.
#[test]
fn memory_is_measured() {
    let disk = tempfile::tempdir().expect("a folder");
    let (folder, picture) = (disk.path().to_str().expect("UTF-8"), disk.path().join("memory.svg"));
    let bench = ["bench", "memory", "--lengths", "2k,4k", "--steps", "3", "--budget", "64", "--cache-dir", folder];
    let with = ["--format", "json", "--picture", picture.to_str().expect("UTF-8")];
    let report = json(&[&bench[..], &with].concat());
    // 16 of 32 chunks.
    assert_eq!(report["published_memory_share"].as_f64(), Some(0.25));
    let results = report["results"].as_array().expect("a list");
    assert_eq!(results.len(), 6);
    for result in results {
        let number = |key: &str| result[key].as_f64().expect("a number");
        let (tokens, what) = (number("tokens_in_cache"), result["what"].as_str().expect("a name"));
        // Six layers, two KV heads, 64 dimensions in f16.
        let dense = 6.0 * 2.0 * 256.0 * tokens;
        assert!(number("tokens_per_second") > 0.0 && number("published_bytes_fewer") >= 1.0, "{result}");
        match what {
            "fasa-m" => {
                assert!(number("tier_bytes") >= dense && number("device_bytes") < 0.4 * dense, "{result}");
                // One layer is dense.
                assert!(number("bytes_moved_per_step") > dense / 6.0, "{result}");
                assert!((0.0..=1.0).contains(&number("hit_rate")), "{result}");
            }
            _ => {
                assert!(number("device_bytes") >= dense && number("tier_bytes") == 0.0, "{result}");
                assert!(result["hit_rate"].is_null() && number("bytes_moved_per_step") == 0.0, "{result}");
            }
        }
    }
    let picture = std::fs::read_to_string(picture).expect("written");
    assert!(["fasa-m", "fasa-c", "dense", "Time per token"].iter().all(|part| picture.contains(part)));
    refused(&[&bench[..8], &["--cache", "device"]].concat(), &["no second tier", "`--what`"]);
    refused(&[&bench[..], &["--method", "dense"]].concat(), &["`--what`"]);
}

fn on_tmpfs(folder: &Path) -> bool {
    fasa_burn::cache::Placement::Auto(folder.to_owned()).is_in_memory()
}

/// A run that writes for a long time, with its cache in `disk`; returns once it has written its first text.
fn started(disk: &Path) -> (Child, Vec<u8>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fasa"));
    command.args(LONG).args(["--cache", "tiered", "--cache-dir"]).arg(disk);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the binary starts");
    let mut first = vec![0; 8];
    child.stdout.as_mut().expect("piped").read_exact(&mut first).expect("text");
    (child, first)
}

const LONG: [&str; 9] = [
    "generate",
    "Rain fell on the",
    "--budget",
    "32",
    "--max-new-tokens",
    "8000",
    "--eos-token-id",
    "4095",
    "--seed=1",
];

/// The process's file in `disk`, as the system shows it.
fn its_file(child: &Child, disk: &Path) -> PathBuf {
    let folder = PathBuf::from(format!("/proc/{}/fd", child.id()));
    let disk = disk.canonicalize().expect("there");
    let entries = std::fs::read_dir(folder).expect("running").map(|entry| entry.expect("an entry").path());
    let mut files = entries.filter(|path| std::fs::read_link(path).is_ok_and(|target| target.starts_with(&disk)));
    files.next().expect("an open file in the folder")
}

/// Waits for the end, and returns what was written and said.
fn ended(mut child: Child, first: Vec<u8>) -> (Option<i32>, Vec<u8>, String) {
    let mut text = first;
    child.stdout.take().expect("piped").read_to_end(&mut text).expect("text");
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
    (child.wait().expect("ends").code(), text, said)
}

#[test]
fn a_file_that_is_cut_ends_the_text_with_an_error_and_without_a_wrong_token() {
    let disk = tempfile::tempdir().expect("a folder");
    let (child, first) = started(disk.path());
    let file = std::fs::File::options().write(true).open(its_file(&child, disk.path())).expect("opened");
    file.set_len(4096).expect("cut");
    let (status, text, said) = ended(child, first);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("something else changed it") && !said.contains("panicked"), "{said}");
    // What it had written until then is what it writes undisturbed.
    let mut undisturbed = Command::new(env!("CARGO_BIN_EXE_fasa"))
        .args(LONG)
        .args(["--cache", "device"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let mut want = vec![0; text.len()];
    undisturbed.stdout.as_mut().expect("piped").read_exact(&mut want).expect("as much text");
    undisturbed.kill().expect("running");
    undisturbed.wait().expect("ended");
    let text = text.strip_suffix(b"\n").unwrap_or(&text);
    assert!(want.starts_with(text), "{}", String::from_utf8_lossy(text));
}

#[test]
fn nothing_is_left_behind() {
    for signal in ["INT", "TERM", "KILL"] {
        let disk = tempfile::tempdir().expect("a folder");
        let (child, first) = started(disk.path());
        its_file(&child, disk.path());
        assert!(is_empty(disk.path()), "the file has no name while it is used");
        let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
        assert!(kill.expect("kill runs").success());
        let since = Instant::now();
        let (status, ..) = ended(child, first);
        assert!(since.elapsed() < Duration::from_secs(20), "{signal}");
        assert_eq!(status, (signal != "KILL").then_some(130), "{signal}");
        assert!(is_empty(disk.path()), "{signal}");
    }
}
