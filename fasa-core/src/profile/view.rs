//! Reading a profile in place.

use super::{Body, HEADER, MAGIC, Model, ProfileError, VERSION, checksum, wire};
use crate::config::Scope;
use crate::criterion::CriterionKind;
use crate::rope::MAX_HEAD_DIM;

/// A checked profile over borrowed bytes. Everything that later calls rely on was checked by [`parse`](Self::parse).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProfileView<'a> {
    body: Body<'a>,
    rows: usize,
}

impl<'a> ProfileView<'a> {
    /// Checks `bytes` and returns a view of them. Time O(bytes), no allocation.
    ///
    /// # Errors
    /// A [`ProfileError`] for whatever is wrong; never a panic.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ProfileError> {
        let (header, encoded) = bytes.split_at_checked(HEADER).ok_or(ProfileError::NotAProfile)?;
        let mut fields = header.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let mut next = || fields.next().ok_or(ProfileError::NotAProfile);
        if !header.starts_with(&MAGIC) {
            return Err(ProfileError::NotAProfile);
        }
        let (_, _, version, length, crc) = (next()?, next()?, next()?, next()?, next()?);
        if version == 0 || version > u32::from(VERSION) {
            return Err(ProfileError::Version { found: version as u16 });
        }
        if u64::from(length) != encoded.len() as u64 {
            return Err(ProfileError::Length { want: HEADER as u64 + u64::from(length), got: bytes.len() as u64 });
        }
        if checksum(encoded) != crc {
            return Err(ProfileError::Checksum);
        }
        let body = wire::read(encoded, version as u16)?;
        let view = Self { body, rows: body.scope.rows(body.model.query_heads as usize, body.model.kv_heads as usize) };
        view.check()?;
        Ok(view)
    }

    fn check(&self) -> Result<(), ProfileError> {
        let model = &self.body.model;
        let chunks = model.check()?;
        let field = |field, problem| Err(ProfileError::Field { field, problem });
        let product = |a: usize, b: usize, c: usize, size: usize| {
            a.checked_mul(b).and_then(|x| x.checked_mul(c)).and_then(|x| x.checked_mul(size))
        };
        let layers = model.layers as usize;
        for (name, table, per_layer, width, size) in [
            ("ranking", self.body.ranking, self.rows, chunks.len(), 2),
            ("scores", self.body.scores, self.rows, chunks.len(), 4),
            ("key_scale", self.body.key_scale, model.kv_heads as usize, chunks.head_dim(), 4),
            ("key_centre", self.body.key_centre, model.kv_heads as usize, chunks.head_dim(), 4),
        ] {
            if product(layers, per_layer, width, size) != Some(table.len()) {
                return field(name, "its size does not follow from the model's numbers");
            }
        }
        for ranking in self.body.ranking.chunks_exact(2 * chunks.len()) {
            let mut seen = [false; MAX_HEAD_DIM / 2];
            for chunk in ranking.chunks_exact(2) {
                let slot = seen[..chunks.len()].get_mut(usize::from(u16::from_le_bytes([chunk[0], chunk[1]])));
                if slot.is_none_or(|seen| core::mem::replace(seen, true)) {
                    return field("ranking", "every head ranks each of its chunks once");
                }
            }
        }
        if !floats(self.body.scores).all(f32::is_finite) {
            return field("scores", "scores are finite");
        }
        if !floats(self.body.key_scale).all(|s| s.is_finite() && s > 0.0) {
            return field("key_scale", "scales are finite and positive");
        }
        if !floats(self.body.key_centre).all(f32::is_finite) {
            return field("key_centre", "centres are finite");
        }
        Ok(())
    }

    /// The format version of the file.
    pub fn version(&self) -> u16 {
        self.body.model.version()
    }

    /// The model it was calibrated for.
    pub fn model(&self) -> &Model<'a> {
        &self.body.model
    }

    /// The criterion that ranked the chunks.
    pub fn criterion(&self) -> CriterionKind {
        self.body.criterion
    }

    /// K of the agreement criterion, 0 for others.
    pub fn agreement_k(&self) -> u32 {
        self.body.agreement_k
    }

    /// Whether chunks are ranked per KV head or per query head.
    pub fn scope(&self) -> Scope {
        self.body.scope
    }

    /// Decode steps that calibration observed.
    pub fn steps(&self) -> u64 {
        self.body.steps
    }

    /// What was read to calibrate.
    pub fn text(&self) -> &'a str {
        self.body.text
    }

    /// Rankings per layer.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Chunks of head `row` of `layer`, best first; empty if there is no such head.
    pub fn ranking(&self, layer: usize, row: usize) -> impl ExactSizeIterator<Item = u16> + 'a {
        let table = self.table(self.body.ranking, layer, row, 2);
        table.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
    }

    /// Scores of those chunks, in the same order.
    pub fn scores(&self, layer: usize, row: usize) -> impl ExactSizeIterator<Item = f32> + 'a {
        floats(self.table(self.body.scores, layer, row, 4))
    }

    /// Static scale of one key channel; 1 if there is none such.
    pub fn key_scale(&self, layer: usize, kv_head: usize, channel: usize) -> f32 {
        self.channel(self.body.key_scale, layer, kv_head, channel).unwrap_or(1.0)
    }

    /// Static centre of one key channel; 0 if there is none such.
    pub fn key_centre(&self, layer: usize, kv_head: usize, channel: usize) -> f32 {
        self.channel(self.body.key_centre, layer, kv_head, channel).unwrap_or(0.0)
    }

    fn table(&self, bytes: &'a [u8], layer: usize, row: usize, size: usize) -> &'a [u8] {
        if layer >= self.body.model.layers as usize || row >= self.rows {
            return &[];
        }
        // Within the table, whose size was checked: no product overflows.
        let length = size * self.body.model.head_dim as usize / 2;
        let start = (layer * self.rows + row) * length;
        bytes.get(start..start + length).unwrap_or(&[])
    }

    fn channel(&self, table: &[u8], layer: usize, kv_head: usize, channel: usize) -> Option<f32> {
        let (heads, dim) = (self.body.model.kv_heads as usize, self.body.model.head_dim as usize);
        if layer >= self.body.model.layers as usize || kv_head >= heads || channel >= dim {
            return None;
        }
        let at = 4 * ((layer * heads + kv_head) * dim + channel);
        let b = table.get(at..at + 4)?;
        Some(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
}

fn floats(bytes: &[u8]) -> impl ExactSizeIterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}
