//! H2O (arXiv 2306.14048): heavy hitters keep being heavy.

use super::evicting::prepare;
use super::{EvictingPolicy, Memory, Pass, Phase, Residents};
use crate::budget::Guarantees;
use crate::error::{Error, Result};

/// Keeps *heavy hitters*, the rows with most attention accumulated since they came, and the most recent
/// rows, half of the budget each.
///
/// Accumulated attention is the sum of a row's weights over all tokens and query heads that [`evict`](EvictingPolicy::evict)
/// was shown; a token counts at the first call after it was appended. For a prompt the publication adds up all its queries: that costs
/// O(n² head_dim). Showing only a window of the last ones ([`with_window`](Self::with_window)) costs less and favours what
/// the prompt's end looks at, as [`SnapKv`](super::SnapKv) does. A decode step costs O(G n head_dim), or O(G n) where the
/// engine brings the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct H2o {
    window: usize,
    guarantees: Guarantees,
}

impl Default for H2o {
    /// Attention accumulated over the whole prompt.
    fn default() -> Self {
        Self { window: usize::MAX, guarantees: Guarantees::CURRENT }
    }
}

impl H2o {
    /// Accumulates over the last `window` tokens of a prompt only; at least the last one.
    #[must_use]
    pub fn with_window(self, window: usize) -> Self {
        Self { window: window.max(1), ..self }
    }

    /// Keeps these tokens whatever their attention, within the budget. Half of the budget is recent in any case.
    #[must_use]
    pub fn with_guarantees(self, guarantees: Guarantees) -> Self {
        Self { guarantees, ..self }
    }
}

impl EvictingPolicy for H2o {
    fn name(&self) -> &'static str {
        "h2o"
    }

    fn window(&self, phase: Phase) -> usize {
        if phase == Phase::Prefill { self.window } else { 1 }
    }

    fn evict(
        &mut self,
        pass: &Pass<'_>,
        budget: usize,
        residents: &mut Residents<'_>,
        memory: &mut Memory<'_>,
    ) -> Result<usize> {
        let ([heavy, scratch, _], entries) = prepare(pass, budget, residents, memory)?;
        if pass.window() == 0 {
            return Err(Error::Missing { what: "attention" });
        }
        let window = if pass.phase() == Phase::Prefill { self.window } else { usize::MAX };
        let fresh = residents.take_fresh();
        pass.add_weights(window.min(fresh), scratch, residents.notes())?;
        if residents.len() <= budget {
            return Ok(residents.keep_all());
        }
        heavy.copy_from_slice(residents.notes());
        let half = u32::try_from(budget - budget / 2).unwrap_or(u32::MAX);
        let guarantees = Guarantees { recent: self.guarantees.recent.max(half), ..self.guarantees };
        residents.keep_best(heavy, guarantees, budget, entries)
    }
}
