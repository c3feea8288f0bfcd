//! What methods choose, compared with true attention, over questions or a text.

use super::{Metric, Suite};
use crate::eval::question::{Question, Then};
use crate::eval::record::Setting;
use crate::model::LanguageModel;
use anyhow::Result;

/// A suite whose questions are studied instead of scored: over the steps that fetch an answer, or all steps of a text.
pub struct Study(pub Box<dyn Suite>);

impl Suite for Study {
    fn task(&self) -> String {
        format!("agreement/{}", self.0.task())
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn metric(&self) -> Metric {
        Metric::Agreement
    }

    fn describe(&self, setting: &mut Setting) {
        self.0.describe(setting);
    }

    fn question(&self, model: &LanguageModel, index: u64) -> Result<Question> {
        let Question { mut prefill, then } = self.0.question(model, index)?;
        let (tokens, judged) = match then {
            Then::Given { mut tokens, answers } => {
                // The answer's first token is fetched at the token before it: if that was to be read densely, it is decoded.
                let mut start = answers.iter().map(|a| a.start).min().unwrap_or(0);
                let end = answers.iter().map(|a| a.end).max().unwrap_or(0);
                if start == 0 {
                    tokens.splice(0..0, prefill.pop());
                    start = 1;
                    (tokens, 0..end.max(start))
                } else {
                    (tokens, start - 1..end.saturating_sub(1).max(start))
                }
            }
            Then::Likelihood { tokens } => {
                let steps = tokens.len();
                (tokens, 0..steps)
            }
            other => return Ok(Question { prefill, then: other }),
        };
        Ok(Question { prefill, then: Then::Studied { tokens, judged } })
    }
}
