//! Does the method answer? Questions about a text of 2,048 tokens, 128 of which each step may read.

use serde_json::Value;
use std::process::{Command, Stdio};

#[test]
fn the_default_preset_answers_what_dense_attention_answers() {
    let output = Command::new(env!("CARGO_BIN_EXE_fasa"))
        .args(["eval", "needle", "kv", "--tokens", "2048", "--instances", "32", "--budget", "128", "--format", "json"])
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    let count = |task: &str, method: &str, key: &str| {
        let cells = report["results"].as_array().expect("results");
        let cell = cells.iter().find(|c| c["task"] == task && c["method"] == method).expect("this method ran");
        cell[key].as_u64().expect("a count")
    };
    for task in ["needle", "kv"] {
        let dense = count(task, "dense", "right");
        let ours = count(task, "fasa (default)", "right_of_dense");
        let paper = count(task, "fasa (paper)", "right_of_dense");
        println!("{task}: dense {dense} of 32 right; of those, default {ours}, paper {paper}");
        assert!(dense >= 29, "{task}: the model itself answers {dense} of 32");
        assert!(20 * ours >= 19 * dense, "{task}: {ours} of the {dense} that dense attention gets right");
    }
}
