//! Seeded draws that give the same tasks on every platform.
//!
//! Everything is drawn as `u32` from ChaCha8, whose output is fixed by its specification, and reduced to a range by
//! the rule written out in [`Draws::below`]. Nothing depends on the width of `usize` or on the sampling code of a
//! library, so a task keeps its wording when dependencies move.

use std::collections::HashSet;
use std::hash::Hash;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::Task;

/// What a text is drawn for. Each purpose has key bytes of its own, so no seed of one ever meets a seed of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Questions that are scored.
    Evaluation,
    /// Text that chunks are calibrated on.
    Calibration,
    /// The order of chunks that nothing has ranked.
    Chunks,
}

impl Purpose {
    fn tag(self) -> &'static [u8; 8] {
        match self {
            Self::Evaluation => b"evaluate",
            Self::Calibration => b"calibrat",
            Self::Chunks => b"chunkset",
        }
    }
}

/// A stream of draws, one per (purpose, task, seed, index).
#[derive(Clone, Debug)]
pub(crate) struct Draws(ChaCha8Rng);

impl Draws {
    pub(crate) fn new(purpose: Purpose, task: Task, seed: u64, index: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(purpose.tag());
        // Task names differ in the eight bytes set aside for them; the rest of shorter ones stays zero.
        for (byte, &letter) in key[8..16].iter_mut().zip(task.name().as_bytes()) {
            *byte = letter;
        }
        key[16..24].copy_from_slice(&seed.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(index);
        Self(rng)
    }

    /// Uniform in `0..bound` by Lemire's multiplication with rejection. A bound of zero counts as one.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        let bound = bound.max(1);
        // The lowest `2^32 mod bound` products would make some results more likely than others.
        let rejected = bound.wrapping_neg() % bound;
        loop {
            let product = u64::from(self.0.next_u32()) * u64::from(bound);
            if product as u32 >= rejected {
                return (product >> 32) as u32;
            }
        }
    }

    /// Uniform in `low..=high`; `low` where the range is empty.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        let span = high.saturating_sub(low).saturating_add(1);
        // Lengths beyond 2^32 tokens do not occur; saturating keeps the draw defined there as well.
        low + self.below(u32::try_from(span).unwrap_or(u32::MAX)) as usize
    }

    /// One word of a list; the empty word from an empty list.
    pub(crate) fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        let at = self.between(0, list.len().saturating_sub(1));
        list.get(at).copied().unwrap_or_default()
    }

    /// A number of exactly `digits` digits, leading zeros included.
    pub(crate) fn digits(&mut self, digits: u32) -> String {
        let number = self.below(10_u32.pow(digits));
        format!("{number:0width$}", width = digits as usize)
    }
}

/// Remembers what was drawn, so that nothing comes twice.
#[derive(Debug)]
pub(crate) struct Distinct<T>(HashSet<T>);

impl<T: Eq + Hash + Clone> Distinct<T> {
    pub(crate) fn new() -> Self {
        Self(HashSet::new())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Draws until something new comes. The caller keeps the space of values far larger than what it asks for.
    pub(crate) fn draw(&mut self, mut next: impl FnMut() -> T) -> T {
        loop {
            let value = next();
            if self.0.insert(value.clone()) {
                return value;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn draws(seed: u64, index: u64) -> Draws {
        Draws::new(Purpose::Evaluation, Task::Needle, seed, index)
    }

    #[test]
    fn the_first_draws_never_change() {
        let mut fixed = draws(1, 2);
        let first: Vec<u32> = (0..6).map(|_| fixed.below(1000)).collect();
        assert_eq!(first, [973, 848, 682, 79, 610, 603]);
        assert_eq!(fixed.digits(6), "283726");
    }

    #[test]
    fn streams_differ_by_every_part_of_their_name() {
        let start = |mut stream: Draws| (0..4).map(|_| stream.below(u32::MAX)).collect::<Vec<_>>();
        let all = [
            start(draws(1, 2)),
            start(draws(2, 2)),
            start(draws(1, 3)),
            start(Draws::new(Purpose::Calibration, Task::Needle, 1, 2)),
            start(Draws::new(Purpose::Evaluation, Task::Kv, 1, 2)),
        ];
        let distinct: HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn draws_below_a_bound_are_even() {
        let mut even = draws(7, 0);
        let mut seen = [0_u32; 7];
        for _ in 0..70_000 {
            seen[even.below(7) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| n.abs_diff(10_000) < 500), "{seen:?}");
    }

    #[test]
    fn edges_of_ranges_are_defined() {
        let mut edge = draws(0, 0);
        assert_eq!(edge.below(0), 0);
        assert_eq!(edge.below(1), 0);
        assert_eq!(edge.between(5, 5), 5);
        assert_eq!(edge.between(5, 2), 5);
        assert_eq!(edge.pick(&[]), "");
        let both: HashSet<usize> = (0..64).map(|_| edge.between(3, 4)).collect();
        assert_eq!(both, HashSet::from([3, 4]));
    }

    #[test]
    fn digits_keep_their_leading_zeros() {
        let mut numbers = draws(3, 0);
        let drawn: Vec<String> = (0..500).map(|_| numbers.digits(5)).collect();
        assert!(drawn.iter().all(|n| n.len() == 5));
        assert!(drawn.iter().any(|n| n.starts_with('0')));
    }

    #[test]
    fn distinct_never_repeats() {
        let mut source = draws(4, 0);
        let mut distinct = Distinct::new();
        let mut drawn: Vec<u32> = (0..50).map(|_| distinct.draw(|| source.below(50))).collect();
        drawn.sort_unstable();
        assert_eq!(drawn, (0..50).collect::<Vec<_>>());
        assert_eq!(distinct.len(), 50);
    }
}
