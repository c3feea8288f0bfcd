//! The best N of n scores, without allocation.
//!
//! Scores are packed with their positions into one integer ([`Score::Entry`]) whose order is the wanted one: higher
//! score first, in a tie the lower position first, NaN last. A buffer of at least 2N entries collects what beats the
//! Nth best seen so far; when it is full, a linear-time partition halves it and raises the bar. Almost every score of a
//! long context then costs one comparison in a loop the compiler vectorizes.

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

/// Scores are looked at in blocks of this many: one vector comparison decides whether a block can be skipped.
const BLOCK: usize = 16;

/// The best N of a stream of scores.
///
/// Time: one comparison per score that is not among the best seen so far, amortized O(1) for the others. Space: the
/// caller's scratch.
#[derive(Debug)]
pub struct TopN<'s, S: Score> {
    buffer: &'s mut [S::Entry],
    filled: usize,
    n: usize,
    /// No score under this can be among the best n. Valid from the first compaction on.
    bar: S,
    raised: bool,
}

impl<'s, S: Score> TopN<'s, S> {
    /// Starts looking for the best `n`.
    ///
    /// # Errors
    /// [`Error::Capacity`] if `scratch` has fewer than [`scratch_len`]`(n)` entries.
    pub fn new(n: usize, scratch: &'s mut [S::Entry]) -> Result<Self> {
        expect_capacity("scratch", scratch.len(), scratch_len(n))?;
        Ok(Self { buffer: scratch, filled: 0, n, bar: S::score(S::WORST), raised: false })
    }

    /// Adds a block of scores; the first has position `first`, the others follow.
    ///
    /// # Errors
    /// [`Error::Range`] if a position exceeds `u32`.
    pub fn push(&mut self, first: usize, scores: &[S]) -> Result<()> {
        let beyond = first.checked_add(scores.len()).is_none_or(|end| end > u32::MAX as usize);
        if beyond {
            return Err(Error::Range { what: "position", problem: "positions are 32-bit" });
        }
        if self.n == 0 {
            return Ok(());
        }
        let mut position = first as u32;
        let blocks = scores.chunks_exact(BLOCK);
        let rest = blocks.remainder();
        for block in blocks {
            let bar = self.bar;
            // Without a branch per score: that vectorizes, `any` does not.
            if !self.raised || block.iter().fold(false, |some, s| some | (*s >= bar)) {
                self.push_block(position, block);
            }
            position += BLOCK as u32;
        }
        self.push_block(position, rest);
        Ok(())
    }

    #[inline(never)]
    fn push_block(&mut self, first: u32, block: &[S]) {
        for (i, &score) in block.iter().enumerate() {
            // Not `score < bar`: a NaN must not pass.
            let passes = score >= self.bar;
            if self.raised && !passes {
                continue;
            }
            self.buffer[self.filled] = score.entry(first + i as u32);
            self.filled += 1;
            if self.filled == self.buffer.len() {
                self.compact();
            }
        }
    }

    /// Keeps the best n of the buffer and raises the bar to the worst of them.
    fn compact(&mut self) {
        if self.filled <= self.n {
            return;
        }
        let (_, worst_kept, _) = self.buffer[..self.filled].select_nth_unstable_by(self.n - 1, |a, b| b.cmp(a));
        self.bar = S::score(*worst_kept);
        // A bar at the bottom keeps nothing out: a NaN, which ranks there too, would fail the comparison with it.
        self.raised = self.bar > S::score(S::WORST);
        self.filled = self.n;
    }

    /// Raises the bar before the first score is pushed, to where an evenly spaced sample says that somewhat more than n
    /// scores pass. If the sample was wrong, fewer than n come through and the caller starts again without it.
    fn guess(&mut self, scores: &[S]) {
        let capacity = self.buffer.len();
        let step = scores.len() / capacity;
        if step < 2 || self.n == 0 {
            return;
        }
        for (slot, &score) in self.buffer.iter_mut().zip(scores.iter().step_by(step)) {
            *slot = score.entry(0);
        }
        // n / step of the sample belong to the best n, give or take its square root; half as many again is safe enough.
        let rank = self.n / step * 3 / 2 + 8;
        let (_, bar, _) = self.buffer.select_nth_unstable_by(rank, |a, b| b.cmp(a));
        self.bar = S::score(*bar);
        self.raised = self.bar > S::score(S::WORST);
    }

    /// The positions of the best n (all, if fewer came), ascending. Returns how many were written to `out`.
    ///
    /// # Errors
    /// [`Error::Capacity`] if `out` cannot hold them.
    pub fn finish(mut self, out: &mut [u32]) -> Result<usize> {
        self.compact();
        let kept = self.filled.min(self.n);
        expect_capacity("out", out.len(), kept)?;
        for (slot, entry) in out.iter_mut().zip(&self.buffer[..kept]) {
            *slot = S::position(*entry);
        }
        out[..kept].sort_unstable();
        Ok(kept)
    }
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
    if best.filled >= n {
        return best.finish(out);
    }
    let mut best = TopN::<S>::new(n, scratch)?;
    best.push(0, scores)?;
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
        fn blocks_equal_one_piece(scores in prop::collection::vec(score(), 1..500), n in 0usize..80, cut in 1usize..90) {
            let mut scratch = vec![0; scratch_len(n)];
            let mut best = TopN::<f32>::new(n, &mut scratch).expect("fits");
            for (i, block) in scores.chunks(cut).enumerate() {
                best.push(i * cut, block).expect("positions fit");
            }
            let mut out = vec![0; n];
            let kept = best.finish(&mut out).expect("fits");
            prop_assert_eq!(&out[..kept], &naive(&scores, n)[..]);
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
