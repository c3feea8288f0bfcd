//! What is done to bytes that claim to be a profile: by the fuzzer, and by the test `hostile_profiles` on any compiler.

use fasa_core::FasaConfig;
use fasa_core::config::ChunkCount;
use fasa_core::policy::OwnedPlan;
use fasa_core::profile::{Profile, ProfileError, ProfileView};

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

/// Whether `bytes` are accepted; then everything a profile can be asked must have an answer that makes sense.
pub fn check(bytes: &[u8]) -> Result<(), ProfileError> {
    let view = ProfileView::parse(bytes)?;
    let model = view.model();
    let (layers, dim) = (model.layers as usize, model.head_dim as usize);
    assert_eq!(view.rows(), view.scope().rows(model.query_heads as usize, model.kv_heads as usize));
    // One past the end everywhere: there must be an answer, and an empty one.
    for layer in 0..=layers {
        for row in 0..=view.rows() {
            let exists = layer < layers && row < view.rows();
            let mut ranking: Vec<u16> = view.ranking(layer, row).collect();
            ranking.sort_unstable();
            assert!(ranking.into_iter().eq(0..if exists { dim as u16 / 2 } else { 0 }));
            assert!(view.scores(layer, row).all(f32::is_finite));
        }
        for kv_head in 0..=model.kv_heads as usize {
            for channel in [0, dim - 1, dim, usize::MAX] {
                let (scale, centre) =
                    (view.key_scale(layer, kv_head, channel), view.key_centre(layer, kv_head, channel));
                assert!(scale.is_finite() && scale > 0.0 && centre.is_finite());
            }
        }
    }
    for (layer, row) in [(usize::MAX, 0), (0, usize::MAX), (usize::MAX, usize::MAX)] {
        assert_eq!(view.ranking(layer, row).len() + view.scores(layer, row).len(), 0);
        assert_eq!((view.key_scale(layer, row, 0), view.key_centre(layer, row, 0)), (1.0, 0.0));
    }
    assert_eq!(view.export().heads.len(), layers * view.rows());
    let config = FasaConfig { criterion: view.criterion(), chunk_scope: view.scope(), ..FasaConfig::DEFAULT };
    for chunks in [ChunkCount::Count(1), ChunkCount::Share(1), ChunkCount::Count(u16::MAX)] {
        if let Ok(plan) = OwnedPlan::new(&view, FasaConfig { chunks, ..config }) {
            assert!(plan.view().head(layers - 1, view.rows() - 1).is_ok());
            assert!(plan.view().head(layers, 0).is_err());
        }
    }
    assert_eq!(Profile::from_bytes(bytes.to_vec())?.as_bytes(), bytes);
    Ok(())
}

/// CRC-32 (IEEE), bit by bit: written out, so that the format is checked by more than the code that writes it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
