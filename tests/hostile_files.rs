//! The fuzz targets of `fasa-burn` on any compiler: their corpus, and good files that are damaged everywhere.

mod fixture;
#[path = "../fasa-burn/fuzz/src/loaders.rs"]
mod loaders;

use std::path::PathBuf;
use std::time::{Duration, Instant};

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder: PathBuf = fixture::folder().join("../fasa-burn/fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.into_iter().map(|path| (path.display().to_string(), std::fs::read(&path).expect("there"))).collect()
}

fn run(target: &str, read: fn(&[u8])) {
    for (name, bytes) in corpus(target) {
        let started = Instant::now();
        read(&bytes);
        assert!(started.elapsed() < Duration::from_secs(10), "{name} took {:?}", started.elapsed());
        // Shorter, and with each byte changed in turn; of long files some.
        let step = (bytes.len() / 300).max(1);
        for at in (0..bytes.len()).step_by(step) {
            read(&bytes[..at]);
            for with in [0x00, 0xff, bytes[at] ^ 0x01] {
                let mut changed = bytes.clone();
                changed[at] = with;
                read(&changed);
            }
        }
    }
}

#[test]
fn weights() {
    run("read_weights", loaders::read_weights);
}

#[test]
fn json() {
    run("read_json", loaders::read_json);
}

#[test]
fn templates() {
    run("read_template", loaders::read_template);
}

#[test]
fn gguf() {
    run("read_gguf", loaders::read_gguf);
}

#[test]
fn sessions() {
    run("read_session", loaders::read_session);
}
