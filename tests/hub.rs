//! Models by name, from a server on this machine that speaks as the hub does.

mod fixture;

use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];
const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// What was asked for: the line of the request, then the headers that matter.
type Requests = Arc<Mutex<Vec<String>>>;

/// Serves nano as `fasa/nano` and returns the address.
fn serve(requests: Requests) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let requests = requests.clone();
            std::thread::spawn(move || answer(stream, &requests));
        }
    });
    address
}

fn answer(mut stream: TcpStream, requests: &Requests) {
    let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
    while let Some(Ok(first)) = lines.next() {
        let headers: Vec<String> = lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let header = |name: &str| {
            let found =
                headers.iter().find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)));
            found.map(|(_, value)| value.to_owned())
        };
        let (range, token) = (header("range"), header("authorization"));
        requests.lock().expect("unpoisoned").push(format!("{first} {range:?} {token:?}"));
        let path = first.split(' ').nth(1).expect("a path");
        let (status, extra, body) = if path.starts_with("/api/models/fasa/nano") {
            let siblings: Vec<_> = FILES.iter().map(|file| json!({"rfilename": file})).collect();
            ("200 OK", String::new(), json!({"sha": SHA, "siblings": siblings}).to_string().into_bytes())
        } else if let Some(file) = FILES.iter().find(|file| path == format!("/fasa/nano/resolve/{SHA}/{file}")) {
            let bytes = std::fs::read(fixture::folder().join("nano").join(file)).expect("there");
            let range = range.expect("the library asks for ranges");
            let (from, to) = range.strip_prefix("bytes=").and_then(|r| r.split_once('-')).expect("a range");
            let from: usize = from.parse().expect("a number");
            let to = to.parse().map_or(bytes.len(), |to: usize| (to + 1).min(bytes.len()));
            let extra = format!(
                "etag: \"{file}-tag\"\r\nx-repo-commit: {SHA}\r\ncontent-range: bytes {from}-{}/{}\r\n",
                to.saturating_sub(1),
                bytes.len()
            );
            ("206 Partial Content", extra, bytes[from..to].to_vec())
        } else {
            ("404 Not Found", String::new(), Vec::new())
        };
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{extra}\r\n", body.len());
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).is_err() {
            return;
        }
    }
}

fn fasa(home: &Path, endpoint: &str, model: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fasa"));
    command.args(["generate", "x", "--method", "dense", "--max-new-tokens", "1", "--format", "json", "--model", model]);
    command.env("HF_HOME", home).env("HF_ENDPOINT", endpoint).env_remove("HF_TOKEN").env_remove("HF_HUB_OFFLINE");
    command.envs(variables.iter().copied()).output().expect("the binary starts")
}

#[test]
fn a_model_is_fetched_once_and_then_found_without_the_hub() {
    let home = tempfile::tempdir().expect("a folder");
    let requests = Requests::default();
    let endpoint = serve(requests.clone());
    let run = |model: &str, variables: &[(&str, &str)]| {
        requests.lock().expect("unpoisoned").clear();
        let output = fasa(home.path(), &endpoint, model, variables);
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
            requests.lock().expect("unpoisoned").clone(),
        )
    };
    let offline = [("HF_HUB_OFFLINE", "1")];
    let (status, message, asked) = run("fasa/nano", &offline);
    assert!(status == Some(2) && message.contains("HF_HUB_OFFLINE") && asked.is_empty(), "{message} {asked:?}");

    // Half of the weights are there from a download that was cut short.
    let blobs = home.path().join("hub/models--fasa--nano/blobs");
    std::fs::create_dir_all(&blobs).expect("created");
    let weights = std::fs::read(fixture::folder().join("nano/model.safetensors")).expect("there");
    let half = weights.len() / 2;
    std::fs::write(blobs.join("model.part"), b"").expect("written");
    std::fs::write(blobs.join("model.safetensors-tag").with_extension("part"), &weights[..half]).expect("written");
    let (status, message, asked) = run("fasa/nano", &[("HF_TOKEN", "secret")]);
    assert_eq!(status, Some(0), "{message}");
    assert!(asked.iter().any(|line| line.contains(&format!("bytes={half}-"))), "continued: {asked:?}");
    assert!(asked.iter().all(|line| line.contains("Bearer secret")), "{asked:?}");
    assert!(home.path().join(format!("hub/models--fasa--nano/snapshots/{SHA}/config.json")).exists());

    // Again: only the commit is asked for; offline: nothing.
    let (status, message, asked) = run("fasa/nano", &[]);
    assert!(status == Some(0) && asked.len() == 1 && asked[0].ends_with("None None"), "{message} {asked:?}");
    let (status, message, asked) = run("fasa/nano", &offline);
    assert!(status == Some(0) && asked.is_empty(), "{message} {asked:?}");

    let (status, message, _) = run("fasa/mega", &[]);
    assert!(status == Some(2) && message.contains("`fasa/mega`") && message.contains("HF_TOKEN"), "{message}");
}
