//! `cargo +nightly fuzz run read_session` in `fasa-burn`. What it does is in `../src/loaders.rs`.
#![no_main]
#![allow(dead_code)] // each target uses its own part

#[path = "../src/loaders.rs"]
mod loaders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    loaders::read_session(bytes);
});
