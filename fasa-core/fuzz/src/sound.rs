//! What must hold for every profile that is accepted, whichever way it came.

use fasa_core::FasaConfig;
use fasa_core::config::ChunkCount;
use fasa_core::policy::OwnedPlan;
use fasa_core::profile::{Profile, ProfileError, ProfileView};

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
    let exported = Profile::from_export(&view.export()).expect("what was exported");
    assert_eq!(exported.view().as_ref(), Ok(&view));
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
