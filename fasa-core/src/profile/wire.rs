//! The body as it lies in the file: postcard over numbers and byte strings, enums as the numbers in `docs/profile.md`.
//!
//! Kept apart from the public types, so that these may grow or be reordered without changing a file, and so that their
//! serde support stays a feature.

use super::{Body, Model, ProfileError};
use crate::config::Scope;
use crate::criterion::CriterionKind;
use crate::rope::Pairing;

/// Fields in file order.
#[derive(serde::Serialize, serde::Deserialize)]
struct Wire<'a> {
    architecture: &'a str,
    layers: u32,
    query_heads: u32,
    kv_heads: u32,
    head_dim: u32,
    rotary_dim: u32,
    rope_theta: f64,
    pairing: u32,
    weights: u64,
    criterion: u32,
    agreement_k: u32,
    scope: u32,
    steps: u64,
    text: &'a str,
    ranking: &'a [u8],
    scores: &'a [u8],
    key_scale: &'a [u8],
    key_centre: &'a [u8],
}

/// A body of version 2: that of version 1, and what it cannot say.
#[derive(serde::Serialize, serde::Deserialize)]
struct Wire2<'a> {
    #[serde(borrow)]
    first: Wire<'a>,
    unrotated_layers: &'a [u8],
}

const PAIRINGS: [Pairing; 3] = [Pairing::HalfSplit, Pairing::Interleaved, Pairing::Neighbours];
const CRITERIA: [CriterionKind; 3] = [CriterionKind::Agreement, CriterionKind::Margin, CriterionKind::Greedy];
const SCOPES: [Scope; 2] = [Scope::KvHead, Scope::QueryHead];

/// The value with number `code`.
fn named<T: Copy>(table: &[T], code: u32, field: &'static str) -> Result<T, ProfileError> {
    let problem = "this version knows no such value";
    table.get(code as usize).copied().ok_or(ProfileError::Field { field, problem })
}

/// Reads a body of format `version` that fills `bytes` to the last. Borrows, allocates nothing.
pub(super) fn read(bytes: &[u8], version: u16) -> Result<Body<'_>, ProfileError> {
    let damaged = |_| ProfileError::Body;
    let (Wire2 { first: wire, unrotated_layers }, rest) = match version {
        1 => {
            let (first, rest) = postcard::take_from_bytes::<Wire<'_>>(bytes).map_err(damaged)?;
            (Wire2 { first, unrotated_layers: &[] }, rest)
        }
        _ => postcard::take_from_bytes::<Wire2<'_>>(bytes).map_err(damaged)?,
    };
    // One file for one profile: what version 1 can say is said in version 1.
    if version != 1 && unrotated_layers.is_empty() {
        return Err(ProfileError::Body);
    }
    if !rest.is_empty() {
        return Err(ProfileError::Body);
    }
    Ok(Body {
        model: Model {
            architecture: wire.architecture,
            layers: wire.layers,
            query_heads: wire.query_heads,
            kv_heads: wire.kv_heads,
            head_dim: wire.head_dim,
            rotary_dim: wire.rotary_dim,
            rope_theta: wire.rope_theta,
            pairing: named(&PAIRINGS, wire.pairing, "model.pairing")?,
            weights: wire.weights,
            unrotated_layers,
        },
        criterion: named(&CRITERIA, wire.criterion, "criterion")?,
        agreement_k: wire.agreement_k,
        scope: named(&SCOPES, wire.scope, "scope")?,
        steps: wire.steps,
        text: wire.text,
        ranking: wire.ranking,
        scores: wire.scores,
        key_scale: wire.key_scale,
        key_centre: wire.key_centre,
    })
}

/// The bytes of a body.
#[cfg(feature = "alloc")]
pub(super) fn write(body: &Body<'_>) -> Result<alloc::vec::Vec<u8>, ProfileError> {
    let model = &body.model;
    let wire = Wire {
        architecture: model.architecture,
        layers: model.layers,
        query_heads: model.query_heads,
        kv_heads: model.kv_heads,
        head_dim: model.head_dim,
        rotary_dim: model.rotary_dim,
        rope_theta: model.rope_theta,
        pairing: match model.pairing {
            Pairing::HalfSplit => 0,
            Pairing::Interleaved => 1,
            Pairing::Neighbours => 2,
        },
        weights: model.weights,
        criterion: match body.criterion {
            CriterionKind::Agreement => 0,
            CriterionKind::Margin => 1,
            CriterionKind::Greedy => 2,
        },
        agreement_k: body.agreement_k,
        scope: match body.scope {
            Scope::KvHead => 0,
            Scope::QueryHead => 1,
        },
        steps: body.steps,
        text: body.text,
        ranking: body.ranking,
        scores: body.scores,
        key_scale: body.key_scale,
        key_centre: body.key_centre,
    };
    let encoded = match model.unrotated_layers {
        [] => postcard::to_allocvec(&wire),
        unrotated_layers => postcard::to_allocvec(&Wire2 { first: wire, unrotated_layers }),
    };
    encoded.map_err(|_| ProfileError::Field { field: "profile", problem: "it cannot be encoded" })
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_number() {
        let model = Model {
            architecture: "llama",
            layers: 1,
            query_heads: 300,
            kv_heads: 1,
            head_dim: 2,
            rotary_dim: 2,
            rope_theta: 0.5,
            pairing: Pairing::HalfSplit,
            weights: u64::MAX,
            unrotated_layers: &[],
        };
        for pairing in PAIRINGS {
            for criterion in CRITERIA {
                for scope in SCOPES {
                    let body = Body {
                        model: Model { pairing, ..model },
                        criterion,
                        agreement_k: 128,
                        scope,
                        steps: 1 << 40,
                        text: "é",
                        ranking: &[0, 0],
                        scores: &[],
                        key_scale: &[1; 200],
                        key_centre: &[],
                    };
                    let bytes = write(&body).expect("encodes");
                    assert_eq!(read(&bytes, 1), Ok(body));
                    assert_eq!(read(&bytes[..bytes.len() - 1], 1), Err(ProfileError::Body));
                    assert_eq!(read(&[&bytes[..], &[0]].concat(), 1), Err(ProfileError::Body));
                    assert_eq!(read(&[&bytes[..], &[0]].concat(), 2), Err(ProfileError::Body), "nothing to say");
                    let body = Body { model: Model { unrotated_layers: &[0, 1], ..body.model }, ..body };
                    let bytes = write(&body).expect("encodes");
                    assert_eq!(read(&bytes, 2), Ok(body));
                    assert_eq!(read(&bytes, 1), Err(ProfileError::Body));
                    assert_eq!(read(&bytes[..bytes.len() - 1], 2), Err(ProfileError::Body));
                }
            }
        }
    }
}
