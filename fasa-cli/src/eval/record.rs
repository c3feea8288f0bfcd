//! Results in a file of JSON lines. A run appends, and a later one with the same settings goes on where it ended.

use super::agreement::LayerAgreement;
use super::contender::Contender;
use super::question::Outcome;
use anyhow::{Context, Result, ensure};
use fasa_core::Budget;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What a score depends on, beside task, method and budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The model's name.
    pub model: String,
    /// Its fingerprint, as in profiles.
    pub weights: String,
    /// Number format of weights and cache.
    pub dtype: String,
    /// Tokens of each prompt.
    pub tokens: usize,
    /// The set of instances.
    pub seed: u64,
    /// What is read densely.
    pub protocol: String,
    /// Whatever else the task was given: texts, files, samples.
    pub data: String,
}

/// A run: the first line that it writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Names the setting in the lines that follow.
    pub id: String,
    /// The setting.
    pub setting: Setting,
    /// The command.
    pub command: Vec<String>,
    /// The machine.
    pub machine: String,
    /// The version of this program.
    pub version: String,
}

/// One method at one budget on one question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The setting's name.
    #[serde(default)]
    pub setting: String,
    /// The task.
    #[serde(default)]
    pub task: String,
    /// Which question.
    #[serde(default)]
    pub index: u64,
    /// The method.
    pub method: String,
    /// Checksum of its profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Chunks of its sketches, and the method's name without their number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunks: Option<(usize, String)>,
    /// Tokens, or a share such as `3%`; empty for dense attention.
    pub budget: String,
    /// 0 to 1, or a mean negative log-likelihood.
    pub score: f64,
    /// Tokens the score is about, or written.
    pub answer_tokens: usize,
    /// Cache bytes read per step.
    pub bytes_per_step: u64,
    /// What was written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<String>,
    /// How choices agree with true attention, per sparse layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerAgreement>,
}

impl Cell {
    pub(super) fn new(contender: &Contender, budget: Budget, outcome: Outcome, bytes_per_step: u64) -> Self {
        Self {
            setting: String::new(),
            task: String::new(),
            index: 0,
            method: contender.label.clone(),
            profile: contender.profile.clone(),
            chunks: contender.plan().zip(contender.family.clone()).map(|(plan, family)| (plan.view().chunks(), family)),
            budget: if contender.is_dense() { String::new() } else { budget_name(budget) },
            score: outcome.score,
            answer_tokens: outcome.tokens,
            bytes_per_step,
            texts: outcome.texts,
            layers: outcome.layers,
        }
    }
}

/// What makes a cell the same as one of an earlier run.
pub type Key = (String, String, u64, String, Option<String>, String);

impl Cell {
    /// Its key.
    pub fn key(&self) -> Key {
        (
            self.setting.clone(),
            self.task.clone(),
            self.index,
            self.method.clone(),
            self.profile.clone(),
            self.budget.clone(),
        )
    }
}

/// A budget as on the command line.
pub fn budget_name(budget: Budget) -> String {
    match budget {
        Budget::Tokens(n) => n.to_string(),
        Budget::Ratio(share) => format!("{}%", f64::from(share * 1e6).round() / 1e4),
        other => format!("{other:?}"),
    }
}

impl Setting {
    /// A name that is the same for the same setting.
    pub fn id(&self) -> String {
        format!("{:016x}", hash(&serde_json::to_string(self).unwrap_or_default()))
    }
}

/// FNV-1a: the standard library promises no hash that stays the same.
pub(super) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Run { run: Header },
    Cell(Cell),
}

/// What a results file holds.
#[derive(Debug, Default, Clone)]
pub struct Results {
    /// The runs.
    pub headers: Vec<Header>,
    /// Cells by key; of a key that comes twice, the later one.
    pub cells: HashMap<Key, Cell>,
}

impl Results {
    /// Reads a results file.
    ///
    /// # Errors
    /// If it cannot be read, or a line of it is no result. A last line without its end was cut by a stopped run, and is
    /// left out.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the results `{}`; check the path", path.display()))?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        let mut results = Self::default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for (number, line) in whole.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line: Line = serde_json::from_str(line).with_context(|| {
                format!("line {} of `{}` is no result; remove it or name another file", number + 1, path.display())
            })?;
            match line {
                Line::Run { run } => results.headers.push(run),
                Line::Cell(cell) => drop(results.cells.insert(cell.key(), cell)),
            }
        }
        Ok(results)
    }
}

/// A results file that is written to.
pub struct Writer {
    file: Option<File>,
    path: PathBuf,
    /// What it held before and what was added.
    pub results: Results,
}

impl Writer {
    /// Opens a file, or nothing: results are then kept in memory alone.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else {
            return Ok(Self { file: None, path: PathBuf::new(), results: Results::default() });
        };
        let failed = || format!("cannot write the results `{}`; choose another place with `--results`", path.display());
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).with_context(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(failed)?;
        let results = Results::parse(&text, path)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).with_context(failed)?;
        file.seek(SeekFrom::End(0)).with_context(failed)?;
        Ok(Self { file: Some(file), path: path.to_owned(), results })
    }

    /// Begins a run.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn begin(&mut self, header: Header) -> Result<()> {
        self.line(&Line::Run { run: header.clone() })?;
        self.results.headers.push(header);
        Ok(())
    }

    /// Adds a cell.
    ///
    /// # Errors
    /// If the file cannot be written, or the score is no number.
    pub fn add(&mut self, cell: Cell) -> Result<()> {
        ensure!(cell.score.is_finite(), "method {} scored {} on {} {}", cell.method, cell.score, cell.task, cell.index);
        self.line(&Line::Cell(cell.clone()))?;
        self.results.cells.insert(cell.key(), cell);
        Ok(())
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut text = serde_json::to_string(line).context("cannot write a result as JSON")?;
        text.push('\n');
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write the results `{}`", self.path.display()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn cell(index: u64, score: f64) -> Cell {
        Cell {
            setting: "s".into(),
            task: "kv".into(),
            index,
            method: "dense".into(),
            profile: None,
            chunks: None,
            budget: "64".into(),
            score,
            answer_tokens: 6,
            bytes_per_step: 10,
            texts: Vec::new(),
            layers: Vec::new(),
        }
    }

    #[test]
    fn a_cut_line_is_dropped_and_the_rest_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        let mut writer = Writer::open(Some(&path)).unwrap();
        writer.add(cell(0, 1.0)).unwrap();
        writer.add(cell(1, 0.0)).unwrap();
        drop(writer);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 7]).unwrap();
        let mut writer = Writer::open(Some(&path)).unwrap();
        assert_eq!(writer.results.cells.len(), 1);
        writer.add(cell(1, 0.5)).unwrap();
        drop(writer);
        let results = Results::read(&path).unwrap();
        assert_eq!(results.cells[&cell(1, 0.0).key()].score, 0.5);
        assert_eq!(results.cells.len(), 2);
        std::fs::write(&path, "{\"method\": 3}\n").unwrap();
        let error = format!("{:#}", Results::read(&path).unwrap_err());
        assert!(error.contains("line 1") && error.contains("r.jsonl"), "{error}");
        assert!(Writer::open(None).unwrap().add(cell(0, f64::NAN)).is_err());
    }

    #[test]
    fn budgets_are_named_as_they_are_given() {
        for text in ["64", "3%", "0.5%", "12.5%", "100%"] {
            assert_eq!(budget_name(crate::settings::parse_budget(text).unwrap()), text);
        }
    }
}
