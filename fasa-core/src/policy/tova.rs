//! TOVA (arXiv 2401.06104): whoever the newest token looks at least has to go.

use super::evicting::prepare;
use super::{EvictingPolicy, Memory, Pass, Phase, Residents};
use crate::budget::Guarantees;
use crate::error::Result;

/// Drops the rows with the lowest attention weight of the newest query, one per decode step once the
/// budget is full. Remembers nothing.
///
/// The publication averages the weights over all heads of a layer and evicts the same tokens from each; here every cache
/// head averages over its own query heads. The newest row itself is never dropped. Time O(G n head_dim), or O(G n) where
/// the engine brings the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tova {
    guarantees: Guarantees,
}

impl Default for Tova {
    fn default() -> Self {
        Self { guarantees: Guarantees::CURRENT }
    }
}

impl Tova {
    /// Keeps these tokens whatever their attention, within the budget.
    #[must_use]
    pub fn with_guarantees(self, guarantees: Guarantees) -> Self {
        Self { guarantees }
    }
}

impl EvictingPolicy for Tova {
    fn name(&self) -> &'static str {
        "tova"
    }

    fn window(&self, _phase: Phase) -> usize {
        1
    }

    fn evict(
        &mut self,
        pass: &Pass<'_>,
        budget: usize,
        residents: &mut Residents<'_>,
        memory: &mut Memory<'_>,
    ) -> Result<usize> {
        let ([weights, scratch, _], entries) = prepare(pass, budget, residents, memory)?;
        if residents.len() <= budget {
            return Ok(residents.keep_all());
        }
        weights.fill(0.0);
        pass.add_weights(1, scratch, weights)?;
        residents.keep_best(weights, self.guarantees, budget, entries)
    }
}
