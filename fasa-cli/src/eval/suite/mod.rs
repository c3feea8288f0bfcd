//! What is asked: a task with its questions.

mod generated;
mod perplexity;

pub use generated::{Generated, Protocol};
pub use perplexity::Perplexity;

use super::question::Question;
use super::record::Setting;
use crate::model::LanguageModel;
use anyhow::Result;

/// What a score means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Right or wrong, or the share that is right: higher is better.
    Score,
    /// A mean negative log-likelihood, shown as a perplexity: lower is better.
    Likelihood,
}

/// Questions of one task.
pub trait Suite: Sync {
    /// The task, as on the command line.
    fn task(&self) -> String;

    /// How many questions there are.
    fn len(&self) -> u64;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a score means.
    fn metric(&self) -> Metric {
        Metric::Score
    }

    /// Puts what the questions depend on into a setting.
    fn describe(&self, setting: &mut Setting);

    /// Question `index`.
    ///
    /// # Errors
    /// If it cannot be made for this model.
    fn question(&self, model: &LanguageModel, index: u64) -> Result<Question>;
}
