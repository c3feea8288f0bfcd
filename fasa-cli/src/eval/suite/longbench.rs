//! LongBench V1: its prompts, its truncation in the middle, its metrics.
//!
//! `longbench.json` holds the benchmark's own prompts and lengths (THUDM/LongBench, MIT, © 2023 THU-KEG & Zhipu AI). No chat
//! template is put around a prompt: where the benchmark uses one, it is the model's own.

use super::{Suite, rows_of};
use crate::eval::question::{Question, Then, Writing};
use crate::eval::record::Setting;
use crate::model::LanguageModel;
use crate::scoring::overlap::Segmenter;
use crate::scoring::{choice, code, overlap, rouge};
use anyhow::{Context, Result, ensure};
use fasa_burn::sampling::Sampling;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// How a task of the benchmark is asked and scored.
#[derive(Debug, Clone, Deserialize)]
struct Task {
    prompt: String,
    max_new_tokens: usize,
    metric: Metric,
    /// Only the first line of an answer is scored.
    #[serde(default)]
    first_line: bool,
    /// The answer ends with its line, which is not empty.
    #[serde(default)]
    one_line: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Metric {
    F1,
    F1Zh,
    Rouge,
    RougeZh,
    Class,
    Paragraph,
    ParagraphZh,
    Count,
    Code,
}

/// A line of a task's file.
#[derive(Debug, Clone, Deserialize)]
struct Row {
    input: String,
    context: String,
    answers: Vec<String>,
    all_classes: Option<Vec<String>>,
    dataset: String,
}

/// Questions of one file.
pub struct LongBench {
    name: String,
    task: Task,
    rows: Vec<Arc<Row>>,
    /// Names what is in the file.
    content: String,
    segmenter: Option<Arc<Segmenter>>,
    /// Tokens of a prompt.
    limit: usize,
}

impl LongBench {
    /// The first `instances` rows of a file, their prompts cut to `tokens`; as long as the model allows, if none are given.
    ///
    /// # Errors
    /// If the file cannot be read, is not of this benchmark, or the model has too few positions.
    pub fn new(
        model: &LanguageModel,
        path: &Path,
        segmenter: Option<Arc<Segmenter>>,
        tokens: Option<usize>,
        instances: u64,
    ) -> Result<Self> {
        let (rows, content): (Vec<Row>, String) = rows_of(path, instances)?;
        let name = rows.first().map(|row| row.dataset.clone()).unwrap_or_default();
        let mut tasks: BTreeMap<String, Task> =
            serde_json::from_str(include_str!("longbench.json")).context("the built-in prompts are damaged")?;
        let known = tasks.keys().cloned().collect::<Vec<_>>().join(", ");
        let task = tasks.remove(&name);
        let task =
            task.with_context(|| format!("`{}` is of the task `{name}`; LongBench has {known}", path.display()))?;
        for (number, row) in rows.iter().enumerate() {
            let line = || format!("line {} of `{}`", number + 1, path.display());
            ensure!(row.dataset == name, "{} is of the task `{}`, the first of `{name}`", line(), row.dataset);
            ensure!(!row.answers.is_empty(), "{} has no answer", line());
            ensure!(task.metric != Metric::Class || row.all_classes.is_some(), "{} has no `all_classes`", line());
            grade(&task, segmenter.as_deref(), row, "").with_context(line)?;
        }
        let positions = model.decoder.config().max_position_embeddings;
        let most = positions.saturating_sub(task.max_new_tokens);
        let limit = tokens.unwrap_or(most);
        ensure!(
            (2..=most).contains(&limit),
            "{name} reads {limit} tokens and writes {}, the model has {positions} positions; set `--tokens` to at most {most}",
            task.max_new_tokens
        );
        let rows = rows.into_iter().map(Arc::new).collect();
        Ok(Self { name, task, rows, content, segmenter, limit })
    }
}

impl Suite for LongBench {
    fn task(&self) -> String {
        self.name.clone()
    }

    fn len(&self) -> u64 {
        self.rows.len() as u64
    }

    fn describe(&self, setting: &mut Setting) {
        setting.tokens = self.limit;
        setting.protocol = format!("up to {} tokens written", self.task.max_new_tokens);
        setting.data = format!("file {}", self.content);
    }

    fn question(&self, model: &LanguageModel, index: u64) -> Result<Question> {
        let row = self.rows.get(index as usize).context("the file has fewer rows")?.clone();
        let prefill = truncated(model, &filled(&self.task.prompt, &row), self.limit)?;
        let (mut stop_ids, mut not_first) = (Vec::new(), Vec::new());
        if self.task.one_line {
            stop_ids.extend(model.tokenizer.encode("\n")?.last());
            not_first.extend(stop_ids.iter().chain(&model.decoder.config().eos_token_ids));
        }
        let (task, segmenter) = (self.task.clone(), self.segmenter.clone());
        let writing = Writing {
            max_new_tokens: task.max_new_tokens,
            stops: Vec::new(),
            stop_ids,
            not_first,
            samples: 1,
            sampling: Sampling::default(),
            grade: Box::new(move |text| grade(&task, segmenter.as_deref(), &row, text)),
        };
        Ok(Question { prefill, then: Then::Written(writing) })
    }
}

/// The best score over the right answers.
fn grade(task: &Task, segmenter: Option<&Segmenter>, row: &Row, text: &str) -> Result<f64> {
    let segmenter = || segmenter.context("it is scored by Chinese words; name jieba's `dict.txt` with `--dictionary`");
    let text = match task.first_line {
        true => text.trim_start_matches('\n').split('\n').next().unwrap_or_default(),
        false => text,
    };
    let mut best = 0.0_f64;
    for truth in &row.answers {
        best = best.max(match task.metric {
            Metric::F1 => overlap::english(text, truth)?,
            Metric::F1Zh => overlap::chinese(segmenter()?, text, truth),
            Metric::Rouge => rouge::score(text, truth),
            Metric::RougeZh => rouge::chinese(segmenter()?, text, truth),
            Metric::Class => choice::class(text, truth, row.all_classes.as_deref().unwrap_or_default()),
            Metric::Paragraph => choice::paragraph(text, truth, "Paragraph ")?,
            Metric::ParagraphZh => choice::paragraph(text, truth, "段落")?,
            Metric::Count => choice::count(text, truth)?,
            Metric::Code => code::similarity(text, truth),
        });
    }
    Ok(best)
}

/// The prompt with its places filled; braces in the texts themselves are left alone.
fn filled(prompt: &str, row: &Row) -> String {
    let (before, after) = prompt.split_once("{context}").unwrap_or((prompt, ""));
    let with_input = |part: &str| part.replace("{input}", &row.input);
    [with_input(before), row.context.clone(), with_input(after)].concat()
}

/// The prompt as tokens. One that is longer than `limit` loses its middle, as the benchmark does it: the first and the last
/// half of the limit, put together as text.
fn truncated(model: &LanguageModel, prompt: &str, limit: usize) -> Result<Vec<u32>> {
    let start = usize::from(model.decoder.config().bos_token_id.is_some());
    let mut ids = model.encode_prompt(prompt)?;
    let (mut half, whole) = (limit / 2, ids.clone());
    // At the seam tokens can come out otherwise; where they became more than fit, a little more is cut.
    while ids.len() > limit && half > start {
        let (first, last) = (&whole[start..half], &whole[whole.len() - half..]);
        ids = model.encode_prompt(&(model.tokenizer.decode(first)? + &model.tokenizer.decode(last)?))?;
        half -= ids.len().saturating_sub(limit).div_ceil(2).min(half);
    }
    ensure!(ids.len() <= limit, "a prompt cannot be cut to {limit} tokens; raise `--tokens`");
    Ok(ids)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn row(answers: &[&str]) -> Row {
        Row {
            input: "who {context}?".into(),
            context: "a {input} b".into(),
            answers: answers.iter().map(|a| a.to_string()).collect(),
            all_classes: None,
            dataset: "triviaqa".into(),
        }
    }

    #[test]
    fn every_task_of_the_benchmark_is_there() {
        let tasks: BTreeMap<String, Task> = serde_json::from_str(include_str!("longbench.json")).unwrap();
        assert_eq!(tasks.len(), 21);
        assert!(tasks.values().all(|task| task.prompt.contains("{context}")));
        let lines: Vec<&str> = tasks.iter().filter(|(_, t)| t.first_line).map(|(name, _)| name.as_str()).collect();
        assert_eq!(lines, ["lsht", "samsum", "trec", "triviaqa"]);
    }

    #[test]
    fn places_are_filled_once() {
        assert_eq!(filled("{context}\n{input}", &row(&[])), "a {input} b\nwho {context}?");
    }

    #[test]
    fn the_best_answer_and_the_first_line_count() {
        let tasks: BTreeMap<String, Task> = serde_json::from_str(include_str!("longbench.json")).unwrap();
        let row = row(&["red green", "blue"]);
        assert_eq!(grade(&tasks["triviaqa"], None, &row, "\nblue\nred red").unwrap(), 1.0);
        assert_eq!(grade(&tasks["hotpotqa"], None, &row, "blue\nred red red").unwrap(), 0.4);
        let error = format!("{:#}", grade(&tasks["vcsum"], None, &row, "").unwrap_err());
        assert!(error.contains("--dictionary"), "{error}");
    }
}
