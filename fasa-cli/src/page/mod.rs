//! Results as one page that needs nothing but itself: tables, curves, heat maps, and how they came about.

pub mod markdown;
mod tables;

use crate::eval::charts;
use crate::eval::record::{Header, Results};
use crate::eval::summary::{self, Summary};
use crate::pictures::curves;
use crate::pictures::heatmap::Heatmap;
use crate::pictures::svg::{self, escaped};
use std::collections::BTreeMap;

/// A profile whose scores are drawn.
#[derive(Debug, Clone)]
pub struct Profiled {
    /// Its file.
    pub name: String,
    /// What it is made of, in words.
    pub about: String,
    /// Its scores.
    pub map: Heatmap,
}

/// The page.
pub fn render(title: &str, results: &Results, profiles: &[Profiled]) -> String {
    let settings = settings(results);
    let mut body = format!("<h1>{}</h1>\n", escaped(title));
    body += "<p class=\"soft\">Made by <code>fasa report</code> from what <code>fasa eval</code> wrote.</p>\n";
    body += &about(results);
    let sections: Vec<Section<'_>> = settings.iter().map(|header| Section::new(results, header)).collect();
    body += "<nav>";
    for (i, section) in sections.iter().enumerate() {
        body += &format!("<a href=\"#s{i}\">{}</a>", escaped(&section.heading()));
    }
    for (i, profile) in profiles.iter().enumerate() {
        body += &format!("<a href=\"#p{i}\">{}</a>", escaped(&profile.name));
    }
    body += "</nav>\n";
    for (i, section) in sections.iter().enumerate() {
        body += &section.render(i);
    }
    for (i, profile) in profiles.iter().enumerate() {
        body += &format!(
            "<h2 id=\"p{i}\">{}</h2>\n<p class=\"soft\">{}</p>\n<div class=\"wide map\">{}</div>\n",
            escaped(&profile.name),
            escaped(&profile.about),
            svg::inline(&profile.map.draw(1))
        );
    }
    body += &commands(results);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n<style>\n{}{}\n</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escaped(title),
        include_str!("style.css"),
        svg::style()
    )
}

/// One header per setting that has results, in the order of the file.
fn settings(results: &Results) -> Vec<&Header> {
    let mut seen: Vec<&Header> = Vec::new();
    for header in &results.headers {
        let has_results = results.cells.values().any(|cell| cell.setting == header.id);
        if has_results && seen.iter().all(|known| known.id != header.id) {
            seen.push(header);
        }
    }
    seen
}

/// Models, machines and versions.
fn about(results: &Results) -> String {
    let all = |of: &dyn Fn(&Header) -> String| {
        let mut values: Vec<String> = Vec::new();
        for value in results.headers.iter().map(of) {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        escaped(&values.join("; "))
    };
    let model = |h: &Header| format!("{} in {}, weights {}", h.setting.model, h.setting.dtype, h.setting.weights);
    format!(
        "<dl><dt>model</dt><dd>{}</dd><dt>machine</dt><dd>{}</dd><dt>fasa</dt><dd>{}</dd></dl>\n",
        all(&model),
        all(&|h| h.machine.clone()),
        all(&|h| h.version.clone())
    )
}

/// The commands, each once.
fn commands(results: &Results) -> String {
    let mut commands: Vec<String> = Vec::new();
    for header in &results.headers {
        let command = header.command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        if !commands.contains(&command) {
            commands.push(command);
        }
    }
    let blocks: String = commands.iter().map(|command| format!("<pre>{}</pre>\n", escaped(command))).collect();
    format!("<h2>Commands</h2>\n{blocks}")
}

/// A word as a shell reads it back; the program by its name.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=%+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// What was asked under one setting.
struct Section<'a> {
    header: &'a Header,
    summaries: Vec<Summary>,
}

impl<'a> Section<'a> {
    fn new(results: &'a Results, header: &'a Header) -> Self {
        let mut summaries = summary::summarize(results, |cell| cell.setting == header.id);
        // One label, several profiles: their names tell them apart.
        let mut profiles: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
        for summary in &summaries {
            let seen = profiles.entry(summary.method.clone()).or_default();
            if !seen.contains(&summary.profile) {
                seen.push(summary.profile.clone());
            }
        }
        for summary in summaries.iter_mut().filter(|s| profiles[&s.method].len() > 1) {
            summary.method += &format!(" [{}]", summary.profile.as_deref().unwrap_or("no profile"));
        }
        // Dense first, then the best of each task.
        let mut best: BTreeMap<String, f64> = BTreeMap::new();
        for summary in &summaries {
            let sign = if summary::is_likelihood(&summary.task) { 1.0 } else { -1.0 };
            *best.entry(summary.method.clone()).or_default() += sign * summary.score;
        }
        let rank = |s: &Summary| (s.method != "dense", best.get(&s.method).copied().unwrap_or_default());
        summaries.sort_by(|a, b| {
            let by_rank = rank(a).0.cmp(&rank(b).0).then(rank(a).1.total_cmp(&rank(b).1));
            let budgets = summary::budget_order(&a.budget).1.total_cmp(&summary::budget_order(&b.budget).1);
            let kind = |s: &Summary| summary::is_agreement(&s.task);
            kind(a).cmp(&kind(b)).then(a.task.cmp(&b.task)).then(by_rank).then(a.method.cmp(&b.method)).then(budgets)
        });
        Self { header, summaries }
    }

    fn heading(&self) -> String {
        let setting = &self.header.setting;
        let mut tasks: Vec<&str> = self.summaries.iter().map(|s| s.task.as_str()).collect();
        tasks.dedup();
        let tasks = if tasks.len() > 4 { format!("{} tasks", tasks.len()) } else { tasks.join(", ") };
        format!("{}: {tasks}, {} tokens", setting.model, setting.tokens)
    }

    fn render(&self, number: usize) -> String {
        let setting = &self.header.setting;
        let mut about = format!("{}, seed {}, cache in {}", setting.protocol, setting.seed, setting.dtype);
        if !setting.data.is_empty() {
            about += &format!("; {}", setting.data);
        }
        let mut out = format!(
            "<h2 id=\"s{number}\">{}</h2>\n<p class=\"soft\">{}</p>\n",
            escaped(&self.heading()),
            escaped(&about)
        );
        let charts = charts::of(&self.summaries, &|_, task| task.to_owned());
        let tasks: Vec<&[Summary]> = self.summaries.chunk_by(|a, b| a.task == b.task).collect();
        for (of_task, charts) in tasks.into_iter().zip(charts) {
            out += &format!("<h3>{}</h3>\n", escaped(&of_task[0].task));
            out += &tables::scores(of_task);
            out += &tables::by_layer(of_task);
            out += "<div class=\"charts\">\n";
            for chart in &charts {
                let title = format!("{} over {}", chart.title, chart.x);
                out += &svg::inline(&curves::draw(&title, std::slice::from_ref(chart), 1));
            }
            out += "</div>\n";
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_command_come_back_from_a_shell() {
        for (word, want) in [
            ("--budget", "--budget"),
            ("a b", "'a b'"),
            ("it's", "'it'\\''s'"),
            ("", "''"),
            ("64,3%", "64,3%"),
            ("$x", "'$x'"),
        ] {
            assert_eq!(quoted(word), want);
        }
    }
}
