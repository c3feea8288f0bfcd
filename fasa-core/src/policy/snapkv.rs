//! SnapKV (arXiv 2404.14469): what the end of the prompt looks at is what the answer will need.

use super::evicting::prepare;
use super::{EvictingPolicy, Memory, Pass, Phase, Residents};
use crate::budget::Guarantees;
use crate::error::{Error, Result};

/// Compresses the prompt once: the queries of its last tokens, the *observation window*, vote for earlier rows.
///
/// A row's vote is its attention weight summed over the window and the group's query heads; votes are
/// max-pooled over neighbouring rows, so that what is kept is kept with its surroundings; the best rows before the window
/// and the window itself make up the budget. While decoding nothing is evicted: the cache grows by the answer.
///
/// Time O(window G n head_dim), once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapKv {
    window: usize,
    pool: usize,
    guarantees: Guarantees,
}

impl Default for SnapKv {
    /// A window of 32 tokens and max-pooling over 7 rows.
    fn default() -> Self {
        Self { window: 32, pool: 7, guarantees: Guarantees::CURRENT }
    }
}

impl SnapKv {
    /// Another window and another pooling width.
    ///
    /// # Errors
    /// [`Error::Range`] for a window of 0 or a width that is not odd.
    pub fn new(window: usize, pool: usize) -> Result<Self> {
        if window == 0 || pool.is_multiple_of(2) {
            return Err(Error::Range { what: "window or pool", problem: "some query votes; a centred width is odd" });
        }
        Ok(Self { window, pool, guarantees: Guarantees::CURRENT })
    }

    /// Keeps these tokens whatever the votes, within the budget; the window is kept in any case.
    #[must_use]
    pub fn with_guarantees(self, guarantees: Guarantees) -> Self {
        Self { guarantees, ..self }
    }
}

impl EvictingPolicy for SnapKv {
    fn name(&self) -> &'static str {
        "snapkv"
    }

    fn window(&self, phase: Phase) -> usize {
        if phase == Phase::Prefill { self.window } else { 0 }
    }

    fn slack(&self) -> usize {
        usize::MAX
    }

    fn evict(
        &mut self,
        pass: &Pass<'_>,
        budget: usize,
        residents: &mut Residents<'_>,
        memory: &mut Memory<'_>,
    ) -> Result<usize> {
        let ([votes, scratch, _], entries) = prepare(pass, budget, residents, memory)?;
        let n = residents.len();
        if pass.phase() == Phase::Decode || n <= budget {
            return Ok(residents.keep_all());
        }
        votes.fill(0.0);
        pass.add_weights(self.window, scratch, votes)?;
        // Within the window every row is kept anyway; its weights must not spread to the rows before it.
        let prefix = n.saturating_sub(self.window);
        max_pool(&votes[..prefix], self.pool, &mut scratch[..prefix]);
        scratch[prefix..].fill(0.0);
        let recent = self.guarantees.recent.max(u32::try_from(self.window).unwrap_or(u32::MAX));
        residents.keep_best(scratch, Guarantees { recent, ..self.guarantees }, budget, entries)
    }
}

/// The largest of `width` values around each, fewer at the ends.
pub(super) fn max_pool(values: &[f32], width: usize, out: &mut [f32]) {
    let reach = width / 2;
    for (i, out) in out.iter_mut().enumerate() {
        let around = &values[i.saturating_sub(reach)..values.len().min(i + reach + 1)];
        *out = around.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    }
}
