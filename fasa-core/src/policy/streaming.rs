//! StreamingLLM (arXiv 2309.17453): the first tokens and the most recent ones.

use super::{CachePolicy, Memory, Selection, Step};
use crate::config::Scope;
use crate::error::Result;

/// Keeps the first `sinks` tokens and fills the budget with the most recent ones. Looks at no key.
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
