//! Summaries as charts: score over budget, over bytes per step, and over the number of chunks.

use super::summary::{Summary, is_likelihood};
use crate::pictures::curves::{Chart, Series};

/// The charts of every task, in the order of the summaries. `name` makes a title of setting and task.
pub fn of(summaries: &[Summary], name: &dyn Fn(&str, &str) -> String) -> Vec<Vec<Chart>> {
    let mut tasks: Vec<(&str, &str)> = Vec::new();
    let mut methods: Vec<&str> = Vec::new();
    for summary in summaries {
        if !tasks.contains(&(&summary.setting, &summary.task)) {
            tasks.push((&summary.setting, &summary.task));
        }
        if !methods.contains(&summary.method.as_str()) {
            methods.push(&summary.method);
        }
    }
    let families = families(summaries);
    let charts = tasks.into_iter().map(|(setting, task)| {
        let cells: Vec<&Summary> = summaries.iter().filter(|s| s.setting == setting && s.task == task).collect();
        let title = name(setting, task);
        let chart = |x: &str, logarithmic, series| Chart {
            title: title.clone(),
            x: x.into(),
            logarithmic,
            share: !is_likelihood(task),
            series,
        };
        let by_budget = lines(&cells, &methods, |cell| cell.budget.trim_end_matches('%').parse().ok());
        let by_bytes = lines(&cells, &methods, |cell| Some(cell.cache_bytes_per_step as f64 / 1e6));
        let shares = cells.iter().any(|cell| cell.budget.ends_with('%'));
        let budget = if shares { "budget (% of the context)" } else { "budget (tokens per step)" };
        let mut charts = vec![chart("cache bytes per step (MB)", true, by_bytes)];
        // One budget is no axis.
        if by_budget.iter().any(|series| series.points.len() > 1) {
            charts.insert(0, chart(budget, true, by_budget));
        }
        let by_chunks: Vec<Series> = families
            .iter()
            .enumerate()
            .map(|(i, (family, budget))| {
                let of_family = cells.iter().filter(|c| &c.budget == budget);
                let points = of_family.filter_map(|cell| {
                    let (chunks, name) = cell.chunks.as_ref()?;
                    (name == family).then_some((*chunks as f64, cell.score))
                });
                let name = format!("{family}, budget {budget}");
                Series { name, colour: methods.len() + i, points: sorted(points.collect()), level: false }
            })
            .filter(|series| series.points.len() > 1)
            .collect();
        if !by_chunks.is_empty() {
            charts.push(chart("chunks (F)", false, by_chunks));
        }
        charts
    });
    charts.collect()
}

/// A line per method; methods without a place on the axis are levels.
fn lines(cells: &[&Summary], methods: &[&str], x: impl Fn(&Summary) -> Option<f64>) -> Vec<Series> {
    let line = |(colour, method): (usize, &&str)| {
        let of_method: Vec<&&Summary> = cells.iter().filter(|c| c.method == **method).collect();
        let points: Vec<(f64, f64)> = of_method.iter().filter_map(|cell| Some((x(cell)?, cell.score))).collect();
        let level = points.is_empty();
        let points = if level { of_method.iter().map(|cell| (0.0, cell.score)).collect() } else { sorted(points) };
        Series { name: (*method).to_owned(), colour, points, level }
    };
    methods.iter().enumerate().map(line).filter(|series| !series.points.is_empty()).collect()
}

fn sorted(mut points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// Methods that were run with more than one number of chunks, with their budgets.
fn families(summaries: &[Summary]) -> Vec<(String, String)> {
    let mut counts: Vec<((String, String), Vec<usize>)> = Vec::new();
    for summary in summaries {
        let Some((chunks, family)) = &summary.chunks else { continue };
        let key = (family.clone(), summary.budget.clone());
        match counts.iter_mut().find(|(known, _)| *known == key) {
            Some((_, seen)) => seen.push(*chunks),
            None => counts.push((key, vec![*chunks])),
        }
    }
    counts.retain(|(_, seen)| seen.iter().any(|n| *n != seen[0]));
    counts.into_iter().map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(method: &str, chunks: Option<usize>, budget: &str, score: f64) -> Summary {
        Summary {
            setting: "s".into(),
            task: "kv".into(),
            method: method.into(),
            profile: None,
            chunks: chunks.map(|n| (n, "fasa".into())),
            budget: budget.into(),
            instances: 1,
            right: 0,
            right_of_dense: 0,
            score,
            standard_error: 0.0,
            cache_bytes_per_step: 2_000_000,
            answer_tokens: 1.0,
            is_written: false,
            outcomes: Vec::new(),
            layers: Vec::new(),
        }
    }

    #[test]
    fn a_line_per_method_and_per_family() {
        let all = [
            summary("dense", None, "", 1.0),
            summary("fasa 8", Some(8), "64", 0.5),
            summary("fasa 8", Some(8), "32", 0.25),
            summary("fasa 4", Some(4), "64", 0.125),
        ];
        let charts = of(&all, &|_, task| task.into());
        assert_eq!(charts.len(), 1);
        let [budget, bytes, chunks] = charts[0].as_slice() else { panic!("three charts: {charts:?}") };
        assert!(budget.series[0].level && budget.series[0].points == [(0.0, 1.0)]);
        assert_eq!(budget.series[1].points, [(32.0, 0.25), (64.0, 0.5)]);
        assert_eq!(bytes.series[0].points, [(2.0, 1.0)]);
        assert_eq!(chunks.series.len(), 1);
        assert_eq!(chunks.series[0].points, [(4.0, 0.125), (8.0, 0.5)]);
    }
}
