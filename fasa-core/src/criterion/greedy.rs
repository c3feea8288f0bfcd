//! Greedy compound selection: each chunk is chosen for what it adds to those chosen before it.

use super::agreement::common;
use super::{
    Agreement, CriterionKind, Observation, RankChunks, Workspace, chunk_score, full_score, rank, shared_chunks,
};
use crate::error::{Result, expect_capacity, expect_length};
use crate::select::{scratch_len, top_n};

/// Ranks chunks by adding, one at a time, the chunk that raises the contextual agreement of the *set* most: the agreement
/// of `Σ_{i in set} s_i` with `q.K` ([`Agreement::compound`]), averaged over all observations.
///
/// The paper's criterion judges chunks one by one, so its best F may all find the same tokens (arXiv 2602.03152 reports
/// the compound agreement of sets chosen that way); this one looks for chunks that complement one another. For a KV head
/// give it the observations of all its query heads.
///
/// # Cost
/// Round r of C chunks tries C − r of them on each of the S observations of n tokens: `O(C² S n)` for a whole ranking,
/// `O(F C S n)` for F greedy rounds. A round is skipped while the set finds every token of every observation, since no
/// chunk can add to that. Skipped rounds, and all after the last greedy one, take the next chunk by its agreement alone,
/// which round 0 has measured. F rounds suffice for profiles that are used with at most F chunks.
///
/// It needs all observations at once, so unlike the other criteria it has no `Tally` that adds up over
/// samples or machines: bring the observations together instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greedy {
    agreement: Agreement,
    rounds: usize,
}

impl Greedy {
    /// Compares the best `k` tokens; ranks all chunks greedily.
    ///
    /// # Errors
    /// [`Error::Range`](crate::Error::Range) for `k == 0`.
    pub fn new(k: usize) -> Result<Self> {
        Ok(Self { agreement: Agreement::new(k)?, rounds: usize::MAX })
    }

    /// Chooses only the first `rounds` chunks greedily, at least one.
    #[must_use]
    pub fn with_rounds(self, rounds: usize) -> Self {
        Self { rounds: rounds.max(1), ..self }
    }

    /// Tokens compared.
    pub fn k(&self) -> usize {
        self.agreement.k()
    }
}

/// The parts of a [`Workspace`]: partial sums of the chosen set and the tokens to find, observation after observation,
/// and room for one candidate.
struct Search<'a, 's> {
    k: usize,
    steps: &'a [Observation<'a>],
    partial: &'s mut [f64],
    scores: &'s mut [f64],
    entries: &'s mut [u128],
    targets: &'s mut [u32],
    found: &'s mut [u32],
}

impl Search<'_, '_> {
    /// Finds the tokens that matter for the whole head, and clears the partial sums.
    fn prepare(&mut self) -> Result<()> {
        let mut at = 0;
        for step in self.steps {
            let n = step.keys.len();
            for (score, key) in self.scores.iter_mut().zip(step.keys.iter()) {
                *score = full_score(step.query, key);
            }
            at += top_n(&self.scores[..n], self.k, self.entries, &mut self.targets[at..])?;
        }
        self.partial.fill(0.0);
        Ok(())
    }

    /// Mean agreement of the chosen set with `chunk` added.
    fn agreement(&mut self, chunk: usize) -> Result<f64> {
        let (mut rows, mut targets) = (0, 0);
        // Hits among K tokens are counted and divided once: equal counts must tie exactly, whatever their order.
        let (mut hits, mut rest) = (0, 0.0);
        for step in self.steps {
            let n = step.keys.len();
            let pair = step.chunks.pair(chunk);
            let scores = &mut self.scores[..n];
            for ((score, key), partial) in scores.iter_mut().zip(step.keys.iter()).zip(&self.partial[rows..]) {
                *score = partial + chunk_score(step.query, key, pair);
            }
            let kept = top_n(scores, self.k, self.entries, self.found)?;
            let common = common(&self.targets[targets..targets + kept], &self.found[..kept]);
            if kept == self.k {
                hits += common
            } else {
                rest += common as f64 / kept as f64
            }
            (rows, targets) = (rows + n, targets + kept);
        }
        Ok((hits as f64 / self.k as f64 + rest) / self.steps.len() as f64)
    }

    /// Adds `chunk` to the chosen set.
    fn choose(&mut self, chunk: usize) {
        let mut rows = self.partial.iter_mut();
        for step in self.steps {
            let pair = step.chunks.pair(chunk);
            // Keys first: a zip that ends on its first side takes nothing from the second.
            for (key, partial) in step.keys.iter().zip(&mut rows) {
                *partial += chunk_score(step.query, key, pair);
            }
        }
    }
}

impl RankChunks for Greedy {
    fn ranking_kind(&self) -> CriterionKind {
        CriterionKind::Greedy
    }

    fn ranking_workspace_len(&self, steps: &[Observation<'_>]) -> (usize, usize, usize) {
        let rows: usize = steps.iter().map(|s| s.keys.len()).sum();
        let longest = steps.iter().map(|s| s.keys.len()).max().unwrap_or(0);
        let chunks = steps.first().map_or(0, |s| s.chunks.len());
        let targets: usize = steps.iter().map(|s| s.keys.len().min(self.k())).sum();
        (rows + longest + chunks, scratch_len(self.k()), targets + longest.min(self.k()))
    }

    /// Scores are those of sets: place r holds the agreement of the first r + 1 chunks together, so the list shows what a
    /// profile cut at any F reaches.
    fn rank_chunks(
        &self,
        steps: &[Observation<'_>],
        workspace: &mut Workspace<'_>,
        ranking: &mut [u16],
        scores: &mut [f64],
    ) -> Result<()> {
        let chunks = shared_chunks(steps)?;
        expect_length("ranking", ranking.len(), chunks)?;
        expect_length("scores", scores.len(), chunks)?;
        let (numbers, entries, positions) = self.ranking_workspace_len(steps);
        expect_capacity("workspace.scores", workspace.scores.len(), numbers)?;
        expect_capacity("workspace.entries", workspace.entries.len(), entries)?;
        expect_capacity("workspace.positions", workspace.positions.len(), positions)?;
        let (alone, rest) = workspace.scores[..numbers].split_at_mut(chunks);
        let rows = steps.iter().map(|s| s.keys.len()).sum();
        let (partial, candidate) = rest.split_at_mut(rows);
        let targets = steps.iter().map(|s| s.keys.len().min(self.k())).sum();
        let (targets, found) = workspace.positions[..positions].split_at_mut(targets);
        let mut search =
            Search { k: self.k(), steps, partial, scores: candidate, entries: workspace.entries, targets, found };
        search.prepare()?;
        for (chunk, agreement) in alone.iter_mut().enumerate() {
            *agreement = search.agreement(chunk)?;
        }
        // By agreement alone: the first place is also the greedy one, and what no round reaches stays as it is.
        rank(alone, ranking)?;
        let mut reached = 0.0;
        for place in 0..chunks {
            if place > 0 && place < self.rounds && reached < 1.0 {
                let mut best = (f64::NEG_INFINITY, place);
                for candidate in place..chunks {
                    let agreement = search.agreement(usize::from(ranking[candidate]))?;
                    let earlier = ranking[candidate] < ranking[best.1];
                    if agreement > best.0 || (agreement == best.0 && earlier) {
                        best = (agreement, candidate);
                    }
                }
                // The others keep their order.
                ranking[place..=best.1].rotate_right(1);
            }
            reached = search.agreement(usize::from(ranking[place]))?;
            search.choose(usize::from(ranking[place]));
            scores[place] = reached;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criterion::{Criterion, Margin};
    use crate::rope::{Chunks, Pairing};
    use crate::rows::Rows;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn ranked(by: &impl RankChunks, steps: &[Observation<'_>]) -> (Vec<u16>, Vec<f64>) {
        let chunks = steps[0].chunks.len();
        let (scores, entries, positions) = by.ranking_workspace_len(steps);
        let (mut numbers, mut entries, mut positions) = (vec![0.0; scores], vec![0; entries], vec![0; positions]);
        let mut workspace = Workspace { scores: &mut numbers, entries: &mut entries, positions: &mut positions };
        let (mut ranking, mut scores) = (vec![0; chunks], vec![0.0; chunks]);
        by.rank_chunks(steps, &mut workspace, &mut ranking, &mut scores).expect("fits");
        (ranking, scores)
    }

    /// Agreement of a set in whole hits, through the public single-set function.
    fn hits(agreement: Agreement, steps: &[Observation<'_>], set: &[u16]) -> u64 {
        let longest = steps.iter().map(|s| s.keys.len()).max().expect("steps");
        let (scores, entries, positions) = agreement.workspace_len(longest);
        let (mut scores, mut entries, mut positions) = (vec![0.0; scores], vec![0; entries], vec![0; positions]);
        let mut workspace = Workspace { scores: &mut scores, entries: &mut entries, positions: &mut positions };
        let hits = |s: &Observation<'_>, w: &mut Workspace<'_>| {
            (agreement.compound(s, set, w).expect("fits") * agreement.k() as f64).round() as u64
        };
        steps.iter().map(|s| hits(s, &mut workspace)).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        // Small integers: sums are exact in any order, so ties are real ties.
        #[test]
        fn equals_trying_every_chunk(
            half in 1usize..7, n in 6usize..30, k in 1usize..6, rounds in 1usize..8, steps in 1usize..4,
            numbers in prop::collection::vec((-4i8..5).prop_map(f32::from), 12 * 34),
        ) {
            let dim = 2 * half;
            let chunks = Chunks::new(dim, dim, Pairing::HalfSplit).expect("valid");
            let steps: Vec<Observation<'_>> = (0..steps)
                .map(|s| Observation {
                    query: &numbers[s * dim..(s + 1) * dim],
                    keys: Rows::contiguous(&numbers[48..48 + (n - s) * dim], dim).expect("divides"),
                    chunks: &chunks,
                })
                .collect();
            let greedy = Greedy::new(k).expect("positive").with_rounds(rounds);
            let (ranking, scores) = ranked(&greedy, &steps);

            let agreement = Agreement::new(k).expect("positive");
            let total = (k * steps.len()) as u64;
            let mut rest: Vec<u16> = (0..half as u16).collect();
            rest.sort_by_key(|c| (core::cmp::Reverse(hits(agreement, &steps, &[*c])), *c));
            let (mut set, mut reached) = (Vec::new(), 0);
            for (place, score) in scores.iter().enumerate() {
                let with = |c: u16| [&set[..], &[c]].concat();
                let next = if place < rounds && reached < total {
                    *rest.iter().max_by_key(|c| (hits(agreement, &steps, &with(**c)), core::cmp::Reverse(**c))).expect("left")
                } else {
                    rest[0]
                };
                rest.retain(|c| *c != next);
                set = with(next);
                reached = hits(agreement, &steps, &set);
                prop_assert!((score - reached as f64 / total as f64).abs() < 1e-12);
            }
            prop_assert_eq!(&ranking, &set);
            prop_assert_eq!(scores[half - 1], 1.0, "all chunks together are the whole head");

            // The first chunk is the paper's, and criteria that add up rank through the same trait.
            let (alone, _) = ranked(&agreement, &steps);
            prop_assert_eq!(alone[0], ranking[0]);
            let (margins, scores) = ranked(&Margin, &steps);
            prop_assert!(scores.windows(2).all(|w| w[0] >= w[1]));
            prop_assert_eq!(margins.len(), half);
        }
    }

    #[test]
    fn complements_beat_copies() {
        let chunks = Chunks::new(6, 6, Pairing::Interleaved).expect("valid");
        // Tokens 0 and 1 matter. Chunks 0 and 1 both find token 0 only; chunk 2, the weakest alone, finds token 1.
        let keys: Vec<f32> = [[9.0, 9.0, 0.0], [0.0, 0.0, 8.0], [1.0, 1.0, 1.0], [2.0, 2.0, 0.0], [1.0, 1.5, 2.0]]
            .iter()
            .flatten()
            .flat_map(|s| [*s, 0.0])
            .collect();
        let keys = Rows::contiguous(&keys, 6).expect("divides");
        let step = Observation { query: &[1.0, 0.0, 1.0, 0.0, 1.0, 0.0], keys, chunks: &chunks };
        let (ranking, scores) = ranked(&Greedy::new(2).expect("positive"), &[step]);
        assert_eq!((&ranking[..2], scores[1]), (&[0, 2][..], 1.0));
    }

    #[test]
    fn observations_must_belong_together() {
        let (four, six) = (
            Chunks::new(4, 4, Pairing::HalfSplit).expect("valid"),
            Chunks::new(6, 6, Pairing::HalfSplit).expect("valid"),
        );
        let numbers = [1.0; 24];
        let step = |chunks| {
            let dim = Chunks::head_dim(chunks);
            Observation { query: &numbers[..dim], keys: Rows::contiguous(&numbers, dim).expect("divides"), chunks }
        };
        let greedy = Greedy::new(2).expect("positive");
        let mut workspace = Workspace { scores: &mut [0.0; 99], entries: &mut [0; 64], positions: &mut [0; 20] };
        let (mut ranking, mut scores) = ([0; 2], [0.0; 2]);
        let mut rank = |steps: &[Observation<'_>]| greedy.rank_chunks(steps, &mut workspace, &mut ranking, &mut scores);
        assert_eq!(rank(&[step(&four)]), Ok(()));
        assert!(rank(&[]).is_err());
        assert!(rank(&[step(&four), step(&six)]).is_err());
        assert!(rank(&[step(&six)]).is_err());
        assert!(Greedy::new(0).is_err());
    }
}
