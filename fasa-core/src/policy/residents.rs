//! The book about the rows of one cache head: which tokens they are, and where the last eviction moved them.

use crate::budget::Guarantees;
use crate::error::{Error, Result, expect_capacity, expect_length};

/// Numbers of a book that outlive a view of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    rows: usize,
    seen: usize,
    /// Rows that are where they were before the last eviction; the others have moved down.
    unmoved: usize,
    /// Rows appended since a policy last took note of them.
    fresh: usize,
}

/// The rows of one cache head, oldest first: for each its token's position, one number that a policy notes down, and the
/// row it was before the last eviction.
///
/// A view of a [`ResidentArray`], or of a `ResidentVec` with the feature `alloc`.
#[derive(Debug)]
pub struct Residents<'s> {
    counts: &'s mut Counts,
    positions: &'s mut [u32],
    sources: &'s mut [u32],
    notes: &'s mut [f32],
}

impl Residents<'_> {
    /// Rows that remain.
    pub fn len(&self) -> usize {
        self.counts.rows
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.counts.rows == 0
    }

    /// Rows there is room for.
    pub fn capacity(&self) -> usize {
        self.positions.len()
    }

    /// Tokens that were ever appended: the position of the next one.
    pub fn seen(&self) -> usize {
        self.counts.seen
    }

    /// The tokens' absolute positions, ascending.
    pub fn positions(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.positions[..self.len()].iter().copied()
    }

    /// For each row the one it was before the last eviction, ascending: what a gather on a device takes.
    pub fn sources(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.sources[..self.len()].iter().copied()
    }

    /// Rows that the last eviction left where they were: all before the first one dropped.
    pub fn unmoved(&self) -> usize {
        self.counts.unmoved
    }

    /// Takes `rows` new rows into the book; the engine has written them behind the others.
    ///
    /// # Errors
    /// [`Error::Capacity`] if there is no room, [`Error::Range`] if a position exceeds `u32`.
    pub fn append(&mut self, rows: usize) -> Result<()> {
        let (now, seen) = (self.len().saturating_add(rows), self.seen().saturating_add(rows));
        expect_capacity("residents", self.capacity(), now)?;
        if seen > u32::MAX as usize {
            return Err(Error::Range { what: "position", problem: "positions are 32-bit" });
        }
        for (row, position) in (self.len()..now).zip(self.seen()..) {
            self.positions[row] = position as u32;
            self.notes[row] = 0.0;
        }
        *self.counts = Counts { rows: now, seen, fresh: self.counts.fresh + rows, ..*self.counts };
        self.stay();
        Ok(())
    }

    /// Moves the rows of `data`, `[rows, width]` as before the last eviction, to where they are now. Touches nothing before
    /// the first row dropped; what is behind the last one is left over.
    ///
    /// # Errors
    /// [`Error::Length`] if `data` ends before the last row that has to be moved.
    pub fn compact<T: Copy>(&self, data: &mut [T], width: usize) -> Result<()> {
        let last = self.sources().last().map_or(0, |source| (source as usize + 1) * width);
        if data.len() < last {
            return Err(Error::Length { what: "data", want: last, got: data.len() });
        }
        for (row, source) in self.sources().enumerate().skip(self.unmoved()) {
            let source = source as usize * width;
            data.copy_within(source..source + width, row * width);
        }
        Ok(())
    }

    /// Forgets everything: the next row is position 0 of another sequence.
    pub fn clear(&mut self) {
        *self.counts = Counts::default();
    }

    // For authors of policies.

    /// The number that the policy notes down for each row; 0 for a new one. Moves along with its row.
    pub fn notes(&mut self) -> &mut [f32] {
        &mut self.notes[..self.counts.rows]
    }

    /// Rows appended since this was last asked, for policies that add something up once per token.
    pub fn take_fresh(&mut self) -> usize {
        core::mem::take(&mut self.counts.fresh)
    }

    /// Keeps the rows that `choose` writes, ascending and with the newest among them; it returns how many. Returns that
    /// too.
    ///
    /// # Errors
    /// What `choose` returns, or [`Error::Range`] for rows that are not ascending, not there, or lack the newest. All rows
    /// remain then.
    pub fn keep(&mut self, choose: impl FnOnce(&mut [u32]) -> Result<usize>) -> Result<usize> {
        let rows = self.len();
        let chosen = choose(&mut self.sources[..rows]);
        let kept = match chosen {
            Ok(kept) if self.sources[..rows].get(..kept).is_some_and(|rows_kept| is_subset(rows_kept, rows)) => kept,
            wrong => {
                self.counts.unmoved = 0; // `choose` may have written anywhere
                self.stay();
                wrong?;
                return Err(Error::Range { what: "kept rows", problem: "they ascend and end with the newest" });
            }
        };
        for row in 0..kept {
            let source = self.sources[row] as usize;
            (self.positions[row], self.notes[row]) = (self.positions[source], self.notes[source]);
        }
        self.counts.rows = kept;
        self.counts.unmoved = self.sources().zip(0..).take_while(|(source, row)| source == row).count();
        Ok(kept)
    }

    /// Keeps all rows. Returns how many.
    pub fn keep_all(&mut self) -> usize {
        self.stay();
        self.len()
    }

    /// Keeps `budget` rows: the guaranteed ones, then the best by `scores`, one per row; ties go to the older row. Sinks
    /// are positions as long as none of them was ever dropped. Returns how many rows remain.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one score per row, [`Error::Capacity`] if `entries` is too small, both as in
    /// [`Guarantees::pick`].
    pub fn keep_best(
        &mut self,
        scores: &[f32],
        guarantees: Guarantees,
        budget: usize,
        entries: &mut [u64],
    ) -> Result<usize> {
        expect_length("scores", scores.len(), self.len())?;
        self.keep(|out| guarantees.pick(scores, budget.min(scores.len()), entries, out))
    }

    /// Every row is where it was.
    fn stay(&mut self) {
        let rows = self.counts.rows;
        for (row, source) in self.sources[..rows].iter_mut().enumerate().skip(self.counts.unmoved.min(rows)) {
            *source = row as u32;
        }
        self.counts.unmoved = rows;
    }
}

/// Whether `kept` are rows of `rows`, ascending, the last one among them.
fn is_subset(kept: &[u32], rows: usize) -> bool {
    kept.last().map(|last| *last as usize + 1) == Some(rows) && kept.windows(2).all(|w| w[0] < w[1])
}

/// [`Residents`] of at most `N` rows, without an allocator.
#[derive(Debug, Clone)]
pub struct ResidentArray<const N: usize> {
    counts: Counts,
    positions: [u32; N],
    sources: [u32; N],
    notes: [f32; N],
}

impl<const N: usize> ResidentArray<N> {
    /// A book without rows.
    pub const fn new() -> Self {
        let counts = Counts { rows: 0, seen: 0, unmoved: 0, fresh: 0 };
        Self { counts, positions: [0; N], sources: [0; N], notes: [0.0; N] }
    }

    /// The book.
    pub fn view(&mut self) -> Residents<'_> {
        Residents {
            counts: &mut self.counts,
            positions: &mut self.positions,
            sources: &mut self.sources,
            notes: &mut self.notes,
        }
    }
}

impl<const N: usize> Default for ResidentArray<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// [`Residents`] that own their memory and can be given more.
#[cfg(feature = "alloc")]
#[derive(Debug, Clone, Default)]
pub struct ResidentVec {
    counts: Counts,
    positions: alloc::vec::Vec<u32>,
    sources: alloc::vec::Vec<u32>,
    notes: alloc::vec::Vec<f32>,
}

#[cfg(feature = "alloc")]
impl ResidentVec {
    /// A book without rows and room for `rows`.
    pub fn with_capacity(rows: usize) -> Self {
        let mut book = Self::default();
        book.reserve(rows);
        book
    }

    /// Makes room for `rows` rows in all. Never shrinks.
    pub fn reserve(&mut self, rows: usize) {
        let rows = rows.max(self.positions.len());
        self.positions.resize(rows, 0);
        self.sources.resize(rows, 0);
        self.notes.resize(rows, 0.0);
    }

    /// The book.
    pub fn view(&mut self) -> Residents<'_> {
        Residents {
            counts: &mut self.counts,
            positions: &mut self.positions,
            sources: &mut self.sources,
            notes: &mut self.notes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn rows_move_and_positions_stay() {
        let mut book = ResidentArray::<8>::default();
        let mut rows = book.view();
        let mut data = [0u8, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7];
        rows.append(6).expect("room");
        rows.notes().iter_mut().zip(0..).for_each(|(note, i)| *note = i as f32);
        let keep = |kept: &'static [u32]| {
            move |out: &mut [u32]| {
                out[..kept.len()].copy_from_slice(kept);
                Ok(kept.len())
            }
        };
        assert_eq!(rows.keep(keep(&[0, 1, 3, 5])), Ok(4));
        assert_eq!((rows.len(), rows.seen(), rows.unmoved(), rows.capacity()), (4, 6, 2, 8));
        rows.compact(&mut data, 2).expect("rows");
        assert_eq!(data[..8], [0, 0, 1, 1, 3, 3, 5, 5]);
        assert_eq!(rows.notes(), [0.0, 1.0, 3.0, 5.0]);

        // Appending ends the move: compacting again changes nothing.
        rows.append(2).expect("room");
        assert!(rows.positions().eq([0, 1, 3, 5, 6, 7]) && rows.sources().eq(0..6));
        let before = data;
        rows.compact(&mut data, 2).expect("rows");
        assert_eq!((data, rows.notes().to_vec()), (before, [0.0, 1.0, 3.0, 5.0, 0.0, 0.0].to_vec()));
        assert!(rows.append(3).is_err());
        assert_eq!((rows.take_fresh(), rows.take_fresh()), (8, 0));

        // A policy that goes astray changes nothing.
        for wrong in [&[0u32, 1][..], &[5, 5], &[3, 1, 5], &[6], &[]] {
            assert!(rows.keep(keep(Vec::leak(wrong.to_vec()))).is_err(), "{wrong:?}");
            assert!(rows.sources().eq(0..6) && rows.unmoved() == 6);
        }
        assert!(rows.keep(|_| Ok(usize::MAX)).is_err());
        assert!(rows.keep_best(&[0.0; 5], Guarantees::CURRENT, 2, &mut [0; 64]).is_err());
        assert_eq!(rows.keep_best(&[0.0, 2.0, 2.0, 1.0, 0.0, 0.0], Guarantees::CURRENT, 2, &mut [0; 64]), Ok(2));
        assert!(rows.positions().eq([1, 7]));
        assert!(rows.compact(&mut data[..11], 2).is_err());
        assert_eq!(rows.keep_all(), 2);
        rows.clear();
        assert_eq!((rows.len(), rows.seen(), rows.is_empty()), (0, 0, true));
    }
}
