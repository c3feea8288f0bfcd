//! The rows of one layer that stay on the device, and who keeps the book of them.

use super::super::{HostOptions, Layout};
use fasa_cube::attend::Cache;
use fasa_cube::tier::{Book, Slots};
use fasa_cube::{Format, Gpu};

/// Rows of a head that stay on the device: at least and at most, where a step does not choose more.
const FEWEST: usize = 256;
const MOST: usize = 16_384;

/// Rows of one layer on the device.
pub(super) struct Kept {
    /// `[kv_heads, slots, dim]` each.
    pub rows: Cache,
    /// Per head; none where the device keeps the book.
    pub slots: Vec<Slots>,
    pub book: Option<Book>,
    /// Rows that a step chooses, all heads' and lists', and lists.
    pub per_step: [u64; 2],
    /// The same, of all steps that the device took by itself; and the tokens of the last of them.
    pub chosen: [u64; 2],
    pub last: usize,
}

impl HostOptions {
    /// Slots for a head of which a step chooses `per_head` rows, in lists of `budget`.
    pub(super) fn slots(&self, per_head: usize, budget: usize) -> usize {
        match self.kept_per_chosen {
            0 => per_head,
            // Lists of one head choose much the same.
            factor => (factor * budget.max(per_head / 2)).clamp(FEWEST, MOST).max(per_head + per_head / 8),
        }
    }
}

impl Kept {
    pub fn new(gpu: &Gpu, layout: &Layout, format: Format, capacity: usize, on_device: bool) -> Self {
        let Layout { kv_heads: heads, dim, .. } = *layout;
        let words = heads * capacity * dim / format.per_word();
        let (keys, values) = (gpu.words(words), gpu.words(words));
        let rows = Cache { format, keys, values, heads, capacity, dim };
        let (book, slots) = match on_device {
            true => (Some(Book::new(gpu, heads, capacity)), Vec::new()),
            false => (None, vec![Slots::new(capacity); heads]),
        };
        Self { rows, slots, book, per_step: [0; 2], chosen: [0; 2], last: 0 }
    }

    /// Rows that were at hand, and rows that came from the host, in steps that the device took by itself.
    pub fn totals(&self, gpu: &Gpu) -> [u64; 2] {
        let [chosen, own] = self.chosen;
        // A device that fails says so at its next step.
        let missing = self.book.as_ref().map_or(chosen, |book| book.totals(gpu).map_or(0, |[_, missing]| missing));
        // The new token's row is among the missing ones of each list, and was at hand.
        let fetched = missing.saturating_sub(own);
        [chosen.saturating_sub(fetched), fetched]
    }
}

/// What two books counted.
pub(super) fn add([a, b]: [u64; 2], [c, d]: [u64; 2]) -> [u64; 2] {
    [a + c, b + d]
}
