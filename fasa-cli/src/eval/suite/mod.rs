//! What is asked: a task with its questions.

mod generated;
mod longbench;
mod perplexity;
mod problems;
mod study;

pub use generated::{Generated, Protocol};
pub use longbench::LongBench;
pub use perplexity::Perplexity;
pub use problems::{Answers, Collection, Problems};
pub use study::Study;

use super::question::Question;
use super::record::Setting;
use crate::model::LanguageModel;
use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use std::path::Path;

/// What a score means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Right or wrong, or the share that is right: higher is better.
    Score,
    /// A mean negative log-likelihood, shown as a perplexity: lower is better.
    Likelihood,
    /// A share of attention, with more of the kind by layer.
    Agreement,
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

/// The first `count` lines of a file of JSON lines, and a name of the whole file's content.
///
/// # Errors
/// If it cannot be read, has no line, or one without what a row needs.
fn rows_of<T: DeserializeOwned>(path: &Path, count: u64) -> Result<(Vec<T>, String)> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("cannot read the questions `{}`; check `--data`, and that it is a file of JSON lines", path.display())
    })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).take(count as usize);
    let row = |(number, line): (usize, &str)| {
        serde_json::from_str(line)
            .with_context(|| format!("line {} of `{}` is no question of this kind", number + 1, path.display()))
    };
    let rows: Vec<T> = lines.map(row).collect::<Result<_>>()?;
    ensure!(!rows.is_empty(), "`{}` has no question; give `--data` another file", path.display());
    Ok((rows, format!("{:016x}", super::record::hash(&text))))
}
