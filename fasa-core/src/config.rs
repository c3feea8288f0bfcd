//! What a FASA run is made of, and the two presets that matter.

use crate::budget::Guarantees;
use crate::criterion::CriterionKind;
use crate::error::{Error, Result};
use crate::sketch::Precision;

/// Whether something is decided once per KV head, for all the query heads that share it, or for each query head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Scope {
    /// One decision per KV head: under grouped-query attention only this saves key bytes.
    KvHead,
    /// One decision per query head: what the paper does.
    QueryHead,
}

impl Scope {
    /// The name used in messages and reports.
    pub fn name(self) -> &'static str {
        match self {
            Scope::KvHead => "KV head",
            Scope::QueryHead => "query head",
        }
    }

    /// Rows of a table with this scope.
    pub fn rows(self, query_heads: usize, kv_heads: usize) -> usize {
        match self {
            Scope::KvHead => kv_heads,
            Scope::QueryHead => query_heads,
        }
    }
}

/// How many dominant chunks are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum ChunkCount {
    /// Exactly this many.
    Count(u16),
    /// One in this many of the head's chunks: `Share(2)` is half of them.
    Share(u16),
}

impl ChunkCount {
    /// The count for a head of `chunks` chunks.
    ///
    /// # Errors
    /// [`Error::Range`] if that is none, or more than there are.
    pub fn of(self, chunks: usize) -> Result<usize> {
        let count = match self {
            ChunkCount::Count(n) => n as usize,
            ChunkCount::Share(0) => 0,
            ChunkCount::Share(part) => (chunks / part as usize).max(1),
        };
        if count == 0 || count > chunks {
            return Err(Error::Range {
                what: "chunks",
                problem: "a head uses at least 1 and at most head_dim / 2 chunks",
            });
        }
        Ok(count)
    }
}

/// One way to run FASA. Build it from a preset and change fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FasaConfig {
    /// Number format of the sketch.
    pub precision: Precision,
    /// Chunks in the sketch.
    pub chunks: ChunkCount,
    /// Whether the query heads of a group share their chunks.
    pub chunk_scope: Scope,
    /// Whether the query heads of a group share their tokens.
    pub token_scope: Scope,
    /// The criterion that the profile must have been calibrated with.
    pub criterion: CriterionKind,
    /// Tokens that are always kept.
    pub guarantees: Guarantees,
    /// The first layers, this many, attend to everything (layer 0 selects badly: paper, section 4).
    pub dense_layers: u32,
}

impl FasaConfig {
    /// Ours: an int4 sketch of half the chunks, everything per KV head, chunks by attention margin.
    pub const DEFAULT: Self = Self {
        precision: Precision::Int4,
        chunks: ChunkCount::Share(2),
        chunk_scope: Scope::KvHead,
        token_scope: Scope::KvHead,
        criterion: CriterionKind::Margin,
        guarantees: Guarantees { sinks: 4, recent: 16 },
        dense_layers: 1,
    };

    /// The publication's: f16, a quarter of the chunks, everything per query head, chunks by contextual agreement,
    /// nothing guaranteed but the current token.
    pub const PAPER: Self = Self {
        precision: Precision::F16,
        chunks: ChunkCount::Share(4),
        chunk_scope: Scope::QueryHead,
        token_scope: Scope::QueryHead,
        criterion: CriterionKind::Agreement,
        guarantees: Guarantees::CURRENT,
        dense_layers: 1,
    };
}

impl Default for FasaConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "serde")]
    #[test]
    fn settings_come_back() {
        for config in [FasaConfig::DEFAULT, FasaConfig::PAPER] {
            let mut bytes = [0; 32];
            let written = postcard::to_slice(&config, &mut bytes).expect("fits");
            assert_eq!(postcard::from_bytes::<FasaConfig>(written), Ok(config));
        }
    }

    #[test]
    fn chunk_counts() {
        for (count, chunks, want) in [
            (ChunkCount::Share(2), 32, Some(16)),
            (ChunkCount::Share(4), 2, Some(1)),
            (ChunkCount::Count(32), 32, Some(32)),
            (ChunkCount::Count(33), 32, None),
            (ChunkCount::Count(0), 32, None),
            (ChunkCount::Share(0), 32, None),
        ] {
            assert_eq!(count.of(chunks).ok(), want, "{count:?} of {chunks}");
        }
    }
}
