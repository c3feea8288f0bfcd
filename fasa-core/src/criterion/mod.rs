//! How dominant a chunk is for a head, judged over calibration decode steps.
//!
//! A [`Criterion`] adds one number per chunk for every observed step; means over steps rank the chunks
//! ([`rank`]), the first F of the ranking are the dominant set ([`dominant`]). Sums over samples add up in a `Tally`
//! (feature `alloc`). [`RankChunks`] is the wider trait: whatever ranks chunks by a set of observations, which
//! besides every `Criterion` is [`Greedy`], whose choice depends on the chunks it chose before.

mod agreement;
mod greedy;
mod margin;
#[cfg(feature = "alloc")]
mod tally;

pub use agreement::Agreement;
pub use greedy::Greedy;
pub use margin::Margin;
#[cfg(feature = "alloc")]
pub use tally::Tally;

use crate::error::{Error, Result, expect_capacity, expect_length};
use crate::rope::Chunks;
use crate::rows::Rows;

/// Which criterion a profile was calibrated with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum CriterionKind {
    /// Contextual agreement ([`Agreement`]), the paper's.
    Agreement,
    /// Attention margin ([`Margin`]).
    Margin,
    /// Greedy compound agreement ([`Greedy`]).
    Greedy,
}

impl CriterionKind {
    /// The name used on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            CriterionKind::Agreement => "agreement",
            CriterionKind::Margin => "margin",
            CriterionKind::Greedy => "greedy",
        }
    }
}

/// One decode step of one query head, as calibration sees it.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// The rotated query, `[head_dim]`.
    pub query: &'a [f32],
    /// The rotated keys of all tokens seen, `[n, head_dim]`, the query's own token last.
    pub keys: Rows<'a>,
    /// How the dimensions form chunks.
    pub chunks: &'a Chunks,
}

impl Observation<'_> {
    /// Checks the shapes against one another.
    ///
    /// # Errors
    /// [`Error::Length`] for a query or key of another width, [`Error::Range`] without keys.
    pub fn validate(&self) -> Result<()> {
        expect_length("query", self.query.len(), self.chunks.head_dim())?;
        expect_length("keys", self.keys.dim(), self.chunks.head_dim())?;
        if self.keys.is_empty() {
            return Err(Error::Range { what: "keys", problem: "a decode step sees at least its own token" });
        }
        Ok(())
    }
}

/// Memory for [`Criterion::observe`], reused between calls.
#[derive(Debug)]
pub struct Workspace<'s> {
    /// At least n numbers.
    pub scores: &'s mut [f64],
    /// At least [`scratch_len`](crate::select::scratch_len)`(k)` entries.
    pub entries: &'s mut [u128],
    /// At least `2 * k` positions.
    pub positions: &'s mut [u32],
}

/// Judges chunks by decode steps. Everything is computed in `f64`: agreements are counts, and a count must not depend on
/// rounding.
pub trait Criterion {
    /// Which criterion this is, for the profile.
    fn kind(&self) -> CriterionKind;

    /// Memory that `observe` needs for contexts of up to `n` tokens: lengths of the three [`Workspace`] slices.
    fn workspace_len(&self, n: usize) -> (usize, usize, usize);

    /// Adds this step's score of every chunk to `sums`, `[head_dim / 2]`.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Capacity`] if a shape or the workspace does not fit.
    fn observe(&self, step: &Observation<'_>, workspace: &mut Workspace<'_>, sums: &mut [f64]) -> Result<()>;
}

/// Ranks the chunks of one head by observations of it.
///
/// For a head that several query heads share, pass the observations of all of them.
pub trait RankChunks {
    /// Which criterion this is, for the profile.
    fn ranking_kind(&self) -> CriterionKind;

    /// Memory that [`rank_chunks`](Self::rank_chunks) needs for `steps`: lengths of the three [`Workspace`] slices.
    fn ranking_workspace_len(&self, steps: &[Observation<'_>]) -> (usize, usize, usize);

    /// Writes all chunks, best first, to `ranking` and the score at each place to `scores`, `[head_dim / 2]` both. Ties
    /// go to the lower chunk.
    ///
    /// # Errors
    /// [`Error::Range`] for no observation, [`Error::Length`] if their chunks differ or an output is of another size,
    /// [`Error::Capacity`] if the workspace is too small.
    fn rank_chunks(
        &self,
        steps: &[Observation<'_>],
        workspace: &mut Workspace<'_>,
        ranking: &mut [u16],
        scores: &mut [f64],
    ) -> Result<()>;
}

impl<C: Criterion> RankChunks for C {
    fn ranking_kind(&self) -> CriterionKind {
        self.kind()
    }

    fn ranking_workspace_len(&self, steps: &[Observation<'_>]) -> (usize, usize, usize) {
        let (scores, entries, positions) = self.workspace_len(steps.iter().map(|s| s.keys.len()).max().unwrap_or(0));
        (scores + steps.first().map_or(0, |s| s.chunks.len()), entries, positions)
    }

    fn rank_chunks(
        &self,
        steps: &[Observation<'_>],
        workspace: &mut Workspace<'_>,
        ranking: &mut [u16],
        scores: &mut [f64],
    ) -> Result<()> {
        let chunks = shared_chunks(steps)?;
        expect_length("scores", scores.len(), chunks)?;
        expect_capacity("workspace.scores", workspace.scores.len(), self.ranking_workspace_len(steps).0)?;
        let (means, rest) = workspace.scores.split_at_mut(chunks);
        means.fill(0.0);
        let mut workspace =
            Workspace { scores: rest, entries: &mut *workspace.entries, positions: &mut *workspace.positions };
        steps.iter().try_for_each(|step| self.observe(step, &mut workspace, means))?;
        means.iter_mut().for_each(|mean| *mean /= steps.len() as f64);
        settle(self.kind(), means);
        rank(means, ranking)?;
        for (score, &chunk) in scores.iter_mut().zip(&*ranking) {
            *score = means[usize::from(chunk)];
        }
        Ok(())
    }
}

/// The number of chunks that all `steps` agree on.
fn shared_chunks(steps: &[Observation<'_>]) -> Result<usize> {
    let Some(first) = steps.first() else {
        return Err(Error::Range { what: "steps", problem: "chunks are ranked by at least one observation" });
    };
    for step in steps {
        step.validate()?;
        expect_length("steps.chunks", step.chunks.len(), first.chunks.len())?;
    }
    Ok(first.chunks.len())
}

/// q[a] k[a] + q[b] k[b] of one chunk and one key (design: single-chunk score, unscaled).
#[inline]
fn chunk_score(query: &[f32], key: &[f32], (a, b): (usize, usize)) -> f64 {
    f64::from(query[a]) * f64::from(key[a]) + f64::from(query[b]) * f64::from(key[b])
}

/// The whole product q.k in `f64`.
#[inline]
fn full_score(query: &[f32], key: &[f32]) -> f64 {
    query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
}

/// Mean of the rows of `scores` (`[group, chunks]`, the query heads that share a KV head) into `out` (`[chunks]`).
///
/// # Errors
/// [`Error::Length`] unless `scores` is a whole number of rows, [`Error::Range`] for no row.
pub fn group_mean(scores: &[f64], out: &mut [f64]) -> Result<()> {
    let chunks = out.len();
    if chunks == 0 || scores.is_empty() {
        return Err(Error::Range { what: "scores", problem: "a group has at least one query head and one chunk" });
    }
    expect_length("scores", scores.len() % chunks, 0)?;
    let rows = scores.len() / chunks;
    out.fill(0.0);
    for row in scores.chunks_exact(chunks) {
        for (sum, score) in out.iter_mut().zip(row) {
            *sum += score;
        }
    }
    for mean in out {
        *mean /= rows as f64;
    }
    Ok(())
}

/// Rounds mean agreements so that equal ones are equal: 1/5 + 3/5 and 2/5 + 2/5 differ in their last bit, and which of two
/// tied chunks comes first would depend on the order of the steps. 2⁻³⁰ lies far above the rounding of a sum and far below
/// the difference of any two counts.
fn settle(kind: CriterionKind, means: &mut [f64]) {
    const GRID: f64 = (1u64 << 30) as f64;
    if kind == CriterionKind::Agreement {
        means.iter_mut().for_each(|mean| *mean = libm::round(*mean * GRID) / GRID);
    }
}

/// Ranks chunks by score, best first; ties (agreements are multiples of 1/K, so they are common) go to the lower index.
/// NaN ranks last.
///
/// # Errors
/// [`Error::Length`] unless `ranking` has one place per score.
pub fn rank(scores: &[f64], ranking: &mut [u16]) -> Result<()> {
    expect_length("ranking", ranking.len(), scores.len())?;
    for (i, slot) in ranking.iter_mut().enumerate() {
        *slot = i as u16;
    }
    let value = |i: u16| {
        let score = scores[i as usize];
        if score.is_nan() { f64::NEG_INFINITY } else { score }
    };
    ranking.sort_unstable_by(|&a, &b| value(b).total_cmp(&value(a)).then(a.cmp(&b)));
    Ok(())
}

/// The dominant set: the first `count` chunks of a ranking, in ascending order. Returns the filled part of `out`.
///
/// Ascending order is what sketches use: with all chunks of a half-split head, a sketch row then equals the key row.
///
/// # Errors
/// [`Error::Capacity`] if the ranking or `out` is shorter than `count`.
pub fn dominant(ranking: impl Iterator<Item = u16>, count: usize, out: &mut [u16]) -> Result<&[u16]> {
    expect_capacity("out", out.len(), count)?;
    let mut filled = 0;
    for (slot, chunk) in out[..count].iter_mut().zip(ranking) {
        *slot = chunk;
        filled += 1;
    }
    expect_capacity("ranking", filled, count)?;
    out[..count].sort_unstable();
    Ok(&out[..count])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranking_breaks_ties_by_index() {
        let mut ranking = [0; 5];
        rank(&[0.5, f64::NAN, 0.75, 0.5, -1.0], &mut ranking).expect("lengths");
        assert_eq!(ranking, [2, 0, 3, 4, 1]);
        let mut set = [0; 3];
        assert_eq!(dominant(ranking.into_iter(), 3, &mut set).expect("fits"), &[0, 2, 3]);
        assert!(dominant(ranking.into_iter(), 4, &mut set).is_err());
        assert!(rank(&[0.0; 4], &mut ranking).is_err());
    }

    #[test]
    fn equal_agreements_tie_whatever_the_order_of_their_steps() {
        let sum = |parts: [f64; 3]| parts.into_iter().sum::<f64>() / 3.0;
        let mut means = [sum([0.2, 0.4, 0.6]), sum([0.6, 0.4, 0.2]), sum([0.4, 0.4, 0.4])];
        assert_ne!(means[0], means[1]);
        settle(CriterionKind::Agreement, &mut means);
        assert!(means[0] == means[1] && means[1] == means[2]);
        assert!((means[0] - 0.4).abs() < 1e-9);
    }

    #[test]
    fn group_means() {
        let mut mean = [0.0; 2];
        group_mean(&[1.0, 2.0, 3.0, 6.0], &mut mean).expect("two rows");
        assert_eq!(mean, [2.0, 4.0]);
        assert!(group_mean(&[1.0; 3], &mut mean).is_err());
        assert!(group_mean(&[], &mut mean).is_err());
    }
}
