//! The tables of the page.

use crate::eval::summary::{Summary, is_agreement, is_likelihood};
use crate::pictures::shades::shade;
use crate::pictures::svg::escaped;
use crate::report;
use std::collections::BTreeSet;

/// Scores of one task. What is within one standard error of the best is bold, dense attention aside.
pub(super) fn scores(cells: &[Summary]) -> String {
    let task = &cells[0].task;
    let (likelihood, agreement) = (is_likelihood(task), is_agreement(task));
    let written = cells.iter().any(|cell| cell.is_written);
    let mut heads = vec!["method", "budget", if likelihood { "perplexity" } else { "score" }];
    if agreement {
        heads.extend(["best tokens", "chunks' sum", "chunk alone"]);
    } else if !likelihood {
        heads.push("right");
    }
    if written {
        heads.push("written");
    }
    heads.push("bytes/step");
    let others = || cells.iter().filter(|cell| cell.method != "dense");
    let best = match likelihood {
        true => others().map(|cell| cell.score).fold(f64::INFINITY, f64::min),
        false => others().map(|cell| cell.score).fold(f64::NEG_INFINITY, f64::max),
    };
    let mut rows = String::new();
    for cell in cells {
        let is_best = cell.method != "dense" && (cell.score - best).abs() <= cell.standard_error.max(1e-12);
        let class = if is_best { " class=\"best\"" } else { "" };
        let score = if likelihood {
            format!("{:.2} ± {:.2}", cell.score, cell.standard_error)
        } else {
            let (mean, error) = (100.0 * cell.score, 100.0 * cell.standard_error);
            format!(
                "{mean:.1} ± {error:.1} %<span class=\"bar\"><i style=\"width:{:.1}%\"></i></span>",
                mean.clamp(0.0, 100.0)
            )
        };
        let mut columns = vec![escaped(&cell.method), escaped(&cell.budget)];
        columns.push(score);
        if agreement {
            let mean = |of: fn(&crate::eval::agreement::LayerAgreement) -> Option<f64>| {
                let all: Vec<f64> = cell.layers.iter().filter_map(of).collect();
                match all.is_empty() {
                    true => String::new(),
                    false => format!("{:.1} %", 100.0 * all.iter().sum::<f64>() / all.len() as f64),
                }
            };
            columns.extend([mean(|l| Some(l.tokens)), mean(|l| l.compound), mean(|l| l.single)]);
        } else if !likelihood {
            columns.push(format!("{}/{}", cell.right, cell.instances));
        }
        if written {
            columns.push(format!("{:.0} tokens", cell.answer_tokens));
        }
        columns.push(report::bytes(cell.cache_bytes_per_step));
        rows += "<tr>";
        for (i, column) in columns.iter().enumerate() {
            rows += &format!("<td{}>{column}</td>", if i == 2 { class } else { "" });
        }
        rows += "</tr>\n";
    }
    table(&heads.iter().map(|head| (*head).to_owned()).collect::<Vec<_>>(), &rows)
}

/// Attention on the chosen tokens, layer by layer; nothing where it was not measured.
pub(super) fn by_layer(cells: &[Summary]) -> String {
    let layers: BTreeSet<usize> = cells.iter().flat_map(|cell| cell.layers.iter().map(|l| l.layer)).collect();
    if layers.is_empty() {
        return String::new();
    }
    let mut heads = vec!["attention kept, by layer".to_owned(), "budget".to_owned()];
    heads.extend(layers.iter().map(|layer| format!("{layer}")));
    let mut rows = String::new();
    for cell in cells.iter().filter(|cell| !cell.layers.is_empty()) {
        rows += &format!("<tr><td>{}</td><td>{}</td>", escaped(&cell.method), escaped(&cell.budget));
        for layer in &layers {
            rows += &match cell.layers.iter().find(|l| l.layer == *layer) {
                Some(found) => {
                    let [r, g, b] = shade(found.mass);
                    // Dark letters on bright cells and the other way round.
                    let ink = if found.mass > 0.55 { "#111" } else { "#fff" };
                    format!("<td style=\"background:rgb({r},{g},{b});color:{ink}\">{:.0}</td>", 100.0 * found.mass)
                }
                None => "<td></td>".into(),
            };
        }
        rows += "</tr>\n";
    }
    table(&heads, &rows)
}

fn table(heads: &[String], rows: &str) -> String {
    let heads: String = heads.iter().map(|head| format!("<th>{}</th>", escaped(head))).collect();
    format!("<div class=\"wide\"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n")
}
