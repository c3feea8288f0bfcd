//! The best N of n scores, without allocation.
//!
//! Scores are packed with their positions into one integer ([`Score::Entry`]) whose order is the wanted one: higher
//! score first, in a tie the lower position first, NaN last. A buffer of at least 2N entries collects what reaches a
//! bar; when it is full, a linear-time partition halves it and raises the bar to the Nth best seen so far. Almost every
//! score of a long context then costs one comparison in a loop the compiler vectorizes.
//!
//! [`top_n`], which has all scores before it, sets the first bar by a sample: a little under where the Nth best should
//! be. A sample can mislead, which shows at the end, when fewer than N scores have passed; then all are looked at again
//! without it. The result is exact either way.

use crate::error::{Error, Result, expect_capacity};

/// A number that can be ranked: `f32` for policies, `f64` for calibration.
pub trait Score: Copy + PartialOrd {
    /// Score and position in one integer that sorts best last.
    type Entry: Copy + Ord;
    /// The entry that loses against every other.
    const WORST: Self::Entry;
    /// Packs a score at a position.
    fn entry(self, position: u32) -> Self::Entry;
    /// The position in an entry.
    fn position(entry: Self::Entry) -> u32;
    /// The score in an entry. A NaN comes back as negative infinity.
    fn score(entry: Self::Entry) -> Self;
}

macro_rules! score {
    ($float:ty, $bits:ty, $entry:ty) => {
        impl Score for $float {
            type Entry = $entry;
            const WORST: $entry = 0;
            #[inline]
            fn entry(self, position: u32) -> $entry {
                // Order-preserving map of IEEE floats to unsigned integers; `+ 0.0` makes the two zeros tie.
                let value = if self.is_nan() { <$float>::NEG_INFINITY } else { self + 0.0 };
                let bits = value.to_bits();
                let sign = 1 << (<$bits>::BITS - 1);
                let key = if bits & sign != 0 { !bits } else { bits | sign };
                ((key as $entry) << 32) | (!position) as $entry
            }
            #[inline]
            fn position(entry: $entry) -> u32 {
                !(entry as u32)
            }
            #[inline]
            fn score(entry: $entry) -> $float {
                let key = (entry >> 32) as $bits;
                let sign = 1 << (<$bits>::BITS - 1);
                if entry == 0 {
                    return <$float>::NEG_INFINITY;
                }
                <$float>::from_bits(if key & sign != 0 { key & !sign } else { !key })
            }
        }
    };
}
score!(f32, u32, u64);
score!(f64, u64, u128);

/// Entries of scratch that [`TopN`] and [`top_n`] need at least for the best `n`. More is faster, up to about `4 * n`.
pub const fn scratch_len(n: usize) -> usize {
    if n < 32 { 64 } else { 2 * n }
}

/// Scores are looked at in blocks of this many: which of them reach the bar are the bits of one mask.
const BLOCK: usize = 32;

/// Scores of the sample that sets the first bar.
const SAMPLE: usize = 1024;

/// The best N of a stream of scores.
///
/// Time: one comparison per score that is not among the best seen so far, amortized O(1) for the others. Space: the
/// caller's scratch.
#[derive(Debug)]
pub struct TopN<'s, S: Score> {
    buffer: &'s mut [S::Entry],
    filled: usize,
    n: usize,
    /// What a score must reach. Unless it was guessed, no score under it can be among the best n.
    bar: S,
    raised: bool,
    /// Whether the buffer is in the order of positions.
    ordered: bool,
    /// The position after the last one that was pushed.
    end: u32,
}

impl<'s, S: Score> TopN<'s, S> {
    /// Starts looking for the best `n`.
    ///
    /// # Errors
    /// [`Error::Capacity`] if `scratch` has fewer than [`scratch_len`]`(n)` entries.
    pub fn new(n: usize, scratch: &'s mut [S::Entry]) -> Result<Self> {
        expect_capacity("scratch", scratch.len(), scratch_len(n))?;
        Ok(Self { buffer: scratch, filled: 0, n, bar: S::score(S::WORST), raised: false, ordered: true, end: 0 })
    }

    /// Adds a block of scores; the first has position `first`, the others follow.
    ///
    /// # Errors
    /// [`Error::Range`] if a position exceeds `u32`.
    pub fn push(&mut self, first: usize, scores: &[S]) -> Result<()> {
        let Some(end) = first.checked_add(scores.len()).and_then(|end| u32::try_from(end).ok()) else {
            return Err(Error::Range { what: "position", problem: "positions are 32-bit" });
        };
        let mut position = first as u32;
        self.ordered &= position >= self.end;
        self.end = self.end.max(end);
        if self.n == 0 {
            return Ok(());
        }
        let blocks = scores.chunks_exact(BLOCK);
        let rest = blocks.remainder();
        for block in blocks {
            let mask = self.passing(block);
            if mask != 0 {
                self.push_block(position, block, mask);
            }
            position += BLOCK as u32;
        }
        self.push_block(position, rest, self.passing(rest));
        Ok(())
    }

    /// Which scores of a block reach the bar, lowest bit first.
    #[inline(always)]
    fn passing(&self, block: &[S]) -> u32 {
        if !self.raised {
            return ((1u64 << block.len()) - 1) as u32;
        }
        // A fold without branches vectorizes. Not `!(score < bar)`: a NaN must not pass.
        block.iter().enumerate().fold(0, |mask, (i, score)| mask | (u32::from(*score >= self.bar) << i))
    }

    #[inline]
    fn push_block(&mut self, first: u32, block: &[S], mut mask: u32) {
        if self.filled + BLOCK > self.buffer.len() {
            // More than n are there: `scratch_len` leaves room for a block beside them.
            self.compact();
        }
        while mask != 0 {
            let i = mask.trailing_zeros();
            self.buffer[self.filled] = block[i as usize].entry(first + i);
            self.filled += 1;
            mask &= mask - 1;
        }
    }

    /// Keeps the best n of the buffer and raises the bar to the worst of them.
    fn compact(&mut self) {
        if self.filled <= self.n {
            return;
        }
        let worst_kept = nth_best::<S>(&mut self.buffer[..self.filled], self.n - 1);
        self.raise(S::score(worst_kept));
        (self.filled, self.ordered) = (self.n, false);
    }

    fn raise(&mut self, bar: S) {
        self.bar = bar;
        // A bar at the bottom keeps nothing out: a NaN, which ranks there too, would fail the comparison with it.
        self.raised = bar > S::score(S::WORST);
    }

    /// Guesses the first bar from a sample of the scores that will be pushed.
    fn guess(&mut self, scores: &[S]) {
        let wanted = SAMPLE.min(self.buffer.len()).min(scores.len() / 4);
        if wanted == 0 {
            return;
        }
        // From end to end, and at an odd step: texts repeat themselves at even ones.
        let sample = scores.iter().step_by(scores.len().div_ceil(wanted) | 1);
        let taken = sample.len();
        for (slot, score) in self.buffer.iter_mut().zip(sample) {
            *slot = score.entry(0);
        }
        // So many of the sample are among the best n, give or take the square root. Three times that is hardly ever short.
        let expected = (self.n as u64 * taken as u64).div_ceil(scores.len() as u64) as usize;
        let rank = expected + 3 * expected.isqrt() + 1;
        if rank < taken {
            let bar = nth_best::<S>(&mut self.buffer[..taken], rank);
            self.raise(S::score(bar));
        }
    }

    /// The positions of the best n (all, if fewer came), ascending. Returns how many were written to `out`.
    ///
    /// # Errors
    /// [`Error::Capacity`] if `out` cannot hold them.
    pub fn finish(mut self, out: &mut [u32]) -> Result<usize> {
        let kept = self.filled.min(self.n);
        expect_capacity("out", out.len(), kept)?;
        let out = &mut out[..kept];
        let (filled, free) = self.buffer.split_at_mut(self.filled);
        if self.ordered && kept > 0 && filled.len() <= free.len() {
            // Partitioning a copy saves sorting: the entries that stay are still in order.
            let copy = &mut free[..filled.len()];
            copy.copy_from_slice(filled);
            let worst_kept = nth_best::<S>(copy, kept - 1);
            let best = filled.iter().filter(|entry| **entry >= worst_kept);
            out.iter_mut().zip(best).for_each(|(slot, entry)| *slot = S::position(*entry));
            return Ok(kept);
        }
        self.compact();
        for (slot, entry) in out.iter_mut().zip(&*self.buffer) {
            *slot = S::position(*entry);
        }
        out.sort_unstable();
        Ok(kept)
    }
}

/// The entry that `n` others beat. Everything better lies before it then.
fn nth_best<S: Score>(entries: &mut [S::Entry], n: usize) -> S::Entry {
    *entries.select_nth_unstable_by(n, |a, b| b.cmp(a)).1
}

/// Positions of the `n` best `scores`, ascending; ties go to the lower position, NaN counts as the lowest score.
/// Returns how many were written: `min(n, scores.len())`.
///
/// Time O(len + n log n), no allocation.
///
/// # Errors
/// [`Error::Capacity`] if `scratch` has fewer than [`scratch_len`]`(n)` entries or `out` cannot hold the result.
///
/// # Examples
/// ```
/// use fasa_core::select::{scratch_len, top_n};
/// let mut scratch = [0; scratch_len(2)];
/// let mut best = [0; 2];
/// assert_eq!(top_n(&[0.5_f32, 2.0, 0.1, 2.0, 2.0], 2, &mut scratch, &mut best), Ok(2));
/// assert_eq!(best, [1, 3]);
/// ```
pub fn top_n<S: Score>(scores: &[S], n: usize, scratch: &mut [S::Entry], out: &mut [u32]) -> Result<usize> {
    if n >= scores.len() {
        expect_capacity("out", out.len(), scores.len())?;
        for (position, slot) in out.iter_mut().take(scores.len()).enumerate() {
            *slot = position as u32;
        }
        return Ok(scores.len());
    }
    let mut best = TopN::<S>::new(n, scratch)?;
    best.guess(scores);
    best.push(0, scores)?;
    if best.filled < n {
        best = TopN::new(n, scratch)?;
        best.push(0, scores)?;
    }
    best.finish(out)
}

/// [`top_n`] of a constant `N`, with everything on the stack: a heap of N entries. Time O(len + changes log N), for small N.
///
/// # Errors
/// [`Error::Range`] if a position exceeds `u32`.
///
/// # Examples
/// ```
/// use fasa_core::select::top_n_fixed;
/// assert_eq!(top_n_fixed::<f32, 2>(&[0.5, 2.0, 0.1, 2.0, 2.0])?, [1, 3]);
/// # Ok::<(), fasa_core::Error>(())
/// ```
pub fn top_n_fixed<S: Score, const N: usize>(scores: &[S]) -> Result<heapless::Vec<u32, N>> {
    if scores.len() > u32::MAX as usize {
        return Err(Error::Range { what: "position", problem: "positions are 32-bit" });
    }
    let mut best = heapless::binary_heap::BinaryHeap::<S::Entry, heapless::binary_heap::Min, N>::new();
    for (score, position) in scores.iter().zip(0..) {
        let entry = score.entry(position);
        if best.push(entry).is_err() {
            // Full: the worst of the best makes room, if it is worse.
            if let Some(mut worst) = best.peek_mut().filter(|worst| **worst < entry) {
                *worst = entry;
            }
        }
    }
    let mut positions: heapless::Vec<u32, N> = best.iter().map(|entry| S::position(*entry)).collect();
    positions.sort_unstable();
    Ok(positions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn naive(scores: &[f32], n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..scores.len() as u32).collect();
        let value = |i: u32| if scores[i as usize].is_nan() { f32::NEG_INFINITY } else { scores[i as usize] };
        order.sort_by(|&a, &b| value(b).partial_cmp(&value(a)).expect("no NaN").then(a.cmp(&b)));
        order.truncate(n);
        order.sort_unstable();
        order
    }

    fn fast(scores: &[f32], n: usize, extra: usize) -> Vec<u32> {
        let mut out = vec![0; n];
        let kept = top_n(scores, n, &mut vec![0; scratch_len(n) + extra], &mut out).expect("buffers fit");
        out.truncate(kept);
        out
    }

    fn score() -> impl Strategy<Value = f32> {
        // Few distinct values, so that ties are everywhere.
        prop_oneof![4 => (-5i32..5).prop_map(|i| i as f32 / 2.0), 4 => -10.0f32..10.0, 1 => Just(f32::NAN),
            1 => Just(f32::INFINITY), 1 => Just(f32::NEG_INFINITY), 1 => Just(-0.0)]
    }

    /// Hardly any number among them.
    fn broken_score() -> impl Strategy<Value = f32> {
        prop_oneof![30 => Just(f32::NAN), 10 => Just(f32::NEG_INFINITY), 1 => -1.0f32..1.0]
    }

    proptest! {
        #[test]
        fn equals_sorting(scores in prop::collection::vec(score(), 0..700), n in 0usize..300, extra in 0usize..100) {
            prop_assert_eq!(fast(&scores, n, extra), naive(&scores, n));
        }

        #[test]
        fn broken_scores_fill_up_the_set(scores in prop::collection::vec(broken_score(), 0..700), n in 0usize..100) {
            prop_assert_eq!(fast(&scores, n, 0), naive(&scores, n));
        }

        #[test]
        fn blocks_in_any_order_equal_one_piece(
            scores in prop::collection::vec(score(), 1..500), n in 0usize..80, cut in 1usize..90, backwards in any::<bool>(),
            extra in 0usize..500,
        ) {
            let mut blocks: Vec<(usize, &[f32])> = scores.chunks(cut).enumerate().collect();
            if backwards {
                blocks.reverse();
            }
            let mut scratch = vec![0; scratch_len(n) + extra];
            let mut best = TopN::<f32>::new(n, &mut scratch).expect("fits");
            for (i, block) in blocks {
                best.push(i * cut, block).expect("positions fit");
            }
            let mut out = vec![0; n];
            let kept = best.finish(&mut out).expect("fits");
            prop_assert_eq!(&out[..kept], &naive(&scores, n)[..]);
        }

        // Whatever the sample sees: high scores where it looks, low ones elsewhere, or the other way round.
        #[test]
        fn misleading_samples(
            len in 1usize..5000, period in 1usize..40, phase in 0usize..40, high in any::<bool>(), n in 0usize..300,
            extra in 0usize..2000,
        ) {
            let score = |i: usize| if (i % period == phase % period) == high { 1.0 } else { 0.0 } + (i * 37 % 101) as f32 / 1e3;
            let scores: Vec<f32> = (0..len).map(score).collect();
            prop_assert_eq!(fast(&scores, n, extra), naive(&scores, n));
        }

        #[test]
        fn fixed_capacity_equals_sorting(scores in prop::collection::vec(score(), 0..200)) {
            prop_assert_eq!(&top_n_fixed::<f32, 9>(&scores).expect("fits")[..], &naive(&scores, 9)[..]);
            prop_assert_eq!(top_n_fixed::<f32, 0>(&scores).expect("fits").len(), 0);
        }

        #[test]
        fn monotone_in_n(scores in prop::collection::vec(score(), 1..300), n in 0usize..100) {
            let (small, large) = (fast(&scores, n, 0), fast(&scores, n + 1, 0));
            prop_assert!(small.iter().all(|p| large.contains(p)));
        }

        #[test]
        fn f64_agrees(scores in prop::collection::vec(score(), 1..200), n in 0usize..60) {
            let wide: Vec<f64> = scores.iter().map(|s| f64::from(*s)).collect();
            let (mut out, mut scratch) = (vec![0; n], vec![0; scratch_len(n)]);
            let kept = top_n(&wide, n, &mut scratch, &mut out).expect("fits");
            prop_assert_eq!(&out[..kept], &naive(&scores, n)[..]);
        }
    }

    #[test]
    fn rising_falling_and_equal_scores() {
        let rising: Vec<f32> = (0..10_000).map(|i| i as f32).collect();
        let falling: Vec<f32> = rising.iter().rev().copied().collect();
        for scores in [rising, falling, vec![1.0; 10_000]] {
            assert_eq!(fast(&scores, 100, 0), naive(&scores, 100));
        }
    }

    #[test]
    fn small_buffers_are_refused() {
        assert!(matches!(
            top_n(&[1.0f32; 200], 100, &mut [0; 100], &mut [0; 100]),
            Err(Error::Capacity { what: "scratch", want: 200, got: 100 })
        ));
        assert!(top_n(&[1.0f32; 9], 3, &mut [0; 64], &mut [0; 2]).is_err());
        assert!(TopN::<f32>::new(1, &mut [0; 64]).expect("fits").push(u32::MAX as usize, &[1.0; 2]).is_err());
    }
}
