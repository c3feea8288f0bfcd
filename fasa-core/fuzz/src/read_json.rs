//! What is done to JSON that claims to be a profile: by the fuzzer, and by the test `hostile_json` on any compiler.

use crate::sound::check;
use fasa_core::profile::{Export, Profile};

/// Reads `json`. Whatever is accepted has to be a sound profile that says the same in JSON and in bytes.
pub fn read_json(json: &[u8]) {
    let Ok(export) = serde_json::from_slice::<Export>(json) else { return };
    let Ok(profile) = Profile::from_export(&export) else { return };
    check(profile.as_bytes()).expect("what was built reads back");
    let again = profile.view().expect("checked").export();
    assert_eq!(again, export);
    let written = serde_json::to_vec(&again).expect("an export is JSON");
    let read: Export = serde_json::from_slice(&written).expect("what was written is read");
    assert_eq!(Profile::from_export(&read), Ok(profile));
}
