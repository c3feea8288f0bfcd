//! Keys, values and sketch of one KV head, in arrays.

use fasa_core::sketch::{HeadPlan, Precision, SketchRows, quantize_row};
use fasa_core::{Error, Result, Rows};

/// Dimensions of a head.
pub const DIM: usize = 64;
/// Chunks in the sketch: half of the head's.
pub const CHUNKS: usize = DIM / 4;
/// Tokens that fit.
pub const CAPACITY: usize = super::PROMPT + super::STEPS;

/// Number format of the sketch.
const PRECISION: Precision = Precision::Int4;
const CODE_BYTES: usize = PRECISION.row_bytes(CHUNKS);
const SCALE_BYTES: usize = PRECISION.scale_bytes();

/// A cache that holds up to [`CAPACITY`] tokens.
pub struct Cache {
    keys: [[f32; DIM]; CAPACITY],
    values: [[f32; DIM]; CAPACITY],
    codes: [[u8; CODE_BYTES]; CAPACITY],
    scales: [[u8; SCALE_BYTES]; CAPACITY],
    len: usize,
}

impl Default for Cache {
    fn default() -> Self {
        Self::new()
    }
}

impl Cache {
    /// An empty cache.
    pub const fn new() -> Self {
        Self {
            keys: [[0.0; DIM]; CAPACITY],
            values: [[0.0; DIM]; CAPACITY],
            codes: [[0; CODE_BYTES]; CAPACITY],
            scales: [[0; SCALE_BYTES]; CAPACITY],
            len: 0,
        }
    }

    /// Appends one token: its rotated key, its value, and the sketch row that follows from the key.
    ///
    /// # Errors
    /// [`Error::Capacity`] if the cache is full; as [`quantize_row`] if `plan` is of another shape.
    pub fn append(&mut self, plan: &HeadPlan<'_>, key: &[f32; DIM], value: &[f32; DIM]) -> Result<()> {
        if self.len == CAPACITY {
            return Err(Error::Capacity { what: "cache", want: CAPACITY + 1, got: CAPACITY });
        }
        self.keys[self.len] = *key;
        self.values[self.len] = *value;
        quantize_row(plan, key, &mut self.codes[self.len], &mut self.scales[self.len])?;
        self.len += 1;
        Ok(())
    }

    /// Tokens held.
    #[allow(clippy::len_without_is_empty)] // nobody asks
    pub fn len(&self) -> usize {
        self.len
    }

    /// Rotated keys of the tokens held.
    ///
    /// # Errors
    /// None in practice, as for the other two: the arrays have the sizes that are asked for.
    pub fn keys(&self) -> Result<Rows<'_>> {
        Rows::contiguous(self.keys[..self.len].as_flattened(), DIM)
    }

    /// Values of the tokens held.
    ///
    /// # Errors
    /// As [`keys`](Self::keys).
    pub fn values(&self) -> Result<Rows<'_>> {
        Rows::contiguous(self.values[..self.len].as_flattened(), DIM)
    }

    /// Sketch of the tokens held.
    ///
    /// # Errors
    /// As [`keys`](Self::keys).
    pub fn sketch(&self) -> Result<SketchRows<'_>> {
        let (codes, scales) = (self.codes[..self.len].as_flattened(), self.scales[..self.len].as_flattened());
        SketchRows::new(PRECISION, CHUNKS, self.len, codes, scales)
    }
}
