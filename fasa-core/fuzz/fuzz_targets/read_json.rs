//! `cargo +nightly fuzz run read_json` in `fasa-core`. What it does is in `../src/read_json.rs`.
#![no_main]

#[path = "../src/read_json.rs"]
mod read_json;
#[path = "../src/sound.rs"]
mod sound;

libfuzzer_sys::fuzz_target!(|json: &[u8]| {
    read_json::read_json(json);
});
