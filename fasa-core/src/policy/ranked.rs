//! From importance to a policy: guarantees first, then the best of the rest.

use super::{CachePolicy, Memory, Selection, Step};
use crate::budget::Guarantees;
use crate::config::Scope;
use crate::error::{Result, expect_capacity};
use crate::importance::Importance;

/// A scorer with guarantees: keeps the guaranteed tokens and the most important others, within the budget.
#[derive(Debug, Clone, Copy)]
pub struct Ranked<S> {
    name: &'static str,
    scorer: S,
    guarantees: Guarantees,
}

impl<S: Importance> Ranked<S> {
    /// A policy called `name`.
    pub fn new(name: &'static str, scorer: S, guarantees: Guarantees) -> Self {
        Self { name, scorer, guarantees }
    }

    /// The scorer.
    pub fn scorer(&self) -> &S {
        &self.scorer
    }
}

impl<S: Importance> CachePolicy for Ranked<S> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn scope(&self) -> Scope {
        self.scorer.scope()
    }

    fn select(
        &mut self,
        step: &Step<'_>,
        budget: usize,
        memory: &mut Memory<'_>,
        selection: &mut Selection<'_>,
    ) -> Result<()> {
        step.validate()?;
        let (group, n) = (step.queries.len(), step.keys.len());
        let sets = self.scope().rows(group, 1);
        let budget = budget.min(n);
        selection.expect(self.scope(), group, budget)?;
        expect_capacity("memory.scores", memory.scores.len(), Memory::scores_len(sets, n))?;
        let (scores, scratch) = memory.scores[..Memory::scores_len(sets, n)].split_at_mut(sets * n);
        if budget < n {
            self.scorer.importance(step, scratch, scores)?;
        } // else everything is kept: no score is read
        for (s, row) in scores.chunks_exact(n).enumerate() {
            selection.fill(s, |out| self.guarantees.pick(row, budget, memory.entries, out))?;
        }
        Ok(())
    }
}
