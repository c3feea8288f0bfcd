//! Results as Markdown: one table per setting, a row per method and budget, a column per task.

use super::{Section, quoted, settings};
use crate::eval::record::Results;
use crate::eval::summary::{Summary, is_likelihood};
use crate::report;
use std::fmt::Write;

/// The tables, each below its commands.
pub fn render(results: &Results) -> String {
    let mut out = String::new();
    for header in settings(results) {
        let section = Section::new(results, header);
        let setting = &header.setting;
        let data = if setting.data.is_empty() { String::new() } else { format!(", {}", setting.data) };
        // A string takes everything that is written to it.
        let _ = writeln!(
            out,
            "### {}, {} tokens, {}{data}\n\nSeed {}, cache in {}, weights `{}`; {}.\n\n```sh",
            setting.model,
            setting.tokens,
            setting.protocol,
            setting.seed,
            setting.dtype,
            setting.weights,
            header.machine
        );
        let mut commands: Vec<String> = Vec::new();
        for run in results.headers.iter().filter(|run| run.id == header.id) {
            let words = run.command.iter().skip(1).map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
            if !commands.contains(&words) {
                commands.push(words);
            }
        }
        for command in &commands {
            let _ = writeln!(out, "fasa {command}");
        }
        let _ = writeln!(out, "```\n\n{}", table(&section.summaries));
    }
    out
}

fn table(summaries: &[Summary]) -> String {
    let (mut tasks, mut rows): (Vec<&str>, Vec<(&str, &str)>) = (Vec::new(), Vec::new());
    for summary in summaries {
        if !tasks.contains(&summary.task.as_str()) {
            tasks.push(&summary.task);
        }
        if !rows.contains(&(&summary.method, &summary.budget)) {
            rows.push((&summary.method, &summary.budget));
        }
    }
    let mut out = format!(
        "| method | budget | {} | bytes per step |\n|---|---|{}---|\n",
        tasks.join(" | "),
        "---|".repeat(tasks.len())
    );
    for (method, budget) in rows {
        let of_row = || summaries.iter().filter(|s| s.method == method && s.budget == budget);
        let cells = tasks.iter().map(|task| of_row().find(|s| s.task == *task).map_or_else(String::new, cell));
        let bytes: Vec<u64> = of_row().map(|s| s.cache_bytes_per_step).collect();
        let mean = bytes.iter().sum::<u64>() / bytes.len().max(1) as u64;
        let _ = writeln!(
            out,
            "| {method} | {budget} | {} | {} |",
            cells.collect::<Vec<_>>().join(" | "),
            report::bytes(mean)
        );
    }
    out
}

fn cell(summary: &Summary) -> String {
    let (score, error) = (summary.score, summary.standard_error);
    if is_likelihood(&summary.task) {
        return format!("{score:.2} ± {error:.2}");
    }
    let (mean, error) = (100.0 * score, 100.0 * error);
    format!("{mean:.0} ± {error:.0} ({})", summary.instances)
}
