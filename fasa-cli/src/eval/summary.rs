//! Scores per setting, task, method and budget.

use super::agreement::LayerAgreement;
use super::record::{Cell, Header, Results};
use serde::Serialize;
use std::collections::BTreeMap;

/// A method at a budget on a task, over all its questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The setting's name.
    pub setting: String,
    /// The task.
    pub task: String,
    /// The method.
    pub method: String,
    /// Checksum of its profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Chunks of its sketches, and the method's name without their number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks: Option<(usize, String)>,
    /// The budget; empty for dense attention.
    pub budget: String,
    /// Questions.
    pub instances: usize,
    /// Questions with a full score.
    pub right: usize,
    /// Those among them that dense attention got right too; without dense among the methods, all.
    pub right_of_dense: usize,
    /// Mean score, or perplexity.
    pub score: f64,
    /// Standard error of the score; of a perplexity, by its logarithm.
    pub standard_error: f64,
    /// Cache bytes that a step read, on average.
    pub cache_bytes_per_step: u64,
    /// Tokens of an answer, on average.
    pub answer_tokens: f64,
    /// Whether answers were written, not given.
    pub is_written: bool,
    /// Scores by question.
    pub outcomes: Vec<f64>,
    /// How choices agree with true attention, per sparse layer, averaged over questions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerAgreement>,
}

/// Whether a task's scores are likelihoods.
pub fn is_likelihood(task: &str) -> bool {
    task == "ppl"
}

/// Whether a task's scores are shares of attention.
pub fn is_agreement(task: &str) -> bool {
    task.starts_with("agreement/")
}

impl Summary {
    /// What is left of what dense attention achieves: of written answers, which are scored in parts, the share of its
    /// score; of others the share of those it got right that are right here too, or without it of all. `None` where it
    /// achieves nothing.
    pub fn share_of(&self, dense: Option<&Self>) -> Option<f64> {
        let share = match dense {
            Some(dense) if self.is_written => self.score / dense.score,
            Some(dense) => self.right_of_dense as f64 / dense.right as f64,
            None => self.right as f64 / self.instances as f64,
        };
        share.is_finite().then_some(share)
    }
}

/// Means of the same layer.
fn layers(cells: &[&Cell]) -> Vec<LayerAgreement> {
    let mut by_layer: BTreeMap<usize, Vec<&LayerAgreement>> = BTreeMap::new();
    for layer in cells.iter().flat_map(|cell| &cell.layers) {
        by_layer.entry(layer.layer).or_default().push(layer);
    }
    let means = by_layer.into_iter().map(|(layer, all)| {
        let mean = |of: fn(&LayerAgreement) -> Option<f64>| {
            all.iter().map(|l| of(l)).sum::<Option<f64>>().map(|sum| sum / all.len() as f64)
        };
        LayerAgreement {
            layer,
            tokens: mean(|l| Some(l.tokens)).unwrap_or_default(),
            mass: mean(|l| Some(l.mass)).unwrap_or_default(),
            single: mean(|l| l.single),
            compound: mean(|l| l.compound),
        }
    });
    means.collect()
}

/// Tasks in the order of their first cell in `order`, methods and budgets likewise; `order` maps names to places.
pub fn summarize(results: &Results, keep: impl Fn(&Cell) -> bool) -> Vec<Summary> {
    // Setting, task, method, profile, budget.
    type Group = (String, String, String, Option<String>, String);
    let mut groups: BTreeMap<Group, Vec<&Cell>> = BTreeMap::new();
    for cell in results.cells.values().filter(|cell| keep(cell)) {
        let (method, profile) = (cell.method.clone(), cell.profile.clone());
        let key = (cell.setting.clone(), cell.task.clone(), method, profile, cell.budget.clone());
        groups.entry(key).or_default().push(cell);
    }
    let dense: BTreeMap<(&str, &str, u64), bool> = results
        .cells
        .values()
        .filter(|cell| cell.method == "dense")
        .map(|cell| ((cell.setting.as_str(), cell.task.as_str(), cell.index), cell.score >= 1.0))
        .collect();
    let all = groups.into_iter().map(|((setting, task, method, profile, budget), mut cells)| {
        cells.sort_by_key(|cell| cell.index);
        let n = cells.len();
        let outcomes: Vec<f64> = cells.iter().map(|cell| cell.score).collect();
        let mean = outcomes.iter().sum::<f64>() / n as f64;
        let variance = outcomes.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n.max(2) - 1) as f64;
        let error = (variance / n as f64).sqrt();
        let (score, standard_error) =
            if is_likelihood(&task) { (mean.exp(), mean.exp() * error) } else { (mean, error) };
        let right = |cell: &&&Cell| cell.score >= 1.0;
        let with_dense = |cell: &&&Cell| *dense.get(&(&*setting, &*task, cell.index)).unwrap_or(&true);
        let right_of_dense = cells.iter().filter(right).filter(with_dense).count();
        Summary {
            instances: n,
            right: cells.iter().filter(right).count(),
            right_of_dense,
            score,
            standard_error,
            cache_bytes_per_step: cells.iter().map(|c| c.bytes_per_step).sum::<u64>() / n as u64,
            answer_tokens: cells.iter().map(|c| c.answer_tokens as f64).sum::<f64>() / n as f64,
            is_written: cells.iter().any(|c| !c.texts.is_empty()),
            layers: layers(&cells),
            chunks: cells.first().and_then(|c| c.chunks.clone()),
            outcomes,
            setting,
            task,
            method,
            profile,
            budget,
        }
    });
    all.collect()
}

/// Orders names as they are first met in `names`, others last by name.
pub fn place(names: &[String], name: &str) -> (usize, String) {
    (names.iter().position(|n| n == name).unwrap_or(usize::MAX), name.to_owned())
}

/// A budget as a number to sort by; dense attention comes first.
pub fn budget_order(budget: &str) -> (bool, f64) {
    match budget.strip_suffix('%') {
        Some(share) => (true, share.parse().unwrap_or(0.0)),
        None => (false, budget.parse().unwrap_or(0.0)),
    }
}

/// The setting of a header by its name.
pub fn setting<'h>(headers: &'h [Header], id: &str) -> Option<&'h Header> {
    headers.iter().find(|header| header.id == id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn cell(task: &str, method: &str, index: u64, score: f64) -> Cell {
        Cell {
            setting: "s".into(),
            task: task.into(),
            index,
            method: method.into(),
            profile: None,
            chunks: None,
            budget: if method == "dense" { String::new() } else { "64".into() },
            score,
            answer_tokens: 2,
            bytes_per_step: 100 + index,
            texts: Vec::new(),
            layers: Vec::new(),
        }
    }

    #[test]
    fn means_and_errors_by_hand() {
        let mut results = Results::default();
        for cell in [
            cell("kv", "dense", 0, 1.0),
            cell("kv", "dense", 1, 0.0),
            cell("kv", "ours", 0, 1.0),
            cell("kv", "ours", 1, 1.0),
            cell("kv", "ours", 2, 0.0),
            cell("kv", "ours", 3, 0.0),
            cell("ppl", "ours", 0, 2.0f64.ln()),
            cell("ppl", "ours", 1, 8.0f64.ln()),
        ] {
            results.cells.insert(cell.key(), cell);
        }
        let all = summarize(&results, |_| true);
        let of = |task: &str, method: &str| all.iter().find(|s| s.task == task && s.method == method).unwrap();
        let ours = of("kv", "ours");
        assert_eq!((ours.right, ours.right_of_dense, ours.instances, ours.score), (2, 1, 4, 0.5));
        // Deviations of 1/2 each: variance 4 * 1/4 / 3, over 4.
        assert!((ours.standard_error - (1.0f64 / 12.0).sqrt()).abs() < 1e-12);
        assert_eq!(ours.cache_bytes_per_step, 101);
        assert!((of("ppl", "ours").score - 4.0).abs() < 1e-9);
    }
    #[test]
    fn shares_of_dense_attention() {
        let mut results = Results::default();
        let written =
            |task: &str, method: &str, score: f64| Cell { texts: vec!["a".into()], ..cell(task, method, 0, score) };
        for cell in [
            cell("kv", "dense", 0, 1.0),
            cell("kv", "dense", 1, 0.0),
            cell("kv", "ours", 0, 1.0),
            cell("kv", "ours", 1, 1.0),
            written("qasper", "dense", 0.5),
            written("qasper", "ours", 0.2),
            written("hopeless", "dense", 0.0),
            written("hopeless", "ours", 0.0),
            cell("alone", "ours", 0, 0.0),
        ] {
            results.cells.insert(cell.key(), cell);
        }
        let all = summarize(&results, |_| true);
        let of = |task: &str, method: &str| all.iter().find(|s| s.task == task && s.method == method);
        let share = |task: &str| of(task, "ours").and_then(|ours| ours.share_of(of(task, "dense")));
        assert_eq!(
            (share("kv"), share("qasper"), share("hopeless"), share("alone")),
            (Some(1.0), Some(0.4), None, Some(0.0))
        );
    }
}
