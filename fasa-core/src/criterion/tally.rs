//! Sums of a criterion over steps, for all heads of a model.

use super::{Criterion, CriterionKind, Observation, Workspace, group_mean, settle};
use crate::error::{Error, Result, expect_length};
use alloc::vec;
use alloc::vec::Vec;

/// Chunk scores summed over decode steps, per query head: `[heads, chunks]`. Tallies of the same shape add up, so a
/// calibration can be spread over samples, threads or machines.
#[derive(Debug, Clone, PartialEq)]
pub struct Tally {
    kind: CriterionKind,
    chunks: usize,
    sums: Vec<f64>,
    steps: Vec<u64>,
    scores: Vec<f64>,
    entries: Vec<u128>,
    positions: Vec<u32>,
}

impl Tally {
    /// An empty tally for `heads` query heads (of all layers) of `chunks` chunks.
    pub fn new(kind: CriterionKind, heads: usize, chunks: usize) -> Self {
        Self {
            kind,
            chunks,
            sums: vec![0.0; heads * chunks],
            steps: vec![0; heads],
            scores: Vec::new(),
            entries: Vec::new(),
            positions: Vec::new(),
        }
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.steps.len()
    }

    /// Steps observed for `head`.
    pub fn steps(&self, head: usize) -> u64 {
        self.steps.get(head).copied().unwrap_or(0)
    }

    /// Adds one decode step of query head `head`.
    ///
    /// # Errors
    /// [`Error::Range`] for a head that is not there or a criterion of another kind; else as [`Criterion::observe`].
    pub fn observe(&mut self, criterion: &impl Criterion, head: usize, step: &Observation<'_>) -> Result<()> {
        if criterion.kind() != self.kind {
            return Err(Error::Range { what: "criterion", problem: "a tally sums one criterion" });
        }
        if head >= self.heads() {
            return Err(Error::Range { what: "head", problem: "the tally has fewer heads" });
        }
        let (scores, entries, positions) = criterion.workspace_len(step.keys.len());
        // Grow only: contexts of a calibration have similar lengths.
        self.scores.resize(self.scores.len().max(scores), 0.0);
        self.entries.resize(self.entries.len().max(entries), 0);
        self.positions.resize(self.positions.len().max(positions), 0);
        let mut workspace =
            Workspace { scores: &mut self.scores, entries: &mut self.entries, positions: &mut self.positions };
        let row = head * self.chunks..(head + 1) * self.chunks;
        criterion.observe(step, &mut workspace, &mut self.sums[row])?;
        self.steps[head] += 1;
        Ok(())
    }

    /// Adds another tally of the same criterion and shape.
    ///
    /// # Errors
    /// [`Error::Range`] or [`Error::Length`] if they differ.
    pub fn merge(&mut self, other: &Tally) -> Result<()> {
        if other.kind != self.kind {
            return Err(Error::Range { what: "criterion", problem: "a tally sums one criterion" });
        }
        expect_length("other.chunks", other.chunks, self.chunks)?;
        expect_length("other.heads", other.heads(), self.heads())?;
        for (sum, add) in self.sums.iter_mut().zip(&other.sums) {
            *sum += add;
        }
        for (steps, add) in self.steps.iter_mut().zip(&other.steps) {
            *steps += add;
        }
        Ok(())
    }

    /// Mean scores of one query head, `[chunks]`; zeros before the first step.
    ///
    /// # Errors
    /// [`Error::Range`] for a head that is not there, [`Error::Length`] unless `out` has a place per chunk.
    pub fn mean(&self, head: usize, out: &mut [f64]) -> Result<()> {
        self.mean_of_group(head, 1, out)
    }

    /// Mean scores of the `group` query heads from `first` on, averaged: the criterion of a KV head.
    ///
    /// # Errors
    /// As [`mean`](Self::mean); [`Error::Range`] for a group of none.
    pub fn mean_of_group(&self, first: usize, group: usize, out: &mut [f64]) -> Result<()> {
        expect_length("out", out.len(), self.chunks)?;
        if first.checked_add(group).is_none_or(|end| end > self.heads()) {
            return Err(Error::Range { what: "head", problem: "the tally has fewer heads" });
        }
        let mut rows = vec![0.0; group * self.chunks];
        for (row, head) in rows.chunks_exact_mut(self.chunks.max(1)).zip(first..) {
            let steps = self.steps[head].max(1) as f64;
            for (mean, sum) in row.iter_mut().zip(&self.sums[head * self.chunks..]) {
                *mean = sum / steps;
            }
        }
        group_mean(&rows, out)?;
        settle(self.kind, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criterion::{Agreement, Margin};
    use crate::rope::{Chunks, Pairing};
    use crate::rows::Rows;

    #[test]
    fn two_halves_merge_into_the_whole() {
        let chunks = Chunks::new(4, 4, Pairing::HalfSplit).expect("valid");
        let data: [f32; 48] = core::array::from_fn(|i| ((i * 37 % 23) as f32 - 11.0) / 7.0);
        let steps: [(usize, usize); 4] = [(3, 0), (5, 4), (7, 8), (9, 12)];
        let observe = |tally: &mut Tally, (n, at): (usize, usize)| {
            let keys = Rows::contiguous(&data[..4 * n], 4).expect("divides");
            let step = Observation { query: &data[at..at + 4], keys, chunks: &chunks };
            tally.observe(&Agreement::new(2).expect("positive"), n % 2, &step).expect("fits");
        };
        let mut whole = Tally::new(CriterionKind::Agreement, 2, 2);
        let mut halves = [whole.clone(), whole.clone()];
        for (i, step) in steps.into_iter().enumerate() {
            observe(&mut whole, step);
            observe(&mut halves[i % 2], step);
        }
        let [mut first, second] = halves;
        first.merge(&second).expect("same shape");
        let (mut a, mut b) = ([0.0; 2], [0.0; 2]);
        for head in 0..2 {
            whole.mean(head, &mut a).expect("head");
            first.mean(head, &mut b).expect("head");
            assert_eq!((a, whole.steps(head)), (b, first.steps(head)));
        }
        assert!(first.mean(2, &mut a).is_err() && first.mean_of_group(1, 2, &mut a).is_err());
        assert!(first.mean_of_group(0, 0, &mut a).is_err() && first.mean_of_group(usize::MAX, 2, &mut a).is_err());
        assert!(first.merge(&Tally::new(CriterionKind::Margin, 2, 2)).is_err());
        assert!(first.merge(&Tally::new(CriterionKind::Agreement, 3, 2)).is_err());
        let keys = Rows::contiguous(&data[..4], 4).expect("divides");
        let step = Observation { query: &data[..4], keys, chunks: &chunks };
        assert!(first.observe(&Margin, 0, &step).is_err());
    }
}
