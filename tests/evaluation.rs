//! `fasa eval`, `fasa inspect --heatmap` and `fasa report` as a user runs them: every task, setting and picture, small.

mod binary;
mod fixture;

use binary::{fasa, json, refused};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn text(arguments: &[&str]) -> String {
    let output = fasa(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The results of `fasa eval` with these arguments.
fn eval(arguments: &[&str]) -> Vec<Value> {
    let report = text(&[&["eval"], arguments, &["--format", "json"]].concat());
    let report: Value = serde_json::from_str(&report).expect("JSON on stdout");
    report["results"].as_array().expect("a list").clone()
}

fn cell<'a>(cells: &'a [Value], task: &str, method: &str) -> &'a Value {
    cells.iter().find(|c| c["task"] == task && c["method"] == method).unwrap_or_else(|| panic!("{method}: {cells:?}"))
}

fn data(name: &str) -> String {
    fixture::folder().join("questions").join(name).display().to_string()
}

/// What ranks the chunks makes a difference, and each ranking is its own: good ones answer what drawn ones do not.
#[test]
fn every_criterion_ranks_chunks_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    // A greedy calibration of the usual size takes a minute.
    let greedy = folder.path().join("small.profile").display().to_string();
    text(&["calibrate", "--criterion", "greedy", "--samples", "2", "--tokens", "500", "--output", &greedy]);
    let methods = format!(
        "dense,default,default:criterion=agreement,default:criterion=greedy:profile={greedy},default:criterion=neighbours,\
         default:criterion=random,default:criterion=random:seed=1"
    );
    let common = ["--tokens", "900", "--instances", "6", "--budget", "40", "--chunks", "6", "--methods", &methods];
    let cells = eval(&[&["kv"], &common[..]].concat());
    assert_eq!(cells.len(), 7);
    let right = |method: &str| cell(&cells, "kv", method)["right"].as_u64().expect("a count");
    let dense = right("dense");
    assert!(dense >= 5, "{cells:?}");
    assert!(right("fasa (default, chunks 6)") > right("fasa (default, chunks 6, criterion random)"), "{cells:?}");
    assert!(right("fasa (default, chunks 6, criterion greedy, profile small)") > 0, "{cells:?}");
    let profiles: std::collections::HashSet<&str> = cells.iter().filter_map(|c| c["profile"].as_str()).collect();
    assert_eq!(profiles.len(), 6, "six rankings: {cells:?}");
    for cell in &cells {
        assert_eq!(cell["chunks"][0].as_u64(), (cell["method"] != "dense").then_some(6), "{cell}");
    }
}

#[test]
fn facts_are_hidden_in_any_text_at_any_depth() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tale.txt");
    std::fs::write(&path, "The heron stood in the reeds. Nobody had seen it arrive. ".repeat(80)).expect("written");
    let haystack = path.to_str().expect("UTF-8");
    let results = folder.path().join("r.jsonl");
    let common = ["--tokens", "600", "--instances", "4", "--budget", "64", "--methods", "dense,streaming", "--results"];
    let common = [&common[..], &[results.to_str().expect("UTF-8")]].concat();
    let right = |extra: &[&str]| {
        let cells = eval(&[&["needle"], extra, &common].concat());
        ["dense", "streaming"].map(|method| cell(&cells, "needle", method)["right"].as_u64().expect("a count"))
    };
    // At the end a recent window answers, at the start it cannot.
    let [dense, _] = right(&["--haystack", haystack, "--depth", "0.1..0.5"]);
    assert!(dense >= 3, "{dense} of 4");
    assert_eq!(right(&["--haystack", haystack, "--depth", "0.1..0.5"])[1], 0);
    assert!(right(&["--depth", "0.97..1"])[1] >= 3);
    // Three settings are three: none takes another's results.
    assert_eq!(right(&["--depth", "0.1..0.5"])[1], 0);
    let lines = std::fs::read_to_string(&results).expect("written");
    assert_eq!(lines.matches("\"run\"").count(), 3, "{lines}");
    assert!(lines.contains("haystack tale.txt") && lines.contains("depth 0.97..1"), "{lines}");
    refused(&["eval", "kv", "--haystack", haystack], &["kv", "no prose", "--haystack"]);
    refused(&["eval", "needle", "--haystack", "no-such-file"], &["no-such-file"]);
    refused(&["eval", "needle", "--depth", "0.5"], &["low..high"]);
}

/// When the question is decoded too, dense attention still answers, and what only looks at the prompt's end does not know
/// what will be asked.
#[test]
fn questions_can_be_decoded_too() {
    let common = ["recall", "--tokens", "700", "--instances", "6", "--budget", "200"];
    let right = |protocol: &str| {
        let cells = eval(&[&common[..], &["--methods", "dense,default,snapkv", "--protocol", protocol]].concat());
        ["dense", "fasa (default)", "snapkv"]
            .map(|method| cell(&cells, "recall", method)["right"].as_u64().expect("a count"))
    };
    let ([dense, ours, snapkv], [dense_2, ours_2, snapkv_2]) = (right("answer"), right("question"));
    assert!(dense >= 5 && dense_2 >= 5 && ours >= 5 && ours_2 >= 5, "{:?}", (dense, dense_2, ours, ours_2));
    assert!(snapkv_2 < snapkv, "SnapKV: {snapkv} with the question in the prompt, {snapkv_2} without");
}

#[test]
fn variants_after_ruler_are_asked_and_scored_by_value() {
    let tasks = ["multikey", "multivalue", "tracking"];
    let common = ["--tokens", "700", "--instances", "2", "--budget", "64", "--methods", "dense,default"];
    let cells = eval(&[&tasks[..], &common].concat());
    assert_eq!(cells.len(), 6);
    for (task, values) in tasks.into_iter().zip([1.0, 4.0, 4.0]) {
        let score = cell(&cells, task, "dense")["score"].as_f64().expect("a number");
        assert!((score * 2.0 * values).fract() == 0.0, "{task}: {score} is a share of {values} values");
    }
    assert_eq!(cell(&cells, "multikey", "dense")["right"], 2, "{cells:?}");
}

#[test]
fn agreement_with_true_attention() {
    let methods = "dense,oracle,default,default:criterion=random,streaming,snapkv";
    let common = ["agreement", "--tokens", "600", "--instances", "1", "--budget", "48", "--methods", methods];
    let cells = eval(&common);
    assert_eq!(cells.len(), 4 * 6);
    let of = |method: &str| cell(&cells, "agreement/kv", method);
    let score = |method: &str| of(method)["score"].as_f64().expect("a number");
    assert_eq!((score("dense"), of("dense").get("layers")), (1.0, None));
    assert_eq!(of("oracle")["layers"].as_array().map(Vec::len), Some(5), "layer 0 is dense");
    // The oracle's choice is the best one but for the guaranteed tokens.
    for layer in of("oracle")["layers"].as_array().expect("a list") {
        assert!(layer["tokens"].as_f64() > Some(0.5) && layer["mass"].as_f64() <= Some(1.0 + 1e-9), "{layer}");
        assert!(layer.get("single").is_none(), "no chunks: {layer}");
    }
    assert!(score("oracle") >= score("fasa (default)") && score("fasa (default)") > score("streaming"), "{cells:?}");
    let mean = |method: &str, key: &str| {
        let layers = of(method)["layers"].as_array().expect("a list");
        layers.iter().map(|l| l[key].as_f64().expect("a number")).sum::<f64>() / layers.len() as f64
    };
    assert!(mean("fasa (default)", "compound") > mean("fasa (default)", "single"), "{cells:?}");
    assert!(mean("fasa (default)", "compound") > mean("fasa (default, criterion random)", "compound"), "{cells:?}");

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("text.txt");
    std::fs::write(&path, "The otter sat by the brook and waited for rain. ".repeat(60)).expect("written");
    let over = ["--text", path.to_str().expect("UTF-8"), "--decoded", "8", "--tokens", "300", "--instances", "1"];
    let table = text(&[&["eval", "agreement", "--methods", "default", "--budget", "48"], &over[..]].concat());
    for part in ["agreement/ppl", "chunk alone", "attention by layer"] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

/// Prompts are cut in their middle, answers written and scored by the task's own metric.
#[test]
fn published_questions() {
    let common = ["--methods", "dense,default", "--budget", "64", "--instances", "2", "--data"];
    let folder = fixture::folder().join("questions").display().to_string();
    let cells = eval(&[&["longbench", "--tokens", "300"], &common[..], &[&folder]].concat());
    assert_eq!(cells.len(), 2 * 4, "{cells:?}");
    for task in ["hotpotqa", "samsum", "passage_retrieval_en", "lcc"] {
        for method in ["dense", "fasa (default)"] {
            let cell = cell(&cells, task, method);
            assert_eq!((cell["instances"].as_u64(), cell["is_written"].as_bool()), (Some(2), Some(true)));
            assert!((0.0..=1.0).contains(&cell["score"].as_f64().expect("a number")));
            assert!(cell["answer_tokens"].as_f64() >= Some(1.0), "{cell}");
        }
    }
    let sampled = ["--samples", "3", "--temperature", "0.8", "--max-new-tokens", "12", "--seed", "4"];
    for (task, file) in [("gsm8k", "gsm8k.jsonl"), ("math500", "math500.jsonl"), ("aime24", "aime24.jsonl")] {
        let run = |extra: &[&str]| eval(&[&[task, "--shots", "1"], extra, &common[..], &[&data(file)]].concat());
        let drawn = run(&sampled);
        assert_eq!(drawn, run(&sampled), "{task}: the same seed draws the same answers");
        let cell = cell(&drawn, task, "dense");
        assert!(cell["answer_tokens"].as_f64() > Some(1.0) && cell["answer_tokens"].as_f64() <= Some(12.0), "{cell}");
    }
    refused(&["eval", "longbench"], &["longbench", "--data"]);
    refused(&["eval", "longbench", "--data", &data("gsm8k.jsonl")], &["line 1", "gsm8k.jsonl"]);
    refused(&["eval", "gsm8k", "--data", &data("math500.jsonl")], &["line 1", "####"]);
    refused(&["eval", "gsm8k", "--data", &data("gsm8k.jsonl"), "--samples", "4"], &["--samples", "--temperature"]);
    refused(&["eval", "gsm8k", "--data", "no-such.jsonl"], &["no-such.jsonl", "--data"]);
    let long = ["eval", "gsm8k", "--data", &data("gsm8k.jsonl"), "--max-new-tokens", "9000"];
    refused(&long, &["positions", "--max-new-tokens"]);
    refused(&["eval", "longbench", "--tokens", "8192", "--data", &folder], &["8192", "positions", "--tokens"]);
}

fn is_png(path: &Path) -> bool {
    std::fs::read(path).expect("written").starts_with(b"\x89PNG\r\n\x1a\n")
}

#[test]
fn pictures_of_profiles_and_scores() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name);
    let name = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    let profile = fixture::folder().join("nano/fasa-paper.profile").display().to_string();
    let (svg, png) = (file("map.svg"), file("map.png"));
    text(&["inspect", &profile, "--heatmap", &name(&svg)]);
    text(&["inspect", &profile, "--heatmap", &name(&png)]);
    let drawn = std::fs::read_to_string(&svg).expect("written");
    assert!(drawn.contains("layer 5") && drawn.contains("query head 3, chunk 31") && is_png(&png));
    let printed = text(&["inspect", &profile, "--heatmap"]);
    assert!(printed.contains("layer 5, 0 to ") && !printed.contains('\u{1b}'), "no colours in a pipe: {printed}");
    refused(&["inspect", &profile, "--heatmap", "map.gif"], &["map.gif", ".svg"]);
    refused(&["inspect", "nano", "--heatmap"], &["--heatmap", "profile"]);

    let methods = "dense,default,default:chunks=4,streaming";
    let common =
        ["eval", "kv", "needle", "--tokens", "500", "--instances", "1", "--budget", "32,64", "--methods", methods];
    let (svg, png) = (file("scores.svg"), file("scores.png"));
    text(&[&common[..], &["--plot", &name(&svg)]].concat());
    text(&[&common[..], &["--plot", &name(&png)]].concat());
    let drawn = std::fs::read_to_string(&svg).expect("written");
    for part in
        ["budget (tokens per step)", "cache bytes per step (MB)", "chunks (F)", "fasa (default, chunks 4) at 64"]
    {
        assert!(drawn.contains(part), "{part}: {drawn}");
    }
    assert!(is_png(&png));
    let printed = text(&[&common[..], &["--plot"]].concat());
    assert!(printed.contains("kv over budget") && printed.contains("b fasa (default)"), "{printed}");
}

/// The same text twice is the same calibration; another K is nearly so, another criterion is not.
#[test]
fn calibrations_are_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tale.txt");
    std::fs::write(&path, "The otter sat by the brook and waited for rain. ".repeat(60)).expect("written");
    let tale = path.to_str().expect("UTF-8");
    let small = ["--samples", "1", "--tokens", "400", "--judged", "40", "--agreement-k", "16,64", "--chunks", "8,32"];
    let run = [&["overlap", "--text", tale, "--built-in", "0", "--format", "json"], &small[..]].concat();
    let report: Value = serde_json::from_str(&text(&run)).expect("JSON");
    assert_eq!(
        report["calibrations"],
        serde_json::json!(["built in 0, K 16", "built in 0, K 64", "tale, K 16", "tale, K 64"])
    );
    let share = |f: usize, a: usize, b: usize| report["overlaps"][f]["shares"][a][b].as_f64().expect("a number");
    for i in 0..4 {
        assert_eq!(share(0, i, i), 1.0);
        for j in 0..4 {
            assert_eq!((share(1, i, j), share(0, i, j)), (1.0, share(0, j, i)), "all 32 chunks are the same set");
        }
    }
    assert!(share(0, 0, 1) > share(0, 0, 2), "K changes less than the text: {report}");
    assert!(share(0, 0, 1) > 0.25 && share(0, 0, 1) < 1.0, "{report}");
    let [ours, paper] = ["fasa-default.profile", "fasa-paper.profile"]
        .map(|name| fixture::folder().join("nano").join(name).display().to_string());
    refused(&["overlap", &ours, &paper], &["12", "24", "one scope"]);
    assert!(text(&["overlap", &paper, &paper]).contains("100.0"));
    refused(&["overlap", &paper], &["nothing to compare"]);
    refused(&["overlap", &paper, &paper, "--chunks", "33"], &["33", "32"]);
}

#[test]
fn evaluations_go_on_where_they_ended() {
    let folder = tempfile::tempdir().expect("a folder");
    let results = folder.path().join("results.jsonl");
    let path = results.to_str().expect("UTF-8");
    let methods = "dense,default,paper,oracle,quest,sparq,streaming,random,snapkv,h2o,tova,rkv,default:top-p=0.9,\
                   default:pyramid=4";
    let common =
        ["eval", "needle", "kv", "--tokens", "500", "--budget", "32,64", "--format", "json", "--results", path];
    let with = |methods: &str, instances: &str| {
        json(&[&common[..], &["--methods", methods, "--instances", instances]].concat())
    };
    let lines = || std::fs::read_to_string(&results).expect("written").lines().count();
    let first = with(methods, "1");
    // One line per run and task; dense attention has no budget.
    assert_eq!(lines(), 2 + 2 * (1 + 13 * 2), "{first}");
    let cells = first["results"].as_array().expect("a list");
    assert_eq!(cells.len(), 2 * (1 + 13 * 2));
    let of = |method: &str, budget: &str| {
        let cell = cells.iter().find(|c| c["method"] == method && c["budget"] == budget && c["task"] == "kv");
        cell.expect("this method ran")["cache_bytes_per_step"].as_u64().expect("a count")
    };
    // A row of keys and values is 256 bytes; layer 0 is dense, two KV heads share 64 rows each in the other five.
    let seen = of("dense", "") / (6 * 2 * 256);
    assert_eq!(of("streaming", "64"), 2 * seen * 256 + 5 * 2 * 64 * 256);
    assert_eq!(of("random", "64"), 2 * seen * 256 + 5 * 4 * 64 * 256);
    assert_eq!(of("oracle", "64"), of("dense", ""));
    assert!(of("fasa (default, top-p 0.9)", "64") <= 2 * seen * 256 + 5 * 2 * (64 * 256 + seen * 64));

    let before = lines();
    assert_eq!(with(methods, "1"), first);
    assert_eq!(lines(), before, "nothing was asked again");
    // A run that was stopped in the middle of a line.
    let text = std::fs::read_to_string(&results).expect("written");
    std::fs::write(&results, &text[..text.len() - 20]).expect("written");
    assert_eq!(with(methods, "1"), first);
    assert_eq!(lines(), before + 1, "the cut answer, and the run that gave it again");
    with("dense,default", "2");
    assert_eq!(lines(), before + 1 + 2 + 2 * 3, "one more question, for three cells");
}

/// A budget that covers the text is dense attention, in perplexity too; a start token that was cut is noticed.
#[test]
fn perplexities_of_a_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "The otter sat by the brook and waited for rain. ".repeat(40)).expect("written");
    let text = text.to_str().expect("UTF-8");
    let common = ["eval", "ppl", "--text", text, "--tokens", "200", "--decoded", "40", "--instances", "1"];
    let report =
        json(&[&common[..], &["--methods", "dense,default,random", "--budget", "4,1000", "--format", "json"]].concat());
    let score = |method: &str, budget: &str| {
        let cells = report["results"].as_array().expect("a list");
        let cell = cells.iter().find(|c| c["method"] == method && c["budget"] == budget).expect("this method ran");
        cell["score"].as_f64().expect("a number")
    };
    assert!(score("dense", "") > 1.0 && score("dense", "") < 10.0, "{report}");
    assert_eq!(score("fasa (default)", "1000"), score("dense", ""));
    assert!(score("random", "4") > score("dense", ""), "{report}");
    refused(&["eval", "ppl"], &["--text"]);
    refused(&["eval", "ppl", "--text", text, "--tokens", "8000"], &["positions", "8192"]);
    refused(&["eval", "ppl", "--text", "no-such-file"], &["no-such-file"]);
}

#[test]
fn methods_with_wrong_settings_are_refused() {
    let cases: [(&str, &[&str]); 5] = [
        ("magic", &["magic", "dense, default, paper"]),
        ("quest:chunks=8", &["quest", "chunks", "tokens-per"]),
        ("default:chunks=99", &["chunks", "half the head dimension"]),
        ("dense,dense", &["dense", "twice"]),
        ("default:profile=no-such.profile", &["no-such.profile"]),
    ];
    for (methods, parts) in cases {
        refused(&["eval", "kv", "--instances", "1", "--tokens", "300", "--methods", methods], parts);
    }
    refused(
        &["eval", "kv", "--instances", "1", "--tokens", "300", "--methods", "h2o", "--budget", "1"],
        &["h2o", "budget", "beside the new token"],
    );
}
