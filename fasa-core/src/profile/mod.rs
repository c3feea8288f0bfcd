//! The profile: what calibration writes and everything else reads.
//!
//! A file is a fixed header and a postcard body. Reading borrows from the bytes, allocates nothing and never panics;
//! whatever is wrong with the bytes comes back as a [`ProfileError`]. The layout byte by byte is in `docs/profile.md`.
//! With the features `alloc` and `serde` a profile also goes to JSON, or any serde format, and back: see `Export`.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 8 | magic `FASAPROF` |
//! | 8 | 2 | format version, little-endian: 1, or 2 for models with layers that do not turn |
//! | 10 | 2 | reserved, 0 |
//! | 12 | 4 | body length, little-endian |
//! | 16 | 4 | CRC-32 (IEEE) of the body, little-endian |
//! | 20 | … | body |

#[cfg(feature = "alloc")]
mod export;
mod fingerprint;
#[cfg(all(feature = "alloc", feature = "serde"))]
mod spelling;
mod view;
mod wire;
#[cfg(feature = "alloc")]
mod write;

#[cfg(feature = "alloc")]
pub use export::{Export, ExportedHead, ExportedKeys, ExportedModel};
pub use fingerprint::{Model, WeightsHash};
pub use view::ProfileView;
#[cfg(feature = "alloc")]
pub use write::{Profile, Provenance};

use crate::config::Scope;
use crate::criterion::CriterionKind;

const MAGIC: [u8; 8] = *b"FASAPROF";
/// The newest format version. This crate reads all up to it, and writes the oldest that holds what there is to say.
pub const VERSION: u16 = 2;
const HEADER: usize = 20;

/// Why bytes are not a profile, or not one for this model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// The bytes end before the header does, or do not start with the magic.
    #[error("this is not a FASA profile (it does not start with FASAPROF)")]
    NotAProfile,
    /// Another format version.
    #[error("the profile has format version {found}, this build reads 1 to {VERSION}; calibrate again")]
    Version {
        /// Version in the file.
        found: u16,
    },
    /// The header promises another number of bytes than there are.
    #[error("the profile is {got} bytes long but its header says {want}: it was cut or something was appended")]
    Length {
        /// Bytes that the header promises.
        want: u64,
        /// Bytes that are there.
        got: u64,
    },
    /// The body is not what was written.
    #[error("the profile's checksum does not match: the file is damaged")]
    Checksum,
    /// The body does not decode.
    #[error("the profile's body cannot be read: the file is damaged or from another program")]
    Body,
    /// A field has a value that no calibration writes.
    #[error("the profile's field `{field}` makes no sense: {problem}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The profile belongs to another model.
    #[error("the profile was calibrated for another model: `{field}` differs; calibrate this model")]
    OtherModel {
        /// The first field that differs.
        field: &'static str,
    },
}

/// The body. Tables are little-endian bytes, so that they can be read in place.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Body<'a> {
    model: Model<'a>,
    criterion: CriterionKind,
    /// K of the agreement; 0 for other criteria.
    agreement_k: u32,
    scope: Scope,
    /// Decode steps observed.
    steps: u64,
    /// What was read to calibrate.
    text: &'a str,
    /// `[layers, rows, chunks]` u16: chunks, best first.
    ranking: &'a [u8],
    /// `[layers, rows, chunks]` f32: score of the chunk at the same place of `ranking`.
    scores: &'a [u8],
    /// `[layers, kv_heads, head_dim]` f32: static channel scale of the keys.
    key_scale: &'a [u8],
    /// `[layers, kv_heads, head_dim]` f32: static channel centre of the keys.
    key_centre: &'a [u8],
}

impl Model<'_> {
    /// The oldest format version that can say everything about this model.
    fn version(&self) -> u16 {
        if self.unrotated_layers.is_empty() { 1 } else { 2 }
    }
}

/// CRC-32 of the body.
fn checksum(body: &[u8]) -> u32 {
    crc32fast::hash(body)
}
