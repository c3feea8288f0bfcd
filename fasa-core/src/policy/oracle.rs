//! The oracle: ranks by the true attention. Reads every key, so it saves nothing; it bounds what any ranking can do.

use super::Step;
use crate::config::Scope;
use crate::error::Result;
use crate::importance::{Importance, combine, dot};

/// Importance by the whole product q.k.
#[derive(Debug, Clone, Copy)]
pub struct Oracle {
    /// One ranking per query head, or the group's mean attention.
    pub scope: Scope,
}

impl Importance for Oracle {
    fn scope(&self) -> Scope {
        self.scope
    }

    fn importance(&mut self, step: &Step<'_>, scratch: &mut [f32], scores: &mut [f32]) -> Result<()> {
        combine(step, self.scope, scratch, scores, |head, row| {
            let query = step.queries.row(head);
            for (score, key) in row.iter_mut().zip(step.keys.iter()) {
                *score = dot(query, key);
            }
            Ok(())
        })
    }
}
