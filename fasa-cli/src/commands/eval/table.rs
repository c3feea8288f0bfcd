//! What `fasa eval` prints for people.

use super::Report;
use crate::eval::summary::{Summary, is_agreement, is_likelihood};
use crate::report;
use anyhow::Result;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Columns that every line begins with.
struct Lead {
    task: usize,
    method: usize,
}

/// The table of a run; a second one by layer, where agreement was measured.
pub(super) fn of(result: &Report) -> Result<String> {
    let widest = |text: fn(&Summary) -> &str, least: usize| {
        result.results.iter().map(|s| text(s).chars().count()).max().unwrap_or(0).max(least)
    };
    let lead = Lead { task: widest(|s| &s.task, 8), method: widest(|s| &s.method, 14) };
    let (studied, scored): (Vec<&Summary>, Vec<&Summary>) = result.results.iter().partition(|s| is_agreement(&s.task));
    let mut parts = Vec::new();
    if !scored.is_empty() {
        parts.push(scores(result, &scored, &lead)?);
    }
    if !studied.is_empty() {
        parts.push(agreements(&studied, &lead)?);
        parts.push(by_layer(&studied, &lead)?);
    }
    Ok(parts.join("\n\n"))
}

fn scores(result: &Report, cells: &[&Summary], lead: &Lead) -> Result<String> {
    let mut out = String::new();
    let (task, method) = (lead.task, lead.method);
    let bytes = format!("{} bytes per step", result.dtype);
    let written = cells.iter().any(|cell| cell.is_written);
    let tokens = |text: &str| if written { format!("  {text:>7}") } else { String::new() };
    writeln!(
        out,
        "{:<task$} {:<method$} {:>6} {:>9} {:>13}  {:>8}  {bytes:>18}{}",
        "task",
        "method",
        "budget",
        "right",
        "score",
        "of dense",
        tokens("written")
    )?;
    for cell in cells {
        let (right, score, of_dense) = if is_likelihood(&cell.task) {
            (String::new(), format!("{:.2} ± {:.2}", cell.score, cell.standard_error), String::new())
        } else {
            let dense = cells.iter().find(|c| c.task == cell.task && c.setting == cell.setting && c.method == "dense");
            let (mean, error) = (100.0 * cell.score, 100.0 * cell.standard_error);
            (
                format!("{}/{}", cell.right, cell.instances),
                if cell.is_written {
                    format!("{mean:.1} ± {error:.1} %")
                } else {
                    format!("{mean:.0} ± {error:.0} %")
                },
                cell.share_of(dense.copied()).map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share)),
            )
        };
        let bytes = report::bytes(cell.cache_bytes_per_step);
        let length = if cell.is_written { format!("{:.0}", cell.answer_tokens) } else { String::new() };
        writeln!(
            out,
            "{:<task$} {:<method$} {:>6} {right:>9} {score:>13}  {of_dense:>8}  {bytes:>18}{}",
            cell.task,
            cell.method,
            cell.budget,
            tokens(&length)
        )?;
    }
    Ok(out.trim_end().to_owned())
}

fn agreements(cells: &[&Summary], lead: &Lead) -> Result<String> {
    let mut out = String::new();
    let (task, method) = (lead.task, lead.method);
    writeln!(
        out,
        "{:<task$} {:<method$} {:>6} {:>13} {:>11} {:>10} {:>10}",
        "task", "method", "budget", "attention", "best tokens", "chunks sum", "chunk alone"
    )?;
    for cell in cells {
        let mean = |of: fn(&crate::eval::agreement::LayerAgreement) -> Option<f64>| {
            let all: Vec<f64> = cell.layers.iter().filter_map(of).collect();
            if all.is_empty() { String::new() } else { percent(all.iter().sum::<f64>() / all.len() as f64) }
        };
        writeln!(
            out,
            "{:<task$} {:<method$} {:>6} {:>13} {:>11} {:>10} {:>11}",
            cell.task,
            cell.method,
            cell.budget,
            format!("{:.1} ± {:.1} %", 100.0 * cell.score, 100.0 * cell.standard_error),
            mean(|layer| Some(layer.tokens)),
            mean(|layer| layer.compound),
            mean(|layer| layer.single),
        )?;
    }
    Ok(out.trim_end().to_owned())
}

/// Attention that the chosen tokens have, layer by layer.
fn by_layer(cells: &[&Summary], lead: &Lead) -> Result<String> {
    let mut out = String::new();
    let (task, method) = (lead.task, lead.method);
    let layers: BTreeSet<usize> = cells.iter().flat_map(|cell| cell.layers.iter().map(|l| l.layer)).collect();
    write!(out, "{:<task$} {:<method$} {:>6}  attention by layer:", "task", "method", "budget")?;
    for layer in &layers {
        write!(out, " {layer:>6}")?;
    }
    writeln!(out)?;
    for cell in cells.iter().filter(|cell| !cell.layers.is_empty()) {
        write!(out, "{:<task$} {:<method$} {:>6}  {:19}", cell.task, cell.method, cell.budget, "")?;
        for layer in &layers {
            let found = cell.layers.iter().find(|l| l.layer == *layer);
            write!(out, " {:>6}", found.map_or_else(String::new, |l| format!("{:.1}", 100.0 * l.mass)))?;
        }
        writeln!(out)?;
    }
    Ok(out.trim_end().to_owned())
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
