//! Which rows of one head lie on the device, and where.

/// No position, no slot.
const NONE: u32 = u32::MAX;

/// The book of a head's rows on the device.
///
/// A row that a step chooses stays for the next ones; one that was chosen again outlives those that a single step wanted. Rows
/// that are found cost one look into a table, rows that are not a few more.
#[derive(Debug, Clone)]
pub struct Slots {
    /// Positions by their hash, then by the next free place; a power of two, at most half full.
    table: Vec<Entry>,
    held: Vec<Held>,
    /// Where the search for a slot to give away goes on.
    hand: usize,
    /// Steps so far.
    step: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    position: u32,
    slot: u32,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    position: u32,
    /// The last step that chose it.
    step: u32,
    /// Whether a step before that one had chosen it.
    again: bool,
}

const FREE: Entry = Entry { position: NONE, slot: NONE };
const EMPTY: Held = Held { position: NONE, step: 0, again: false };

impl Slots {
    /// For so many rows.
    pub fn new(slots: usize) -> Self {
        Self { table: vec![FREE; (2 * slots.max(1)).next_power_of_two()], held: vec![EMPTY; slots], hand: 0, step: 0 }
    }

    /// Rows that there is room for.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether there is room for none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Finds a slot for each of the positions that a step chose, of which no more may differ than there are slots. `slots`
    /// gets them, in the order of the positions; `missing` gets positions that were not there, each once, with the slot that
    /// they must be brought to. Returns how many of `positions` were there.
    ///
    /// Time: O(positions), and O(slots) over some steps.
    ///
    /// # Panics
    /// If more positions differ than there are slots.
    pub fn place(&mut self, positions: &[u32], slots: &mut Vec<u32>, missing: &mut Vec<(u32, u32)>) -> usize {
        self.step += 1;
        let first = slots.len();
        let mut there = 0;
        // Those that are there first, so that none of them is given away.
        for position in positions {
            let slot = self.find(*position);
            slots.push(slot);
            if slot != NONE {
                there += 1;
                let held = &mut self.held[slot as usize];
                held.again |= held.step != self.step;
                held.step = self.step;
            }
        }
        for (slot, position) in slots[first..].iter_mut().zip(positions) {
            if *slot == NONE {
                // Another list of the same head may just have asked for it.
                *slot = self.find(*position);
                if *slot == NONE {
                    *slot = self.give(*position);
                    missing.push((*position, *slot));
                }
            }
        }
        there
    }

    /// Rows from `position` on are others from now on.
    pub fn truncate(&mut self, position: u32) {
        for slot in 0..self.held.len() {
            let held = self.held[slot].position;
            if held != NONE && held >= position {
                self.remove(held);
                self.held[slot] = EMPTY;
            }
        }
    }

    /// No row is there any more.
    pub fn clear(&mut self) {
        self.table.fill(FREE);
        self.held.fill(EMPTY);
    }

    fn give(&mut self, position: u32) -> u32 {
        let slot = self.next_slot();
        let old = self.held[slot].position;
        if old != NONE {
            self.remove(old);
        }
        self.held[slot] = Held { position, step: self.step, again: false };
        let mut at = self.home(position);
        while self.table[at] != FREE {
            at = self.after(at);
        }
        self.table[at] = Entry { position, slot: slot as u32 };
        slot as u32
    }

    /// The next slot whose row no step wants: what was chosen again gets a second chance.
    fn next_slot(&mut self) -> usize {
        // The first round may take all second chances.
        for _ in 0..=2 * self.held.len() {
            let slot = self.hand;
            self.hand = if slot + 1 == self.held.len() { 0 } else { slot + 1 };
            let held = &mut self.held[slot];
            if held.position == NONE {
                return slot;
            }
            if held.step != self.step {
                if !held.again {
                    return slot;
                }
                held.again = false;
            }
        }
        panic!("more rows were chosen than there are slots");
    }

    fn find(&self, position: u32) -> u32 {
        let mut at = self.home(position);
        loop {
            let Entry { position: known, slot } = self.table[at];
            if known == position || known == NONE {
                return slot;
            }
            at = self.after(at);
        }
    }

    fn remove(&mut self, position: u32) {
        let mut hole = self.home(position);
        while self.table[hole].position != position {
            if self.table[hole] == FREE {
                return;
            }
            hole = self.after(hole);
        }
        // Those behind it move up, unless they are nearer to their home already.
        let mut at = hole;
        loop {
            at = self.after(at);
            let entry = self.table[at];
            if entry == FREE {
                break;
            }
            let (from_home, from_hole) = (self.distance(self.home(entry.position), at), self.distance(hole, at));
            if from_home >= from_hole {
                self.table[hole] = entry;
                hole = at;
            }
        }
        self.table[hole] = FREE;
    }

    fn home(&self, position: u32) -> usize {
        let bits = self.table.len().ilog2();
        (position.wrapping_mul(0x9e37_79b1) >> (32 - bits.max(1))) as usize & (self.table.len() - 1)
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.table.len() - 1)
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.table.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    /// A cheap source of numbers.
    fn random(state: &mut u64) -> u32 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as u32
    }

    /// What lies in each slot, kept naively: every chosen row must be in the slot that is named for it.
    #[test]
    fn every_chosen_row_is_in_its_slot() {
        let mut state = 1;
        for (count, budget, range) in [(8, 8, 40), (64, 16, 90), (64, 16, 5_000), (1, 1, 7), (100, 33, 200)] {
            let (mut slots, mut there) = (Slots::new(count), HashMap::new());
            for step in 0..400 {
                let mut chosen: Vec<u32> = (0..budget).map(|_| random(&mut state) % range).collect();
                chosen.sort_unstable();
                chosen.dedup();
                let (mut found, mut missing) = (vec![], vec![]);
                let at_hand = slots.place(&chosen, &mut found, &mut missing);
                let known: HashSet<u32> = there.values().copied().collect();
                assert_eq!(at_hand, chosen.iter().filter(|p| known.contains(p)).count(), "step {step}");
                assert_eq!(at_hand + missing.len(), chosen.len());
                for (position, slot) in &missing {
                    there.insert(*slot, *position);
                }
                for (position, slot) in chosen.iter().zip(&found) {
                    assert_eq!(there.get(slot), Some(position), "step {step}");
                }
                if step % 50 == 49 {
                    let from = random(&mut state) % range;
                    slots.truncate(from);
                    there.retain(|_, position| *position < from);
                }
            }
            slots.clear();
            let mut missing = vec![];
            assert_eq!(slots.place(&[0], &mut vec![], &mut missing), 0);
            assert_eq!(missing.len(), 1);
        }
    }

    #[test]
    fn lists_of_one_head_share_a_row() {
        let mut slots = Slots::new(6);
        let (mut found, mut missing) = (vec![], vec![]);
        slots.place(&[5, 9, 7, 9, 5], &mut found, &mut missing);
        assert_eq!((missing.len(), found[0], found[1]), (3, found[4], found[3]));
    }

    /// Rows of every step stay, though each step brings as many others as there is room for beside them.
    #[test]
    fn what_is_chosen_again_stays() {
        let mut slots = Slots::new(16);
        for step in 0..50u32 {
            let chosen: Vec<u32> = (0..4).chain(100 + 8 * step..108 + 8 * step).collect();
            let mut missing = vec![];
            let there = slots.place(&chosen, &mut vec![], &mut missing);
            assert_eq!(there, if step == 0 { 0 } else { 4 }, "step {step}");
        }
    }
}
