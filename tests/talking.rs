//! Conversations, saved sessions and several prompts, as a user has them.

mod binary;
mod fixture;

use binary::{fasa, json, nano, refused};
use serde_json::Value;
use std::process::{Command, Output, Stdio};

/// A copy of nano that knows conversations.
fn talking_nano() -> tempfile::TempDir {
    let folder = nano();
    let template = "<|endoftext|>{% for message in messages %}\
                    {{ '\\n' + message.role + ': ' + message.content | trim }}{% endfor %}{{ '\\nassistant:' }}";
    std::fs::write(folder.path().join("chat_template.jinja"), template).expect("written");
    folder
}

/// Runs with lines on standard input.
fn with_input(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fasa"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), input.as_bytes()).expect("written");
    child.wait_with_output().expect("it ends")
}

const FIRST: &str = "The secret code of calm-otter is 31415.";
const SECOND: &str = "What is the secret code of calm-otter?";

#[test]
fn a_conversation_keeps_its_cache() {
    let folder = talking_nano();
    let model = folder.path().to_str().expect("UTF-8");
    let common = ["--model", model, "--method", "dense", "--max-new-tokens", "8", "--format", "json"];
    let chat = |extra: &[&str], input: &str| -> Vec<Value> {
        let output = with_input(&[&["chat"], &common[..], extra].concat(), input);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !message.contains("panicked"), "{message}");
        let lines = String::from_utf8(output.stdout).expect("UTF-8");
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let replies = chat(&["--system", "Be brief."], &format!("{FIRST}\n\n{SECOND}\n"));
    assert_eq!(replies.len(), 2);
    let count = |reply: &Value, key: &str| reply[key].as_u64().expect("a count");
    assert_eq!(count(&replies[0], "held_tokens"), 0);
    // The second turn reads what came after the first one's prompt, without most of the reply.
    let read = count(&replies[1], "prompt_tokens") - count(&replies[1], "held_tokens");
    assert!(count(&replies[1], "held_tokens") >= count(&replies[0], "prompt_tokens"), "{replies:?}");
    assert!(read < 40, "{replies:?}");
    // The first turn is what `generate --chat` gives.
    let once = json(&[&["generate", FIRST, "--chat", "--system", "Be brief."], &common[..]].concat());
    assert_eq!((&once["tokens"], &once["prompt_tokens"]), (&replies[0]["tokens"], &replies[0]["prompt_tokens"]));
    // A message over two lines, a new conversation, the end.
    let replies = chat(&[], &format!("{FIRST}\\\nagain\n/new\n{FIRST}\n/exit\n{SECOND}\n"));
    assert_eq!(replies.len(), 2);
    assert!(count(&replies[1], "prompt_tokens") < count(&replies[0], "prompt_tokens"), "{replies:?}");
    // A file goes with the next message.
    let file = folder.path().join("book.txt");
    std::fs::write(&file, "The lion slept. ".repeat(100)).expect("written");
    let replies = chat(&[], &format!("/read {}\n{SECOND}\n", file.display()));
    assert!(replies.len() == 1 && count(&replies[0], "prompt_tokens") > 400, "{replies:?}");
    // Text mode: replies to stdout, all else to stderr.
    let output = with_input(
        &["chat", "--model", model, "--max-new-tokens", "4", "--stop", "\n"],
        &format!("{FIRST}\n{SECOND}\n"),
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("in the cache"));
}

#[test]
fn conversations_that_cannot_be_are_refused() {
    refused(&["chat"], &["nano", "chat template", "--chat-template"]);
    refused(&["generate", "x", "--system", "Be brief."], &["--system", "--chat"]);
    refused(&["generate", "x", "--chat"], &["chat_template.jinja", "without `--chat`"]);
    let folder = talking_nano();
    let model = folder.path().to_str().expect("UTF-8");
    let template = folder.path().join("chat_template.jinja");
    for (source, parts) in [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", &["come to an end"][..]),
        ("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", &["end"]),
        ("{{ raise_exception('only one message') }}", &["refuses", "only one message"]),
        ("{{ messages[0].content", &["no chat template", "syntax"]),
    ] {
        std::fs::write(&template, source).expect("written");
        refused(&["generate", "x", "--chat", "--model", model], &[&["chat_template.jinja"], parts].concat());
    }
    let output = with_input(&["chat", "--model", model], "/nonsense\n");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_authors_generation_settings_count_unless_overridden() {
    let folder = nano();
    let model = folder.path().to_str().expect("UTF-8");
    let file = folder.path().join("generation_config.json");
    let run = |extra: &[&str]| {
        let common = ["generate", "Rain fell on the", "--model", model, "--method", "dense", "--format", "json"];
        json(&[&common[..], extra].concat())
    };
    let greedy = run(&["--max-new-tokens", "12"]);
    let third = greedy["tokens"][2].as_u64().expect("a token");
    let written = |json: &str| std::fs::write(&file, json).expect("written");
    // Ids that end a text: a list, in place of that of config.json; and again given by hand.
    written(&format!("{{\"eos_token_id\": [4095, {third}], \"max_new_tokens\": 12}}"));
    let cut = run(&[]);
    assert_eq!((cut["tokens"].as_array().map(Vec::len), &cut["stop"]), (Some(2), &"stop-token".into()));
    assert_eq!(run(&["--eos-token-id", "0"])["tokens"], greedy["tokens"]);
    assert_eq!(run(&["--ignore-generation-config", "--max-new-tokens", "12"])["tokens"], greedy["tokens"]);
    // Drawing.
    written("{\"do_sample\": true, \"temperature\": 1.5, \"max_new_tokens\": 12, \"repetition_penalty\": 1.2}");
    let drawn = run(&["--seed", "3"]);
    assert_ne!(drawn["tokens"], greedy["tokens"]);
    let by_hand =
        ["--ignore-generation-config", "--temperature", "1.5", "--top-k", "50", "--repetition-penalty", "1.2"];
    assert_eq!(run(&[&by_hand[..], &["--seed", "3", "--max-new-tokens", "12"]].concat())["tokens"], drawn["tokens"]);
    assert_eq!(run(&["--temperature", "0", "--repetition-penalty", "1"])["tokens"], greedy["tokens"]);
    for (json, parts) in [
        ("{\"temperature\": \"hot\"}", &["temperature", "hot"][..]),
        ("{\"num_beams\": 4}", &["num_beams", "--ignore-generation-config"]),
        ("{", &["not JSON"]),
    ] {
        written(json);
        refused(&["generate", "x", "--model", model], &[&["generation_config.json"], parts].concat());
    }
}

#[test]
fn a_prompt_once_read_is_saved_and_continued() {
    let folder = talking_nano();
    let model = folder.path().to_str().expect("UTF-8");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (book, saved) = (path("book.txt"), path("book.session"));
    let text = format!("{FIRST} {}", "The lion slept by the river. ".repeat(60));
    std::fs::write(&book, &text).expect("written");
    let common = ["--model", model, "--budget", "48", "--dense-below", "0"];
    let quiet = ["generate", "--prompt-file", &book, "--save-session", &saved, "--max-new-tokens", "0"];
    let output = fasa(&[&quiet[..], &common].concat());
    let note = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout.is_empty() && note.contains("tokens saved"), "{note}");
    let question = " Question: What is the secret code of calm-otter?";
    let ask = ["--max-new-tokens", "8", "--format", "json"];
    let loaded = json(&[&["generate", question, "--load-session", &saved], &common[..], &ask].concat());
    let whole = json(&[&["generate", &format!("{text}{question}")], &common[..], &ask].concat());
    assert_eq!((&loaded["tokens"], &loaded["prompt_tokens"]), (&whole["tokens"], &whole["prompt_tokens"]));
    let held = loaded["held_tokens"].as_u64().expect("a count");
    assert!(held > 300 && whole["held_tokens"] == 0, "{loaded}");
    refused(
        &[&["generate", "x", "--load-session", &saved, "--dtype", "f32"], &common[..]].concat(),
        &["book.session", "--dtype f16"],
    );
    refused(&["generate", "x", "--load-session", &book], &["book.txt", "no saved session"]);

    // A conversation goes on in another process, and its messages with it.
    let talk = path("talk.session");
    let chat = ["chat", "--model", model, "--method", "dense", "--max-new-tokens", "6", "--format", "json"];
    let at_once = with_input(&chat, &format!("{FIRST}\n{SECOND}\n")).stdout;
    let first = with_input(&[&chat[..], &["--save-session", &talk]].concat(), &format!("{FIRST}\n")).stdout;
    let second = with_input(&[&chat[..], &["--load-session", &talk]].concat(), &format!("{SECOND}\n")).stdout;
    let tokens = |lines: &[u8]| -> Vec<Value> {
        let lines = std::str::from_utf8(lines).expect("UTF-8").lines();
        lines.map(|line| serde_json::from_str::<Value>(line).expect("JSON")["tokens"].clone()).collect()
    };
    assert_eq!([tokens(&first), tokens(&second)].concat(), tokens(&at_once));
    let refusal = with_input(&[&chat[..], &["--load-session", &talk, "--system", "x"]].concat(), "");
    assert!(String::from_utf8_lossy(&refusal.stderr).contains("--system"));
}

/// Prompts of unequal length, each with its own budget, written together: what each gets alone.
#[test]
fn a_batch_is_its_prompts_one_by_one() {
    let folder = talking_nano();
    let model = folder.path().to_str().expect("UTF-8");
    let file = folder.path().join("prompts.jsonl");
    let long = format!("{FIRST} {}", "The lion slept by the river. ".repeat(60));
    let budgets = ["24", "10%", "48", "24", "64", "24", "24", "24", "24", "24"];
    let prompts: Vec<String> = (0..budgets.len()).map(|i| format!("{}{SECOND}", &long[..i * 150])).collect();
    let lines: Vec<String> = prompts
        .iter()
        .zip(budgets)
        .map(|(prompt, budget)| serde_json::json!({"prompt": prompt, "budget": budget, "seed": 5}).to_string())
        .collect();
    std::fs::write(&file, lines.join("\n\n")).expect("written");
    let path = file.to_str().expect("UTF-8");
    let common = ["--model", model, "--dense-below", "0", "--max-new-tokens", "10", "--format", "json"];
    for sampling in [&["--temperature", "0"][..], &["--temperature", "1.1", "--seed", "5"]] {
        let output = fasa(&[&["generate", "--prompts", path, "--batch", "9"], &common[..], sampling].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).expect("UTF-8");
        let batch: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(batch.len(), budgets.len());
        for (i, together) in batch.iter().enumerate() {
            let alone =
                json(&[&["generate", prompts[i].as_str(), "--budget", budgets[i]], &common[..], sampling].concat());
            for key in ["tokens", "text", "stop", "prompt_tokens", "tokens_kept"] {
                assert_eq!(together[key], alone[key], "{key} of prompt {i}");
            }
            assert_eq!(together["line"], 2 * i + 1);
        }
    }
    // Plain lines, as messages.
    std::fs::write(&file, format!("{FIRST}\n{SECOND}\n")).expect("written");
    let output = fasa(&[&["generate", "--prompts", path, "--chat"], &common[..]].concat());
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    let second: Value = serde_json::from_str(lines.lines().nth(1).expect("two lines")).expect("JSON");
    assert_eq!(second["tokens"], json(&[&["generate", SECOND, "--chat"], &common[..]].concat())["tokens"]);
    std::fs::write(&file, format!("{FIRST}\n{{\"prompt\": \"x\", \"budget\": \"0\"}}")).expect("written");
    refused(&["generate", "--prompts", path], &["line 2", "prompts.jsonl", "at least 1"]);
    std::fs::write(&file, "word ".repeat(9000)).expect("written");
    refused(&["generate", "--prompts", path], &["line 1", "positions"]);
    std::fs::write(&file, "\n").expect("written");
    refused(&["generate", "--prompts", path], &["prompts.jsonl", "one per line"]);
}
