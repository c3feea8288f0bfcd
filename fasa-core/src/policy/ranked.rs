//! From importance to a policy: guarantees first, then the best of the rest.

use super::{CachePolicy, Memory, Selection, Step};
use crate::budget::{Guarantees, TopP};
use crate::config::Scope;
use crate::error::{Result, expect_capacity};
use crate::importance::{Importance, softmax};

/// A scorer with guarantees: keeps the guaranteed tokens and the most important others, within the budget.
///
/// It keeps as many as the budget says, or with [`with_top_p`](Self::with_top_p) only as many as the estimated attention
/// asks for.
#[derive(Debug, Clone, Copy)]
pub struct Ranked<S> {
    name: &'static str,
    scorer: S,
    guarantees: Guarantees,
    top_p: Option<TopP>,
}

impl<S: Importance> Ranked<S> {
    /// A policy called `name`.
    pub fn new(name: &'static str, scorer: S, guarantees: Guarantees) -> Self {
        Self { name, scorer, guarantees, top_p: None }
    }

    /// Keeps tokens only until their estimated attention reaches the share that `top_p` says. Its bounds hold beside the
    /// budget: the smaller of the budget and `top_p.most()` is the most that is kept.
    #[must_use]
    pub fn with_top_p(self, top_p: TopP) -> Self {
        Self { top_p: Some(top_p), ..self }
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
        let top_p = match self.top_p {
            Some(top_p) => Some(top_p.within(budget)?),
            None => None,
        };
        let budget = top_p.map_or(budget, |top_p| top_p.most() as usize).min(n);
        selection.expect(self.scope(), group, budget)?;
        expect_capacity("memory.scores", memory.scores.len(), Memory::scores_len(sets, n))?;
        let (scores, scratch) = memory.scores[..Memory::scores_len(sets, n)].split_at_mut(sets * n);
        if budget < n || top_p.is_some() {
            self.scorer.importance(step, scratch, scores)?;
        } // else everything is kept: no score is read
        let scale = (!self.scorer.are_weights(group)).then(|| 1.0 / libm::sqrtf(step.keys.dim() as f32));
        for (s, row) in scores.chunks_exact_mut(n).enumerate() {
            let Some(top_p) = top_p else {
                selection.fill(s, |out| self.guarantees.pick(row, budget, memory.entries, out))?;
                continue;
            };
            if let Some(scale) = scale {
                softmax(row, scale);
            }
            selection.fill(s, |out| top_p.pick(row, self.guarantees, memory.entries, out))?;
        }
        Ok(())
    }
}
