//! The page of `fasa report`, as text and, where there is a Chromium, as a browser shows it.

mod fixture;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn fasa(arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fasa"));
    let output = command.args(arguments).stdin(Stdio::null()).output().expect("the binary starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).expect("UTF-8"))
}

/// A page of small runs of every kind.
fn page(folder: &Path) -> PathBuf {
    let results = folder.join("results.jsonl");
    let results = results.to_str().expect("UTF-8");
    let text = folder.join("a <text>.txt");
    std::fs::write(&text, "The otter sat by the brook and waited for rain. ".repeat(60)).expect("written");
    let text = text.to_str().expect("UTF-8");
    let methods = "dense,default,default:chunks=4,streaming,default:criterion=random:sketch=f16:sinks=0";
    let common = ["--budget", "32,64", "--instances", "2", "--methods", methods, "--results", results];
    let runs: [&[&str]; 3] = [
        &["eval", "kv", "needle", "--tokens", "500"],
        &["eval", "agreement", "--text", text, "--tokens", "200", "--decoded", "6"],
        &["eval", "ppl", "--text", text, "--tokens", "200", "--decoded", "20"],
    ];
    for run in runs {
        let (ok, said) = fasa(&[run, &common].concat());
        assert!(ok, "{said}");
    }
    let page = folder.join("page.html");
    let profile = fixture::folder().join("nano/fasa-default.profile").display().to_string();
    let out = page.to_str().expect("UTF-8");
    let (ok, said) = fasa(&["report", results, "--profile", &profile, "--title", "nano & <others>", "--output", out]);
    assert!(ok && said.contains("page.html"), "{said}");
    page
}

#[test]
fn the_page_is_whole_and_needs_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = page(folder.path());
    let page = std::fs::read_to_string(&path).expect("written");
    for part in [
        "<title>nano &amp; &lt;others&gt;</title>",
        "width=device-width",
        "prefers-color-scheme:dark",
        "<h3>kv</h3>",
        "<h3>needle</h3>",
        "<h3>ppl</h3>",
        "<h3>agreement/ppl</h3>",
        "perplexity",
        "attention kept, by layer",
        "fasa (default, chunks 4)",
        "chunks (F)",
        "fasa-default.profile",
        "layer 5, KV head 1, chunk 31",
        "weights ",
        "--budget 32,64",
        "a &lt;text&gt;.txt",
        "cores",
    ] {
        assert!(page.contains(part), "{part}");
    }
    // The one address is the name of SVG.
    assert_eq!(page.matches("http").count(), page.matches("http://www.w3.org/2000/svg").count());
    for (open, close) in
        [("<table", "</table>"), ("<svg", "</svg>"), ("<td", "</td>"), ("<div", "</div>"), ("<text", "</text>")]
    {
        assert_eq!(page.matches(open).count(), page.matches(close).count(), "{open}");
    }
    assert!(!page.contains("<script") && !page.contains("NaN"));

    let (results, tables) = (folder.path().join("results.jsonl"), folder.path().join("tables.md"));
    let (results, tables) = (results.to_str().expect("UTF-8"), tables.to_str().expect("UTF-8"));
    let (ok, said) = fasa(&["report", results, "--output", tables]);
    assert!(ok, "{said}");
    let written = std::fs::read_to_string(tables).expect("written");
    assert!(written.contains("| method | budget | kv | needle | bytes per step |"), "{written}");
    assert!(
        written.contains("fasa eval kv needle --tokens 500") && written.contains("| streaming | 64 | "),
        "{written}"
    );
    let (ok, said) = fasa(&["report", results, "--output", tables, "--profile", "x"]);
    assert!(!ok, "{said}");

    let (ok, said) = fasa(&["report", path.to_str().expect("UTF-8")]);
    assert!(!ok && said.contains("line 1") && said.contains("page.html"), "{said}");
    let (ok, said) = fasa(&["report", "no-such.jsonl"]);
    assert!(!ok && said.contains("no-such.jsonl"), "{said}");
    in_browsers(folder.path(), &page);
}

fn chromium() -> Option<&'static str> {
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    })
}

/// On a phone and on a desk, in light and in dark: nothing sticks out, letters can be read, nothing is complained about.
fn in_browsers(folder: &Path, page: &str) {
    let Some(chromium) = chromium() else {
        eprintln!("no Chromium here: the page was checked as text alone");
        return;
    };
    // The page in frames of both widths, and a script around them that measures.
    let source = page.replace('&', "&amp;").replace('"', "&quot;");
    let frame = |width: usize| format!("<iframe width=\"{width}\" height=\"900\" srcdoc=\"{source}\"></iframe>");
    let script = r#"addEventListener('load', () => {
        const seen = [...document.querySelectorAll('iframe')].map(frame => {
            const page = frame.contentDocument, style = frame.contentWindow.getComputedStyle(page.body);
            const letters = [...page.querySelectorAll('p,td,th,dd,pre,.charts text')].map(e => {
                const svg = e.closest('svg');
                const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
                return scale * parseFloat(frame.contentWindow.getComputedStyle(e).fontSize);
            });
            return { wide: page.documentElement.scrollWidth, paper: style.backgroundColor, ink: style.color,
                     pictures: page.querySelectorAll('svg').length, letters: Math.min(...letters) };
        });
        document.body.innerHTML = '<pre id="seen">' + JSON.stringify(seen) + '</pre>';
    });"#;
    let outer = folder.join("frames.html");
    let html =
        format!("<!DOCTYPE html><meta charset=utf-8><script>{script}</script><body>{}{}", frame(390), frame(1200));
    std::fs::write(&outer, html).expect("written");
    for (scheme, paper, ink) in
        [(1, "rgb(255, 255, 255)", "rgb(32, 35, 40)"), (0, "rgb(20, 22, 26)", "rgb(226, 229, 234)")]
    {
        let output = Command::new(chromium)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"])
            .arg(format!("--user-data-dir={}", folder.join("browser").display()))
            .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
            .arg(format!("file://{}", outer.display()))
            .output()
            .expect("the browser starts");
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!complaints.contains("CONSOLE"), "{complaints}");
        let dom = String::from_utf8_lossy(&output.stdout).into_owned();
        let seen = dom.rsplit_once("id=\"seen\">").and_then(|(_, rest)| rest.split_once("</pre>"));
        let seen: Vec<Value> = serde_json::from_str(seen.expect("the script ran").0).expect("JSON");
        for (view, width) in seen.iter().zip([390.0, 1200.0]) {
            assert!(view["wide"].as_f64().expect("a number") <= width, "wider than {width}: {view}");
            assert_eq!((&view["paper"], &view["ink"]), (&paper.into(), &ink.into()));
            assert!(view["pictures"].as_u64() > Some(8), "{view}");
            assert!(view["letters"].as_f64() >= Some(9.0), "letters too small at {width}: {view}");
        }
        assert_eq!(seen.len(), 2);
    }
}
