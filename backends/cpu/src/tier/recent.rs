//! Recently chosen rows of one head, in memory.
//!
//! Rows lie in slots; a small hash table finds the slot of a position. When all are taken, a hand goes round: a row that
//! was chosen again since the hand last came by stays, one that was not makes way. So rows that one step alone wanted go
//! first, and rows of the step at hand never do.

use super::{Result, TierShape, Words};
use crate::attention::BLOCK;
use crate::layer::LayerCache;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Slots per row that a step keeps.
const SLOTS_PER_KEPT: usize = 4;

/// Fewest slots, and most.
const FEWEST: usize = 4 * BLOCK;
const MOST: usize = 1 << 14;

const NONE: u32 = u32::MAX;

/// A row that takes longer comes from the disk. Once rows are announced, one that comes from there takes less, but still
/// longer than one that the system had in memory.
const FROM_DISK: Duration = Duration::from_micros(20);
const FROM_DISK_ANNOUNCED: Duration = Duration::from_micros(4);

#[derive(Debug, Default)]
pub(super) struct Recent {
    keys: Words,
    values: Words,
    /// Per slot, the position of its row; [`NONE`] for none.
    positions: Vec<u32>,
    /// Per slot, the last step that chose it.
    chosen_in: Vec<u32>,
    /// Per slot, whether it was chosen again since the hand came by.
    again: Vec<bool>,
    /// Slots without a row.
    free: Vec<u32>,
    /// Slots by the hash of their position, the next free place from there on.
    table: Vec<u32>,
    hand: usize,
    step: u32,
    half: usize,
    /// Whether rows came from the disk, and not from the system's memory, when they were last read.
    from_disk: bool,
    /// The slots of the rows asked for last.
    slots: Vec<u32>,
}

impl Recent {
    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        let words = self.positions.len() + self.chosen_in.len() + self.free.len() + self.table.len() + self.slots.len();
        self.keys.bytes().len() + self.values.bytes().len() + 4 * words + self.again.len()
    }

    /// How many of the rows of a list of `len` can be had at once: whole blocks of the kernels. Makes room for them first.
    pub(super) fn batch(&mut self, len: usize, shape: &TierShape) -> usize {
        let slots = self.positions.len();
        if slots < (2 * len).clamp(FEWEST, MOST) {
            let slots = (SLOTS_PER_KEPT * len).next_multiple_of(BLOCK).clamp(FEWEST, MOST);
            *self = Self {
                positions: vec![NONE; slots],
                chosen_in: vec![0; slots],
                again: vec![false; slots],
                free: (0..slots as u32).rev().collect(),
                table: vec![NONE; (2 * slots).next_power_of_two()],
                half: shape.half_row(),
                ..Self::default()
            };
            self.keys.resize(slots * self.half);
            self.values.resize(slots * self.half);
        }
        self.positions.len()
    }

    /// Finds slots for the rows at `positions`, no more than a [`batch`](Self::batch) and each at most once; `read` gets those that are not here, a
    /// key and its value, after all of them were announced if they come from a disk, which then fetches many at once. Returns
    /// how many were read.
    pub(super) fn fetch(
        &mut self,
        positions: &[u32],
        announce: impl Fn(u32),
        mut read: impl FnMut(u32, &mut [u8]) -> Result<()>,
        row: &mut Vec<u8>,
    ) -> Result<usize> {
        self.step = self.step.wrapping_add(1);
        self.slots.clear();
        // Those that are here must not make way for those that are not.
        for &position in positions {
            let slot = self.find(position);
            if let Some(slot) = slot {
                (self.chosen_in[slot], self.again[slot]) = (self.step, true);
            }
            self.slots.push(slot.map_or(NONE, |slot| slot as u32));
        }
        let missing: Vec<usize> = (0..positions.len()).filter(|i| self.slots[*i] == NONE).collect();
        if missing.is_empty() {
            return Ok(0);
        }
        if self.from_disk {
            missing.iter().for_each(|i| announce(positions[*i]));
        }
        row.resize(2 * self.half, 0);
        let began = Instant::now();
        for i in &missing {
            read(positions[*i], row)?;
            self.slots[*i] = self.insert(positions[*i], row) as u32;
        }
        let bound = if self.from_disk { FROM_DISK_ANNOUNCED } else { FROM_DISK };
        self.from_disk = began.elapsed() > bound * missing.len() as u32;
        Ok(missing.len())
    }

    /// The rows asked for last: the cache that they lie in, and where.
    pub(super) fn rows(&self, shape: &TierShape) -> fasa_core::Result<(LayerCache<'_>, &[u32])> {
        let slots = self.positions.len();
        let numbers = slots * shape.dim;
        let (keys, values) = (self.keys.numbers(shape.format, numbers), self.values.numbers(shape.format, numbers));
        Ok((LayerCache::new(keys, values, 1, slots, shape.dim, slots)?, &self.slots))
    }

    /// Takes in a row that was just written: the next steps want it.
    pub(super) fn put(&mut self, position: u32, row: &[u8]) {
        if self.positions.is_empty() {
            return; // nobody chooses in this layer
        }
        self.step = self.step.wrapping_add(1);
        match self.find(position) {
            Some(slot) => self.fill(slot, row),
            None => drop(self.insert(position, row)),
        }
    }

    /// Drops rows.
    pub(super) fn forget(&mut self, range: Range<u32>) {
        for slot in 0..self.positions.len() {
            if range.contains(&self.positions[slot]) {
                self.remove(slot);
                self.free.push(slot as u32);
            }
        }
    }

    fn insert(&mut self, position: u32, row: &[u8]) -> usize {
        let slot = match self.free.pop() {
            Some(slot) => slot as usize,
            None => self.make_way(),
        };
        self.fill(slot, row);
        (self.positions[slot], self.chosen_in[slot], self.again[slot]) = (position, self.step, false);
        let mut at = self.place(position);
        while self.table[at] != NONE {
            at = (at + 1) % self.table.len();
        }
        self.table[at] = slot as u32;
        slot
    }

    fn fill(&mut self, slot: usize, row: &[u8]) {
        let (key, value) = row.split_at(self.half);
        let to = slot * self.half..(slot + 1) * self.half;
        self.keys.bytes_mut()[to.clone()].copy_from_slice(key);
        self.values.bytes_mut()[to].copy_from_slice(value);
    }

    /// Empties a slot. There are more slots than rows in a step, so the hand finds one.
    fn make_way(&mut self) -> usize {
        loop {
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.positions.len();
            if self.chosen_in[slot] == self.step {
                continue;
            }
            if std::mem::take(&mut self.again[slot]) {
                continue;
            }
            self.remove(slot);
            return slot;
        }
    }

    fn place(&self, position: u32) -> usize {
        let bits = self.table.len().trailing_zeros();
        (position.wrapping_mul(0x9e37_79b1) >> (32 - bits)) as usize
    }

    fn find(&self, position: u32) -> Option<usize> {
        let mut at = self.place(position);
        while self.table[at] != NONE {
            let slot = self.table[at] as usize;
            if self.positions[slot] == position {
                return Some(slot);
            }
            at = (at + 1) % self.table.len();
        }
        None
    }

    /// Takes a slot out of the table; those that were pushed on by it move back.
    fn remove(&mut self, slot: usize) {
        let len = self.table.len();
        let mut hole = self.place(self.positions[slot]);
        while self.table[hole] != slot as u32 {
            hole = (hole + 1) % len;
        }
        let mut at = hole;
        loop {
            at = (at + 1) % len;
            if self.table[at] == NONE {
                break;
            }
            let home = self.place(self.positions[self.table[at] as usize]);
            // How far each is from home, going round.
            if (at + len - home) % len >= (at + len - hole) % len {
                self.table[hole] = self.table[at];
                hole = at;
            }
        }
        self.table[hole] = NONE;
        self.positions[slot] = NONE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::Format;
    use proptest::prelude::*;

    const SHAPE: TierShape = TierShape { layers: 1, kv_heads: 1, dim: 2, format: Format::F32 };

    /// What the file says of a row that was written `version` times.
    fn row(position: u32, version: u32) -> Vec<u8> {
        let numbers = [position, version, position ^ 7, version ^ 7].map(|x| x as f32);
        bytemuck::cast_slice(&numbers).to_vec()
    }

    #[derive(Debug, Clone)]
    enum Act {
        Choose(Vec<u32>),
        Write(u32),
        Rewrite(u32, u32),
    }

    fn act() -> impl Strategy<Value = Act> {
        let list = proptest::collection::btree_set(0..2000u32, 1..=FEWEST / 2);
        prop_oneof![
            4 => list.prop_map(|set| Act::Choose(set.into_iter().collect())),
            2 => (0..2000u32).prop_map(Act::Write),
            1 => (0..2000u32, 1..300u32).prop_map(|(from, count)| Act::Rewrite(from, count)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever was chosen and written before, a chosen row is the one that was written last.
        #[test]
        fn rows_are_those_of_the_file(acts in proptest::collection::vec(act(), 1..60)) {
            let mut file = vec![0u32; 4000];
            let (mut recent, mut buffer) = (Recent::default(), Vec::new());
            for act in acts {
                match act {
                    Act::Choose(positions) => {
                        prop_assert!(recent.batch(positions.len(), &SHAPE) >= positions.len());
                        let read = |position: u32, to: &mut [u8]| {
                            to.copy_from_slice(&row(position, file[position as usize]));
                            Ok(())
                        };
                        let misses = recent.fetch(&positions, |_| {}, read, &mut buffer).expect("no failure");
                        prop_assert!(misses <= positions.len());
                        let (_, slots) = recent.rows(&SHAPE).expect("fits");
                        prop_assert_eq!(slots.len(), positions.len());
                        for (&slot, &position) in slots.iter().zip(&positions) {
                            let slot = slot as usize;
                            let want = row(position, file[position as usize]);
                            let keys: &[u8] = &recent.keys.bytes()[slot * 8..slot * 8 + 8];
                            let values: &[u8] = &recent.values.bytes()[slot * 8..slot * 8 + 8];
                            prop_assert_eq!([keys, values].concat(), want);
                        }
                    }
                    Act::Write(position) => {
                        file[position as usize] += 1;
                        recent.put(position, &row(position, file[position as usize]));
                    }
                    Act::Rewrite(from, count) => {
                        file[from as usize..(from + count) as usize].iter_mut().for_each(|version| *version += 1);
                        recent.forget(from..from + count);
                    }
                }
            }
        }
    }

    #[test]
    fn rows_that_are_chosen_again_stay_and_passing_ones_go() {
        let (mut recent, mut buffer) = (Recent::default(), Vec::new());
        recent.batch(64, &SHAPE);
        let mut misses = vec![];
        for step in 0..50u32 {
            // Half of the rows are always the same, half are always new.
            let positions: Vec<u32> = (0..32).chain(1000 + 32 * step..1032 + 32 * step).collect();
            let read = |position: u32, to: &mut [u8]| {
                to.copy_from_slice(&row(position, 0));
                Ok(())
            };
            misses.push(recent.fetch(&positions, |_| {}, read, &mut buffer).expect("no failure"));
        }
        assert_eq!(misses[0], 64);
        assert!(misses[1..].iter().all(|count| *count == 32), "{misses:?}");
    }

    #[test]
    fn a_failed_read_leaves_no_row_behind() {
        let (mut recent, mut buffer) = (Recent::default(), Vec::new());
        recent.batch(4, &SHAPE);
        let fail = |_: u32, _: &mut [u8]| Err(fasa_core::Error::Missing { what: "disk" }.into());
        assert!(recent.fetch(&[3, 4], |_| {}, fail, &mut buffer).is_err());
        let mut asked = vec![];
        let read = |position: u32, to: &mut [u8]| {
            asked.push(position);
            to.copy_from_slice(&row(position, 0));
            Ok(())
        };
        assert_eq!(recent.fetch(&[3, 4], |_| {}, read, &mut buffer).expect("no failure"), 2);
        assert_eq!(asked, [3, 4]);
    }

    #[test]
    fn rows_are_announced_once_they_come_from_a_disk() {
        let (mut recent, mut buffer) = (Recent::default(), Vec::new());
        recent.batch(4, &SHAPE);
        let announced = std::cell::RefCell::new(vec![]);
        for (step, slow) in [(0, true), (1, true), (2, false), (3, false)] {
            let read = |position: u32, to: &mut [u8]| {
                if slow {
                    std::thread::sleep(2 * FROM_DISK);
                }
                to.copy_from_slice(&row(position, 0));
                Ok(())
            };
            let positions = [0, 2 * step + 1, 2 * step + 2];
            recent.fetch(&positions, |p| announced.borrow_mut().push(p), read, &mut buffer).expect("no failure");
        }
        // Whether the third step's rows were slow, the clock says: no more is sure than that it was announced.
        assert!(announced.borrow().starts_with(&[3, 4, 5, 6]), "{announced:?}");
    }
}
