//! Saved sessions: what was read once goes on as if it had never been put away, and nothing else is taken for it.

mod fixture;
#[path = "fixture/model.rs"]
mod model;

use fasa_burn::chat::{Message, Role};
use fasa_burn::generate::{Cancel, Options};
use fasa_burn::method::Method;
use fasa_burn::model::Decoder;
use fasa_burn::sampling::Sampling;
use fasa_burn::sequence::Sequence;
use fasa_burn::session::{self, Session};
use fasa_burn::{Device, Dtype};
use fasa_core::config::ChunkCount;
use fasa_core::profile::ProfileView;
use fasa_core::sketch::Precision;
use fasa_core::{Budget, FasaConfig};
use std::path::{Path, PathBuf};

fn nano(dtype: Dtype) -> Decoder {
    model::load_as(&fixture::folder().join("nano"), &Device::flex(), dtype)
}

fn fasa(profile: &str, config: FasaConfig) -> Method {
    let bytes = std::fs::read(fixture::folder().join("nano").join(profile)).expect("a profile");
    Method::fasa(&ProfileView::parse(&bytes).expect("a profile"), config, Budget::Tokens(32)).expect("it fits")
}

fn default() -> Method {
    fasa("fasa-default.profile", FasaConfig::DEFAULT)
}

fn options(method: &Method) -> Options {
    Options {
        method: method.clone(),
        max_new_tokens: 10,
        sampling: Sampling::default(),
        stop_ids: Vec::new(),
        cancel: Cancel::default(),
    }
}

fn prompt(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| 5 + i * 7 % 4000).collect()
}

/// A sequence that has read `tokens` tokens.
fn read(decoder: &Decoder, method: &Method, tokens: usize) -> Sequence {
    let mut sequence = Sequence::new(decoder, 1);
    decoder.read(&mut sequence, &prompt(tokens), &options(method), &mut |_| true).expect("read");
    sequence
}

/// What is written behind `suffix`.
fn go_on(decoder: &Decoder, method: &Method, sequence: &mut Sequence, suffix: &[u32]) -> Vec<u32> {
    let text = [sequence.tokens(), suffix].concat();
    let outcome = decoder.follow(sequence, &text, &options(method), &mut |_| true).expect("text");
    assert_eq!(outcome.held_tokens, text.len() - suffix.len());
    outcome.tokens
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

#[test]
fn a_loaded_session_goes_on_as_the_saved_one() {
    let folder = Folder::new();
    let f32_sketch = FasaConfig { precision: Precision::F32, ..FasaConfig::DEFAULT };
    let methods = [
        Method::Dense,
        default(),
        fasa("fasa-default.profile", f32_sketch),
        fasa("fasa-paper.profile", FasaConfig::PAPER),
    ];
    for dtype in [Dtype::F32, Dtype::F16] {
        let decoder = nano(dtype);
        for (i, method) in methods.iter().enumerate() {
            let path = folder.file(&format!("{dtype}-{i}.session"));
            let mut sequence = read(&decoder, method, 150);
            let messages = [Message::new(Role::User, "naïve 你好")];
            let bytes = session::save(&path, &decoder, method, &mut sequence, &messages).expect("saved");
            assert_eq!(bytes, std::fs::metadata(&path).expect("there").len());
            let mut loaded = session::load(&path, &decoder, method, 30).expect("loads");
            assert_eq!((loaded.sequence.tokens(), &loaded.messages[..]), (sequence.tokens(), &messages[..]));
            // Nothing is lost or made again: saved once more, it is the same file, sketch and all.
            let again = folder.file("again.session");
            session::save(&again, &decoder, &Method::Dense, &mut loaded.sequence, &messages).expect("saved");
            assert!(std::fs::read(&path).expect("there") == std::fs::read(&again).expect("there"), "{method:?}");
            let suffix = [11, 12, 13];
            let want = go_on(&decoder, method, &mut sequence, &suffix);
            assert_eq!(go_on(&decoder, method, &mut loaded.sequence, &suffix), want, "{dtype} {method:?}");
        }
    }
}

/// Keys and values do not depend on the method that reads them; only a sketch does.
#[test]
fn a_session_serves_other_methods_where_it_can() {
    let folder = Folder::new();
    let decoder = nano(Dtype::F32);
    let (dense, sparse) = (folder.file("dense"), folder.file("sparse"));
    session::save(&dense, &decoder, &Method::Dense, &mut read(&decoder, &Method::Dense, 100), &[]).expect("saved");
    session::save(&sparse, &decoder, &default(), &mut read(&decoder, &default(), 100), &[]).expect("saved");
    let rows = std::fs::metadata(&sparse).expect("there").len() - std::fs::metadata(&dense).expect("there").len();
    // Five layers, two heads, 18 bytes a row and two checksums a layer; the header names the sketch.
    assert!(rows > 5 * (100 * 2 * 18 + 8) && rows < 5 * (100 * 2 * 18 + 8) + 300, "{rows}");
    for (path, method) in [(&dense, default()), (&sparse, Method::Dense)] {
        let mut loaded = session::load(path, &decoder, &method, 30).expect("loads").sequence;
        let mut fresh = read(&decoder, &method, 100);
        let want = go_on(&decoder, &method, &mut fresh, &[11, 12]);
        assert_eq!(go_on(&decoder, &method, &mut loaded, &[11, 12]), want);
    }
}

#[test]
fn sessions_of_others_are_refused() {
    let folder = Folder::new();
    let path = folder.file("s.session");
    let decoder = nano(Dtype::F16);
    session::save(&path, &decoder, &default(), &mut read(&decoder, &default(), 40), &[]).expect("saved");
    let other = model::load_as(&fixture::folder().join("families/llama"), &Device::flex(), Dtype::F32);
    let changed = |change: fn(&mut FasaConfig)| {
        let mut config = FasaConfig::DEFAULT;
        change(&mut config);
        fasa("fasa-default.profile", config)
    };
    let cases: [(&Decoder, Method, &[&str]); 6] = [
        (&other, Method::Dense, &["another model", ", here ", "--model"]),
        (&nano(Dtype::F32), Method::Dense, &["f16", "f32", "--dtype f16"]),
        (&decoder, fasa("fasa-paper.profile", FasaConfig::PAPER), &["sketch", "8 chunks in f16", "16 chunks in int4"]),
        (&decoder, changed(|c| c.chunks = ChunkCount::Count(8)), &["8 chunks", "16 chunks", "settings"]),
        (&decoder, changed(|c| c.precision = Precision::Int8), &["int8", "int4", "settings"]),
        (&decoder, other_profile(), &["another profile", "--profile"]),
    ];
    for (decoder, method, parts) in cases {
        let message = session::load(&path, decoder, &method, 1).expect_err("refused").to_string();
        assert!(message.contains("s.session"), "{message}");
        for part in parts {
            assert!(message.contains(part), "should say `{part}`: {message}");
        }
    }
    // Budget and guarantees are no business of the sketch.
    let mut config = FasaConfig::DEFAULT;
    config.guarantees.sinks = 1;
    assert!(session::load(&path, &decoder, &fasa("fasa-default.profile", config), 1).is_ok());
}

/// The default profile with other static scales.
fn other_profile() -> Method {
    let bytes = std::fs::read(fixture::folder().join("nano/fasa-default.profile")).expect("a profile");
    let view = ProfileView::parse(&bytes).expect("a profile");
    let mut export = view.export();
    // All of them, for which channels are in the sketch is the profile's affair.
    for scale in export.keys.iter_mut().flat_map(|head| head.scale.iter_mut()) {
        *scale *= 2.0;
    }
    let profile = fasa_core::profile::Profile::from_export(&export).expect("a profile");
    Method::fasa(&profile.view().expect("checked"), FasaConfig::DEFAULT, Budget::Tokens(32)).expect("it fits")
}

#[test]
fn damaged_sessions_are_refused() {
    let folder = Folder::new();
    let (path, bad) = (folder.file("good"), folder.file("bad.session"));
    let decoder = nano(Dtype::F16);
    session::save(&path, &decoder, &default(), &mut read(&decoder, &default(), 20), &[]).expect("saved");
    let good = std::fs::read(&path).expect("there");
    let header = 20 + u32::from_le_bytes(good[12..16].try_into().expect("four bytes")) as usize;
    let load = |bytes: &[u8]| {
        std::fs::write(&bad, bytes).expect("written");
        session::load(&bad, &decoder, &default(), 1)
    };
    let refused = |what: &str, bytes: &[u8], part: &str| {
        let message = load(bytes).map(|_: Session| ()).expect_err(what).to_string();
        assert!(message.contains("bad.session") && message.contains(part), "{what}: {message}");
    };
    assert!(load(&good).is_ok());
    // Every byte of the header, and some of every table, the last included.
    for at in (0..header).chain((header..good.len()).step_by(997)).chain([good.len() - 1]) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        refused(&format!("byte {at}"), &bytes, "");
    }
    for length in (0..header + 8).chain((header..good.len()).step_by(1009)).chain([good.len() - 1]) {
        refused(&format!("{length} bytes"), &good[..length], "");
    }
    refused("appended", &[&good[..], &[0]].concat(), "appended");
    refused("nothing", &[], "no saved session");
    refused(
        "a profile",
        &std::fs::read(fixture::folder().join("nano/fasa-default.profile")).expect("there"),
        "no saved",
    );
    let with = |at: usize, number: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        bytes
    };
    refused("another version", &with(8, 2), "version 2");
    refused("a long header", &with(12, u32::MAX), "truncated");

    // Headers with a checksum that fits them: what they claim is held against the file before anything is allocated.
    let json = String::from_utf8(good[20..header].to_vec()).expect("UTF-8");
    let under = |change: &dyn Fn(&str) -> String| {
        let json = change(&json);
        let mut bytes = [&good[..8], &1u32.to_le_bytes(), &(json.len() as u32).to_le_bytes()].concat();
        bytes.extend(crc32fast::hash(json.as_bytes()).to_le_bytes());
        bytes.extend(json.as_bytes());
        bytes.extend(&good[header..]);
        bytes
    };
    assert!(load(&under(&|json| json.to_owned())).is_ok());
    for (what, from, to, part) in [
        ("more tokens", "\"tokens\":20", "\"tokens\":8000", "truncated"),
        ("fewer tokens", "\"tokens\":20", "\"tokens\":19", "appended"),
        ("too many tokens", "\"tokens\":20", "\"tokens\":18446744073709551615", "positions"),
        ("no tokens", "\"tokens\":20", "\"tokens\":0", "positions"),
        ("negative tokens", "\"tokens\":20", "\"tokens\":-1", "header"),
        ("huge rows", "\"row_bytes\":16", "\"row_bytes\":18446744073709551615", "sketch"),
        ("huge heads", "\"heads\":2,", "\"heads\":4000000000,", "sketch"),
        ("other heads", "\"heads\":2,", "\"heads\":4,", "heads"),
        ("no such layer", "[1,2,3,4,5]", "[1,2,3,4,6]", "sketch"),
        ("a layer twice", "[1,2,3,4,5]", "[1,2,3,4,4]", "sketch"),
        ("a layer more", "[1,2,3,4,5]", "[0,1,2,3,4,5]", ""),
        ("a layer fewer", "[1,2,3,4,5]", "[1,2,3,4]", ""),
        ("an unknown field", "\"tokens\":20", "\"tokens\":20,\"extra\":1", "header"),
        ("no JSON", "{", "(", "header"),
    ] {
        assert!(json.contains(from), "{what}: {json}");
        refused(what, &under(&|json| json.replacen(from, to, 1)), part);
    }
    // A folder is no file, and what is not there says so.
    assert!(session::load(folder.0.path(), &decoder, &default(), 1).is_err());
    assert!(session::load(Path::new("no/such.session"), &decoder, &default(), 1).is_err());
}

#[test]
fn a_session_is_written_whole_or_not_at_all() {
    let folder = Folder::new();
    let decoder = nano(Dtype::F16);
    let path = folder.file("s.session");
    std::fs::write(&path, "what was there").expect("written");
    let mut empty = Sequence::new(&decoder, 1);
    let message = session::save(&path, &decoder, &Method::Dense, &mut empty, &[]).expect_err("empty").to_string();
    assert!(message.contains("s.session") && message.contains("no token"), "{message}");
    assert_eq!(std::fs::read(&path).expect("there"), b"what was there");
    let mut sequence = read(&decoder, &Method::Dense, 10);
    assert!(session::save(&folder.file("no/folder"), &decoder, &Method::Dense, &mut sequence, &[]).is_err());
    session::save(&path, &decoder, &Method::Dense, &mut sequence, &[]).expect("saved");
    let names: Vec<_> =
        std::fs::read_dir(folder.0.path()).expect("readable").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(names, ["s.session"], "nothing else is left behind");
}
