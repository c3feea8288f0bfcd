//! Heat maps and curves of characters.

use super::curves::Chart;
use super::heatmap::Heatmap;
use super::shades;
use console::Style;
use std::fmt::Write;

/// From dark to bright where there are no colours.
const GREYS: &[u8] = b" .:-=+*#%@";

/// A row of characters per head, a character per chunk; coloured if `colours`.
pub fn heatmap(map: &Heatmap, colours: bool) -> String {
    let mut out = format!("{}: {} by chunk\n", map.what, map.row);
    for (layer, heads) in map.layers.iter().enumerate() {
        let _ = writeln!(out, "layer {layer}, 0 to {:.3}", map.top(layer));
        for (head, scores) in heads.iter().enumerate() {
            let _ = write!(out, "{head:>4} ");
            for score in scores {
                let part = map.part(layer, *score);
                if colours {
                    let [r, g, b] = shades::shade(part);
                    let _ = write!(out, "{}", Style::new().force_styling(true).true_color(r, g, b).apply_to("█"));
                } else {
                    let grey = (part * (GREYS.len() - 1) as f64).round() as usize;
                    out.push(char::from(GREYS[grey]));
                }
            }
            out.push('\n');
        }
    }
    out
}

const WIDTH: usize = 48;
const HEIGHT: usize = 11;

/// A chart of characters, a letter per line.
pub fn chart(chart: &Chart) -> String {
    let place = |x: f64| if chart.logarithmic { x.max(1e-9).log2() } else { x };
    let points = || chart.series.iter().filter(|s| !s.level).flat_map(|s| &s.points);
    let ends = |of: &dyn Fn(&(f64, f64)) -> f64| {
        let all = || points().map(of);
        (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max))
    };
    let (left, right) = ends(&|p| place(p.0));
    let levels = chart.series.iter().flat_map(|s| &s.points).map(|p| p.1);
    let (low, high) = match chart.share {
        true => (0.0, 1.0),
        false => levels.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y))),
    };
    let mut grid = vec![vec![' '; WIDTH]; HEIGHT];
    let part = |value: f64, low: f64, high: f64, size: usize| {
        let part = if high > low { (value - low) / (high - low) } else { 0.5 };
        (part.clamp(0.0, 1.0) * (size - 1) as f64).round() as usize
    };
    let letter = |i: usize| char::from(b'a' + (i % 26) as u8);
    for (i, series) in chart.series.iter().enumerate() {
        for (x, y) in &series.points {
            let row = HEIGHT - 1 - part(*y, low, high, HEIGHT);
            if series.level {
                grid[row].iter_mut().filter(|c| **c == ' ').for_each(|c| *c = '-');
            } else {
                grid[row][part(place(*x), left, right, WIDTH)] = letter(i);
            }
        }
    }
    let mut out = format!("{} over {}\n", chart.title, chart.x);
    for (row, line) in grid.iter().enumerate() {
        let value = high - (high - low) * row as f64 / (HEIGHT - 1) as f64;
        let label = if chart.share { format!("{:.0} %", 100.0 * value) } else { format!("{value:.1}") };
        let label = if row % 5 == 0 { label } else { String::new() };
        let _ = writeln!(out, "{label:>6} |{}", line.iter().collect::<String>().trim_end());
    }
    let mut xs: Vec<f64> = points().map(|p| p.0).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    let _ = writeln!(out, "       +{}", "-".repeat(WIDTH));
    let xs: Vec<String> = xs.iter().map(|x| format!("{x}")).collect();
    let _ = writeln!(out, "        {}", xs.join(" | "));
    for (i, series) in chart.series.iter().enumerate() {
        let mark = if series.level { '-' } else { letter(i) };
        let _ = writeln!(out, "        {mark} {}", series.name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::curves::Series;
    use super::*;

    #[test]
    fn greys_and_colours() {
        let map = Heatmap {
            what: "agreement".into(),
            row: "KV head".into(),
            layers: vec![vec![vec![0.0, 0.5, 1.0]]],
            shared: true,
        };
        assert!(heatmap(&map, false).ends_with("   0  +@\n"), "{}", heatmap(&map, false));
        assert!(heatmap(&map, true).contains("\u{1b}[38;2;253;231;37m█"), "{:?}", heatmap(&map, true));
    }

    #[test]
    fn points_are_in_their_row() {
        let series = |name: &str, points: &[(f64, f64)], level| Series {
            name: name.into(),
            colour: 0,
            points: points.to_vec(),
            level,
        };
        let chart_of = Chart {
            title: "kv".into(),
            x: "budget".into(),
            logarithmic: true,
            share: true,
            series: vec![series("dense", &[(0.0, 1.0)], true), series("fasa", &[(64.0, 0.0), (256.0, 1.0)], false)],
        };
        let text = chart(&chart_of);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], format!(" 100 % |{}b", "-".repeat(WIDTH - 1)));
        assert_eq!(lines[11], "   0 % |b");
        assert!(text.contains("- dense") && text.contains("b fasa") && text.contains("64 | 256"));
    }
}
