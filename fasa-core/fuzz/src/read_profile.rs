//! What is done to bytes that claim to be a profile: by the fuzzer, and by the test `hostile_profiles` on any compiler.

use crate::sound::check;

/// The offset of the body, and that of its checksum in the header (see `docs/profile.md`).
const BODY: usize = 20;
const CHECKSUM: usize = 16;

/// Reads `bytes` as they are, and once more under a header that fits them, since hardly any input gets past a checksum by
/// chance. Whatever is accepted has to be sound.
pub fn read_profile(bytes: &[u8]) {
    let _ = check(bytes);
    let _ = check(&under_header(bytes.get(BODY..).unwrap_or(bytes)));
}

/// A profile with `body`: magic, version 1, length and checksum.
pub fn under_header(body: &[u8]) -> Vec<u8> {
    let mut bytes = b"FASAPROF\x01\0\0\0".to_vec();
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32(body).to_le_bytes());
    assert_eq!((bytes.len(), bytes.len() - CHECKSUM), (BODY, 4));
    bytes.extend_from_slice(body);
    bytes
}

/// CRC-32 (IEEE), bit by bit: written out, so that the format is checked by more than the code that writes it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
