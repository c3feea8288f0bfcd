//! Full attention: every token, whatever the budget. The baseline.

use super::{CachePolicy, Memory, Selection, Step};
use crate::config::Scope;
use crate::error::Result;

/// Keeps every token; ignores the budget. The selection needs room for all tokens seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Full;

impl CachePolicy for Full {
    fn name(&self) -> &'static str {
        "full"
    }

    fn scope(&self) -> Scope {
        Scope::KvHead
    }

    fn select(
        &mut self,
        step: &Step<'_>,
        _budget: usize,
        _memory: &mut Memory<'_>,
        selection: &mut Selection<'_>,
    ) -> Result<()> {
        step.validate()?;
        let seen = step.keys.len();
        selection.expect(Scope::KvHead, step.queries.len(), seen)?;
        selection.fill_all(0, seen)
    }
}
