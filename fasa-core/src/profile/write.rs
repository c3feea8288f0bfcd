//! Writing profiles.

use super::{Body, HEADER, MAGIC, Model, ProfileError, ProfileView, checksum, wire};
use crate::config::Scope;
use crate::criterion::{CriterionKind, Tally, rank};
use crate::error::{Error, Result, expect_length};
use alloc::vec;
use alloc::vec::Vec;

/// What a profile says beside its tables: whose chunks they are, and how and by what they were ranked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Provenance<'a> {
    /// The calibrated model.
    pub model: Model<'a>,
    /// The criterion that ranked the chunks.
    pub criterion: CriterionKind,
    /// K of the agreement; 0 for criteria without one.
    pub agreement_k: u32,
    /// One ranking per KV head or per query head.
    pub scope: Scope,
    /// Decode steps observed.
    pub steps: u64,
    /// What was read.
    pub text: &'a str,
}

/// A profile that owns its tables.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    bytes: Vec<u8>,
}

impl Profile {
    /// Builds the profile of a calibration by a criterion that adds up over steps.
    ///
    /// `tally` holds the scores of all query heads, layer by layer. `key_scale` and `key_centre` are
    /// `[layers, kv_heads, head_dim]`. `agreement_k` is 0 unless the criterion is the agreement. `text` says what was read.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Range`] if shapes or numbers do not fit the model.
    #[allow(clippy::too_many_arguments)] // a file's fields; a struct would repeat them
    pub fn new(
        model: Model<'_>,
        criterion: CriterionKind,
        agreement_k: u32,
        scope: Scope,
        tally: &Tally,
        key_scale: &[f32],
        key_centre: &[f32],
        text: &str,
    ) -> Result<Self> {
        let chunks = model.chunks()?.len();
        let (layers, query_heads, kv_heads) =
            (model.layers as usize, model.query_heads as usize, model.kv_heads as usize);
        if kv_heads == 0 || query_heads == 0 || query_heads % kv_heads != 0 {
            return Err(Error::Range { what: "model", problem: "query heads are a multiple of the KV heads" });
        }
        expect_length("tally.heads", tally.heads(), layers.saturating_mul(query_heads))?;
        let rows = scope.rows(query_heads, kv_heads);
        let group = query_heads / rows;
        let (mut ranking, mut scores) = (vec![0; layers * rows * chunks], vec![0.0; layers * rows * chunks]);
        let mut mean = vec![0.0; chunks];
        for (row, (ranking, scores)) in ranking.chunks_mut(chunks).zip(scores.chunks_mut(chunks)).enumerate() {
            tally.mean_of_group(row * group, group, &mut mean)?;
            rank(&mean, ranking)?;
            for (score, &chunk) in scores.iter_mut().zip(&*ranking) {
                *score = mean[usize::from(chunk)];
            }
        }
        let provenance = Provenance { model, criterion, agreement_k, scope, steps: tally.steps(0), text };
        Self::from_rankings(&provenance, &ranking, &scores, key_scale, key_centre)
    }

    /// Builds a profile from rankings made elsewhere, as by [`RankChunks`](crate::criterion::RankChunks).
    ///
    /// `ranking` and `scores` are `[layers, rows, head_dim / 2]` with one row per head of the scope: the chunks of each
    /// head, best first, and what the criterion gave them. `key_scale` and `key_centre` are
    /// `[layers, kv_heads, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Range`] if shapes or numbers do not fit the model.
    pub fn from_rankings(
        provenance: &Provenance<'_>,
        ranking: &[u16],
        scores: &[f64],
        key_scale: &[f32],
        key_centre: &[f32],
    ) -> Result<Self> {
        let Provenance { model, criterion, agreement_k, scope, steps, text } = *provenance;
        let chunks = model.chunks()?.len();
        let (layers, kv_heads) = (model.layers as usize, model.kv_heads as usize);
        // Saturated, a size is that of no slice: such a model is refused by the first of them.
        let table = |heads: usize, width: usize| layers.saturating_mul(heads).saturating_mul(width);
        expect_length("ranking", ranking.len(), table(scope.rows(model.query_heads as usize, kv_heads), chunks))?;
        expect_length("scores", scores.len(), ranking.len())?;
        expect_length("key_scale", key_scale.len(), table(kv_heads, 2 * chunks))?;
        expect_length("key_centre", key_centre.len(), key_scale.len())?;
        let bytes_of = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let (key_scale, key_centre) = (bytes_of(key_scale), bytes_of(key_centre));
        let ranking: Vec<u8> = ranking.iter().flat_map(|chunk| chunk.to_le_bytes()).collect();
        let scores: Vec<u8> = scores.iter().flat_map(|score| (*score as f32).to_le_bytes()).collect();
        Self::seal(&Body {
            model,
            criterion,
            agreement_k,
            scope,
            steps,
            text,
            ranking: &ranking,
            scores: &scores,
            key_scale: &key_scale,
            key_centre: &key_centre,
        })
        .map_err(|error| match error {
            ProfileError::Field { field, problem } => Error::Range { what: field, problem },
            _ => Error::Range { what: "profile", problem: "it does not read back" },
        })
    }

    /// The profile with `body`, checked by reading it back.
    pub(super) fn seal(body: &Body<'_>) -> Result<Self, ProfileError> {
        Self::from_bytes(encode(body)?)
    }

    /// A copy of a profile read elsewhere.
    ///
    /// # Errors
    /// As [`ProfileView::parse`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ProfileError> {
        ProfileView::parse(&bytes)?;
        Ok(Self { bytes })
    }

    /// The file's content.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The profile, for reading.
    ///
    /// # Errors
    /// None in practice: the bytes were checked when `self` was made.
    pub fn view(&self) -> Result<ProfileView<'_>, ProfileError> {
        ProfileView::parse(&self.bytes)
    }
}

fn encode(body: &Body<'_>) -> Result<Vec<u8>, ProfileError> {
    let encoded = wire::write(body)?;
    let length = u32::try_from(encoded.len())
        .map_err(|_| ProfileError::Field { field: "profile", problem: "a body is at most 4 GiB long" })?;
    let mut bytes = Vec::with_capacity(HEADER + encoded.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&body.model.version().to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum(&encoded).to_le_bytes());
    bytes.extend_from_slice(&encoded);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criterion::{Agreement, Observation};
    use crate::rope::Pairing;
    use crate::rows::Rows;
    use proptest::prelude::*;

    fn model() -> Model<'static> {
        Model {
            architecture: "llama",
            layers: 2,
            query_heads: 4,
            kv_heads: 2,
            head_dim: 8,
            rotary_dim: 8,
            rope_theta: 10_000.0,
            pairing: Pairing::HalfSplit,
            weights: 7,
            unrotated_layers: &[],
        }
    }

    fn profile(scope: Scope) -> Profile {
        let model = model();
        let chunks = model.chunks().expect("valid");
        let mut tally = Tally::new(CriterionKind::Agreement, 8, 4);
        for head in 0..8usize {
            let data: [f32; 80] = core::array::from_fn(|i| (((i + 5) * (head + 3) * 37) % 101) as f32 / 50.0 - 1.0);
            let keys = Rows::contiguous(&data, 8).expect("divides");
            let step = Observation { query: &data[8 * head..8 * head + 8], keys, chunks: &chunks };
            tally.observe(&Agreement::new(3).expect("positive"), head, &step).expect("fits");
        }
        let (scale, centre) = ([0.5; 32], core::array::from_fn::<f32, 32, _>(|i| i as f32));
        Profile::new(model, CriterionKind::Agreement, 3, scope, &tally, &scale, &centre, "a text").expect("fits")
    }

    #[test]
    fn reads_what_was_written() {
        for (scope, rows) in [(Scope::KvHead, 2), (Scope::QueryHead, 4)] {
            let profile = profile(scope);
            let view = profile.view().expect("just written");
            assert_eq!(view.model(), &model());
            assert_eq!((view.criterion(), view.agreement_k()), (CriterionKind::Agreement, 3));
            assert_eq!((view.scope(), view.rows(), view.steps(), view.text()), (scope, rows, 1, "a text"));
            for layer in 0..2 {
                for row in 0..rows {
                    let scores: Vec<f32> = view.scores(layer, row).collect();
                    assert!(scores.windows(2).all(|w| w[0] >= w[1]), "{scores:?}");
                    let mut ranking: Vec<u16> = view.ranking(layer, row).collect();
                    ranking.sort_unstable();
                    assert_eq!(ranking, [0, 1, 2, 3]);
                }
            }
            assert_eq!(view.key_scale(1, 1, 7), 0.5);
            assert_eq!((view.key_centre(0, 1, 2), view.key_centre(1, 0, 0)), (10.0, 16.0));
            assert_eq!(view.ranking(2, 0).len() + view.ranking(0, rows).len(), 0);
            assert_eq!((view.key_centre(2, 0, 0), view.key_centre(0, 0, 8)), (0.0, 0.0));
        }
    }

    #[test]
    fn another_model_is_named_by_its_field() {
        let here = model();
        for (there, field) in [
            (Model { architecture: "qwen2", ..here }, "architecture"),
            (Model { kv_heads: 4, ..here }, "kv_heads"),
            (Model { rope_theta: 10_001.0, ..here }, "rope_theta"),
            (Model { pairing: Pairing::Interleaved, ..here }, "pairing"),
            (Model { weights: 8, ..here }, "weights"),
            (Model { unrotated_layers: &[0, 1], ..here }, "unrotated_layers"),
        ] {
            assert_eq!(here.matches(&there), Err(ProfileError::OtherModel { field }));
        }
        assert_eq!(Model { pairing: Pairing::Neighbours, ..here }.matches(&here), Ok(()));
    }

    #[test]
    fn truncated_anywhere_is_an_error() {
        let profile = profile(Scope::KvHead);
        for end in 0..profile.as_bytes().len() {
            assert!(ProfileView::parse(&profile.as_bytes()[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let good = profile(Scope::KvHead);
        for at in 0..good.as_bytes().len() {
            let mut bytes = good.as_bytes().to_vec();
            bytes[at] ^= 0x10;
            assert!(ProfileView::parse(&bytes).is_err(), "byte {at}");
        }
    }

    proptest! {
        // With a checksum that fits, the body itself is in doubt: nothing may panic, and what is accepted must be sound.
        #[test]
        fn hostile_bodies_never_panic(at in 0usize..700, byte in any::<u8>(), cut in 0usize..40) {
            let good = profile(Scope::QueryHead);
            let mut body = good.as_bytes()[HEADER..].to_vec();
            let at = at % body.len();
            body[at] = byte;
            body.truncate(body.len() - cut);
            let mut bytes = good.as_bytes()[..12].to_vec();
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&checksum(&body).to_le_bytes());
            bytes.extend_from_slice(&body);
            if let Ok(view) = ProfileView::parse(&bytes) {
                for layer in 0..view.model().layers as usize {
                    for row in 0..view.rows() {
                        prop_assert_eq!(view.ranking(layer, row).len(), view.model().head_dim as usize / 2);
                    }
                }
            }
        }
    }
}
