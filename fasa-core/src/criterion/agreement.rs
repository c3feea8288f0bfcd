//! Contextual agreement, the criterion of the FASA paper.

use super::{Criterion, CriterionKind, Observation, Workspace, chunk_score, full_score};
use crate::error::{Error, Result, expect_capacity, expect_length};
use crate::select::{scratch_len, top_n};

/// `CA_K = |TopK(q.K) ∩ TopK(s_i)| / K'` with `K' = min(K, tokens seen)`: how many of the K tokens that matter most for
/// the whole head a chunk finds alone (arXiv 2602.03152, contextual agreement).
///
/// Costs O(n head_dim) and one selection per chunk and step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    k: usize,
}

impl Agreement {
    /// Compares the best `k` tokens.
    ///
    /// # Errors
    /// [`Error::Range`] for `k == 0`.
    pub fn new(k: usize) -> Result<Self> {
        if k == 0 { Err(Error::Range { what: "k", problem: "at least one token is compared" }) } else { Ok(Self { k }) }
    }

    /// Tokens compared.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Agreement of the *sum* of a set of chunks with the whole head at one step, in 0..=1 (compound agreement).
    ///
    /// # Errors
    /// As [`Criterion::observe`].
    pub fn compound(&self, step: &Observation<'_>, set: &[u16], workspace: &mut Workspace<'_>) -> Result<f64> {
        self.prepare(step, workspace)?;
        if set.iter().any(|c| usize::from(*c) >= step.chunks.len()) {
            return Err(Error::Range { what: "set", problem: "a head has head_dim / 2 chunks" });
        }
        self.overlap(step, workspace, |key| {
            set.iter().map(|&c| chunk_score(step.query, key, step.chunks.pair(usize::from(c)))).sum()
        })
    }

    /// Checks shapes and leaves the K best tokens of the whole product in the first K places of `positions`.
    fn prepare(&self, step: &Observation<'_>, workspace: &mut Workspace<'_>) -> Result<()> {
        step.validate()?;
        let (scores, _, positions) = self.workspace_len(step.keys.len());
        expect_capacity("workspace.scores", workspace.scores.len(), scores)?;
        expect_capacity("workspace.positions", workspace.positions.len(), positions)?;
        let scores = &mut workspace.scores[..scores];
        for (score, key) in scores.iter_mut().zip(step.keys.iter()) {
            *score = full_score(step.query, key);
        }
        top_n(scores, self.k, workspace.entries, workspace.positions).map(|_| ())
    }

    /// Share of the prepared tokens that a partial score finds.
    fn overlap(
        &self,
        step: &Observation<'_>,
        workspace: &mut Workspace<'_>,
        partial: impl Fn(&[f32]) -> f64,
    ) -> Result<f64> {
        let n = step.keys.len();
        let k = self.k.min(n);
        let scores = &mut workspace.scores[..n];
        for (score, key) in scores.iter_mut().zip(step.keys.iter()) {
            *score = partial(key);
        }
        let (whole, part) = workspace.positions.split_at_mut(k);
        let found = top_n(scores, self.k, workspace.entries, part)?;
        Ok(common(whole, &part[..found]) as f64 / k as f64)
    }
}

impl Criterion for Agreement {
    fn kind(&self) -> CriterionKind {
        CriterionKind::Agreement
    }

    fn workspace_len(&self, n: usize) -> (usize, usize, usize) {
        (n, scratch_len(self.k), 2 * self.k.min(n))
    }

    fn observe(&self, step: &Observation<'_>, workspace: &mut Workspace<'_>, sums: &mut [f64]) -> Result<()> {
        expect_length("sums", sums.len(), step.chunks.len())?;
        self.prepare(step, workspace)?;
        for (i, sum) in sums.iter_mut().enumerate() {
            let pair = step.chunks.pair(i);
            *sum += self.overlap(step, workspace, |key| chunk_score(step.query, key, pair))?;
        }
        Ok(())
    }
}

/// Numbers that two ascending lists share.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    let (mut i, mut j, mut count) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            core::cmp::Ordering::Less => i += 1,
            core::cmp::Ordering::Greater => j += 1,
            core::cmp::Ordering::Equal => (i, j, count) = (i + 1, j + 1, count + 1),
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::{Chunks, Pairing};
    use crate::rows::Rows;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    proptest! {
        // Small integers: every sum is exact, so ties are real ties.
        #[test]
        fn equals_the_definition(
            half in 1usize..6, n in 1usize..40, k in 1usize..50, set in prop::collection::vec(0u16..6, 0..4),
            numbers in prop::collection::vec((-3i8..4).prop_map(f32::from), 10 * 41),
        ) {
            let dim = 2 * half;
            let chunks = Chunks::new(dim, dim, Pairing::HalfSplit).expect("valid");
            let (query, keys) = (&numbers[..dim], Rows::contiguous(&numbers[10..10 + n * dim], dim).expect("divides"));
            let step = Observation { query, keys, chunks: &chunks };
            let agreement = Agreement::new(k).expect("positive");
            let (scores, entries, positions) = agreement.workspace_len(n);
            let (mut scores, mut entries, mut positions) = (vec![0.0; scores], vec![0; entries], vec![0; positions]);
            let mut workspace = Workspace { scores: &mut scores, entries: &mut entries, positions: &mut positions };

            let top = |score: &dyn Fn(&[f32]) -> f32| -> Vec<usize> {
                let mut order: Vec<usize> = (0..n).collect();
                let scores: Vec<f32> = keys.iter().map(score).collect();
                order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
                order.truncate(k);
                order
            };
            let one = |key: &[f32], i: usize| query[i] * key[i] + query[i + half] * key[i + half];
            let whole = top(&|key| (0..half).map(|i| one(key, i)).sum::<f32>() + 0.0);
            let share = |part: Vec<usize>| part.iter().filter(|t| whole.contains(t)).count() as f64 / k.min(n) as f64;
            let mut sums = vec![0.25; half];
            agreement.observe(&step, &mut workspace, &mut sums).expect("fits");
            for (i, sum) in sums.iter().enumerate() {
                prop_assert_eq!(*sum, 0.25 + share(top(&|key| one(key, i) + 0.0)));
            }
            let set: Vec<u16> = set.into_iter().filter(|c| usize::from(*c) < half).collect();
            let want = share(top(&|key| set.iter().map(|c| one(key, usize::from(*c))).sum::<f32>() + 0.0));
            prop_assert_eq!(agreement.compound(&step, &set, &mut workspace), Ok(want));
        }
    }

    #[test]
    fn counts_shared_tokens() {
        let chunks = Chunks::new(4, 4, Pairing::Interleaved).expect("valid");
        // Chunk 0 alone orders the tokens 3 2 1 0, chunk 1 alone 0 1 2 3; together chunk 0 wins.
        let keys = [0.0, 0.0, 3.0, 0.0, 2.0, 0.0, 2.0, 0.0, 4.0, 0.0, 1.0, 0.0, 6.0, 0.0, 0.0, 0.0];
        let step = Observation {
            query: &[1.0, 0.0, 1.0, 0.0],
            keys: Rows::contiguous(&keys, 4).expect("divides"),
            chunks: &chunks,
        };
        let (mut scores, mut entries, mut positions) = ([0.0; 4], [0; 64], [0; 8]);
        let mut workspace = Workspace { scores: &mut scores, entries: &mut entries, positions: &mut positions };
        for (k, want) in [(1, [1.0, 0.0]), (2, [1.0, 0.0]), (3, [1.0, 2.0 / 3.0]), (4, [1.0, 1.0]), (9, [1.0, 1.0])] {
            let (agreement, mut sums) = (Agreement::new(k).expect("positive"), [0.0; 2]);
            agreement.observe(&step, &mut workspace, &mut sums).expect("fits");
            assert_eq!(sums, want, "K = {k}");
            assert_eq!(agreement.compound(&step, &[0, 1], &mut workspace), Ok(1.0));
            assert_eq!(agreement.compound(&step, &[1], &mut workspace), Ok(want[1]));
        }
        assert!(Agreement::new(0).is_err());
        assert!(Agreement::new(1).expect("positive").compound(&step, &[2], &mut workspace).is_err());
    }
}
