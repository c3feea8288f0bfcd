//! `cargo +nightly fuzz run read_profile` in `fasa-core`. What it does is in `../src/read_profile.rs`.
#![no_main]

#[path = "../src/read_profile.rs"]
mod read_profile;
#[path = "../src/sound.rs"]
mod sound;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    read_profile::read_profile(bytes);
});
