//! StreamingLLM (arXiv 2309.17453): the first tokens and the most recent ones.

use super::evicting::check;
use super::{CachePolicy, EvictingPolicy, Memory, Pass, Phase, Residents, Selection, Step};
use crate::config::Scope;
use crate::error::Result;

/// Keeps the first `sinks` tokens and fills the budget with the most recent ones. Looks at no key.
///
/// A token that has left the recent ones never comes back, so the method may as well evict: it implements both traits, and
/// the sets are the same. The publication numbers positions within the cache; here tokens keep their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streaming {
    /// Tokens kept from the start of the context.
    pub sinks: u32,
}

impl Default for Streaming {
    /// Eight sinks.
    fn default() -> Self {
        Self { sinks: 8 }
    }
}

impl CachePolicy for Streaming {
    fn name(&self) -> &'static str {
        "streaming"
    }

    fn scope(&self) -> Scope {
        Scope::KvHead
    }

    fn select(
        &mut self,
        step: &Step<'_>,
        budget: usize,
        _memory: &mut Memory<'_>,
        selection: &mut Selection<'_>,
    ) -> Result<()> {
        step.validate()?;
        let seen = step.keys.len();
        let budget = budget.min(seen);
        selection.expect(Scope::KvHead, step.queries.len(), budget)?;
        // The current token is in even if the budget is smaller than the sinks.
        let sinks = (self.sinks as usize).min(budget.saturating_sub(1));
        let positions = (0..sinks).chain(seen - (budget - sinks)..seen);
        selection.fill(0, |out| {
            out.iter_mut().zip(positions).for_each(|(slot, position)| *slot = position as u32);
            Ok(budget)
        })
    }
}

impl EvictingPolicy for Streaming {
    fn name(&self) -> &'static str {
        "streaming"
    }

    fn window(&self, _phase: Phase) -> usize {
        0
    }

    fn evict(
        &mut self,
        pass: &Pass<'_>,
        budget: usize,
        residents: &mut Residents<'_>,
        _memory: &mut Memory<'_>,
    ) -> Result<usize> {
        check(pass, budget, residents)?;
        let rows = residents.len();
        if rows <= budget {
            return Ok(residents.keep_all());
        }
        let sinks = (self.sinks as usize).min(budget - 1);
        residents.keep(|out| {
            let kept = (0..sinks).chain(rows - (budget - sinks)..rows);
            out.iter_mut().zip(kept).for_each(|(slot, row)| *slot = row as u32);
            Ok(budget)
        })
    }
}
