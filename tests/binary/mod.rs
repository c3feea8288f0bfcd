//! The binary, for tests that run it.

// Not every test needs everything.
#![allow(dead_code)]

use crate::fixture;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs without input.
pub fn fasa(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fasa"));
    command.args(arguments).stdin(Stdio::null()).output().expect("the binary starts")
}

/// Runs, and reads what it prints.
pub fn json(arguments: &[&str]) -> Value {
    let output = fasa(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON on stdout")
}

/// A copy of the nano model's folder that a test may damage.
pub fn nano() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "tokenizer.json", "model.safetensors", "fasa-default.profile"] {
        std::fs::copy(fixture::folder().join("nano").join(file), folder.path().join(file)).expect("copied");
    }
    folder
}

/// Changes a text file.
pub fn edit(path: &Path, change: impl FnOnce(String) -> String) {
    let text = std::fs::read_to_string(path).expect("readable");
    let changed = change(text.clone());
    assert_ne!(text, changed, "the edit changes {}", path.display());
    std::fs::write(path, changed).expect("writable");
}

/// Runs and expects status 2 and a message with every one of `parts`.
pub fn refused(arguments: &[&str], parts: &[&str]) {
    let output = fasa(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    for part in parts {
        assert!(message.contains(part), "{arguments:?} should say `{part}`: {message}");
    }
}
