//! The sketch: a compact copy of the dominant chunks of every key, which scoring reads instead of the keys.
//!
//! A score only ranks, so it need not read 16-bit keys. Beside the cache an engine keeps, per KV head (or per query
//! head), `2F` numbers of every key in one of four [`Precision`]s. At equal bytes more chunks at fewer bits rank far
//! better than fewer chunks at more bits.
//!
//! # Layout of a row
//! Channels come in sketch order, the F first dimensions of the chosen chunks, then the F second ones
//! ([`Chunks::channels`](crate::rope::Chunks::channels)). All numbers are little-endian.
//!
//! | precision | bytes | content |
//! |---|---|---|
//! | `F32` | 8F | IEEE single |
//! | `F16` | 4F | IEEE half |
//! | `Int8` | 2F (+2) | two's complement codes −127..=127 |
//! | `Int4` | F (+2) | byte j is chunk j: low nibble its first dimension, high nibble its second, each code + 8, codes −7..=7 |
//!
//! The integer formats store `x = (k − centre) / scale` per channel, with a static centre and scale from calibration,
//! as `code * row_scale`; the row scale is an IEEE half kept in a second array. The static scale is folded into the
//! query ([`fold_query`]). The static centre never needs to be added back: it shifts the scores of all tokens alike, and
//! a shift changes neither a ranking nor a softmax. The float formats store the key itself.

mod quantize;
mod score;

pub use quantize::{dequantize_row, quantize_row};
pub use score::{fold_query, score, score_row};

use crate::error::{Error, Result, expect_capacity, expect_length};
use core::ops::Range;

/// Number format of a sketch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Precision {
    /// IEEE single: exact, for tests and comparisons.
    F32,
    /// IEEE half: the paper's.
    F16,
    /// One byte per dimension.
    Int8,
    /// Half a byte per dimension.
    Int4,
}

impl Precision {
    /// All formats, from most to fewest bits.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Int8, Self::Int4];

    /// The name used on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Int8 => "int8",
            Precision::Int4 => "int4",
        }
    }

    /// Bytes of the codes of one row of `chunks` chunks.
    pub const fn row_bytes(self, chunks: usize) -> usize {
        match self {
            Precision::F32 => 8 * chunks,
            Precision::F16 => 4 * chunks,
            Precision::Int8 => 2 * chunks,
            Precision::Int4 => chunks,
        }
    }

    /// Bytes of the scale of one row: 2 for the integer formats, 0 for the float ones.
    pub const fn scale_bytes(self) -> usize {
        match self {
            Precision::F32 | Precision::F16 => 0,
            Precision::Int8 | Precision::Int4 => 2,
        }
    }
}

/// How the sketch of one head is made: which channels of a key, and how they are normalised.
#[derive(Debug, Clone, Copy)]
pub struct HeadPlan<'a> {
    precision: Precision,
    channels: &'a [u16],
    scale: &'a [f32],
    centre: &'a [f32],
}

impl<'a> HeadPlan<'a> {
    /// A plan from channels in sketch order, `[2F]`, and their static scale and centre, `[2F]` each (used by the integer
    /// formats only).
    ///
    /// # Errors
    /// [`Error::Length`] unless the three have one even length, [`Error::Range`] for a scale that is not finite and
    /// positive or a centre that is not finite.
    pub fn new(precision: Precision, channels: &'a [u16], scale: &'a [f32], centre: &'a [f32]) -> Result<Self> {
        if channels.is_empty() || !channels.len().is_multiple_of(2) {
            return Err(Error::Range { what: "channels", problem: "a sketch has two channels for each of its chunks" });
        }
        expect_length("scale", scale.len(), channels.len())?;
        expect_length("centre", centre.len(), channels.len())?;
        if !scale.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Err(Error::Range { what: "scale", problem: "a channel scale is finite and positive" });
        }
        if !centre.iter().all(|c| c.is_finite()) {
            return Err(Error::Range { what: "centre", problem: "a channel centre is finite" });
        }
        Ok(Self { precision, channels, scale, centre })
    }

    /// Number format.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Chunks per row.
    pub fn chunks(&self) -> usize {
        self.channels.len() / 2
    }

    /// Dimensions in sketch order, `[2F]`.
    pub fn channels(&self) -> &'a [u16] {
        self.channels
    }

    /// Static scale per channel, `[2F]`.
    pub fn scale(&self) -> &'a [f32] {
        self.scale
    }

    /// Static centre per channel, `[2F]`.
    pub fn centre(&self) -> &'a [f32] {
        self.centre
    }

    /// `Ok` if every channel exists in a row of `dim` numbers.
    fn fits(&self, what: &'static str, dim: usize) -> Result<()> {
        let want = self.channels.iter().max().map_or(0, |c| usize::from(*c) + 1);
        expect_capacity(what, dim, want)
    }
}

/// Sketch rows of one head, as they lie in memory.
#[derive(Debug, Clone, Copy)]
pub struct SketchRows<'a> {
    precision: Precision,
    chunks: usize,
    codes: &'a [u8],
    scales: &'a [u8],
}

impl<'a> SketchRows<'a> {
    /// `rows` rows: `codes` has `rows * row_bytes` bytes, `scales` `rows * scale_bytes`.
    ///
    /// # Errors
    /// [`Error::Length`] if they have not, [`Error::Range`] for no chunk.
    pub fn new(precision: Precision, chunks: usize, rows: usize, codes: &'a [u8], scales: &'a [u8]) -> Result<Self> {
        if chunks == 0 {
            return Err(Error::Range { what: "chunks", problem: "a sketch has at least one" });
        }
        expect_length("codes", codes.len(), rows.saturating_mul(precision.row_bytes(chunks)))?;
        expect_length("scales", scales.len(), rows.saturating_mul(precision.scale_bytes()))?;
        Ok(Self { precision, chunks, codes, scales })
    }

    /// Number of rows, one per token.
    pub fn len(&self) -> usize {
        self.codes.len() / self.precision.row_bytes(self.chunks)
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }

    /// The rows of a range.
    ///
    /// # Panics
    /// If there are fewer rows, like slice indexing.
    pub fn span(&self, rows: Range<usize>) -> Self {
        let of = |bytes: usize| rows.start * bytes..rows.end * bytes;
        let codes = &self.codes[of(self.precision.row_bytes(self.chunks))];
        Self { codes, scales: &self.scales[of(self.precision.scale_bytes())], ..*self }
    }

    /// Number format.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Chunks per row.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// All codes.
    pub fn codes(&self) -> &'a [u8] {
        self.codes
    }

    /// All row scales, two bytes each (empty for float formats).
    pub fn scales(&self) -> &'a [u8] {
        self.scales
    }

    /// Codes of row `r`.
    fn row(&self, r: usize) -> &'a [u8] {
        let bytes = self.precision.row_bytes(self.chunks);
        &self.codes[r * bytes..(r + 1) * bytes]
    }

    /// Scale of row `r`; 1 for float formats.
    fn row_scale(&self, r: usize) -> f32 {
        match self.scales {
            [] => 1.0,
            scales => half::f16::from_le_bytes([scales[2 * r], scales[2 * r + 1]]).to_f32(),
        }
    }
}
