//! Scores over budgets, bytes and chunks, a line per method.

use super::{Anchor, Drawing, Paint, Shape};

/// A line of a chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// The method.
    pub name: String,
    /// Its colour, the same in all charts of a picture.
    pub colour: usize,
    /// x and y, ascending in x. One point without a position on the axis (dense attention reads everything) is a level.
    pub points: Vec<(f64, f64)>,
    /// Whether it is a level across the whole chart.
    pub level: bool,
}

/// A chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What x is.
    pub x: String,
    /// Whether doubling x is one step.
    pub logarithmic: bool,
    /// Whether y is a share, shown from 0 to 100 %.
    pub share: bool,
    /// The lines.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 34.0;
const RIGHT: f64 = 16.0;
const BOTTOM: f64 = 42.0;

/// Charts in rows of up to `columns`, and what the colours mean.
pub fn draw(title: &str, charts: &[Chart], columns: usize) -> Drawing {
    let columns = columns.clamp(1, charts.len().max(1));
    let mut drawing = Drawing::new(title);
    let mut names: Vec<(usize, &str)> = Vec::new();
    for series in charts.iter().flat_map(|chart| &chart.series) {
        if !names.contains(&(series.colour, series.name.as_str())) {
            names.push((series.colour, &series.name));
        }
    }
    names.sort_unstable();
    let lines = charts.len().div_ceil(columns);
    drawing.width = columns as f64 * WIDTH;
    let mut y = 16.0;
    let mut x = 12.0;
    for (colour, name) in names {
        let wide = 40.0 + 6.6 * name.chars().count() as f64;
        if x + wide > drawing.width && x > 12.0 {
            (x, y) = (12.0, y + 18.0);
        }
        line(&mut drawing, vec![(x, y - 4.0), (x + 20.0, y - 4.0)], colour);
        mark(&mut drawing, (x + 10.0, y - 4.0), colour, None);
        drawing.text((x + 26.0, y), 11.0, Anchor::Start, Paint::Ink, name);
        x += wide;
    }
    let top = y + 10.0;
    drawing.height = top + lines as f64 * HEIGHT;
    for (i, chart) in charts.iter().enumerate() {
        chart.draw(&mut drawing, (i % columns) as f64 * WIDTH, top + (i / columns) as f64 * HEIGHT);
    }
    drawing
}

/// Beyond eight colours lines are broken.
fn line(drawing: &mut Drawing, points: Vec<(f64, f64)>, colour: usize) {
    drawing.line(points, Paint::Series(colour), 2.0, colour >= super::shades::SERIES.len());
}

fn mark(drawing: &mut Drawing, at: (f64, f64), colour: usize, title: Option<String>) {
    drawing.shapes.push(Shape::Dot { at, radius: 3.5, fill: Paint::Series(colour), title });
}

impl Chart {
    fn draw(&self, drawing: &mut Drawing, x: f64, y: f64) {
        let (left, right) = (x + LEFT, x + WIDTH - RIGHT);
        let (top, bottom) = (y + TOP, y + HEIGHT - BOTTOM);
        drawing.text((left, y + 20.0), 13.0, Anchor::Start, Paint::Ink, &*self.title);
        drawing.text(((left + right) / 2.0, bottom + 32.0), 11.0, Anchor::Middle, Paint::Ink, &*self.x);
        let (low, step, steps) = if self.share { (0.0, 0.25, 4) } else { scale(self.ends(|(_, y)| y, true)) };
        let high = low + step * f64::from(steps);
        let up = |value: f64| bottom - (value - low) / (high - low).max(1e-12) * (bottom - top);
        for i in 0..=steps {
            let value = low + step * f64::from(i);
            drawing.line(vec![(left, up(value)), (right, up(value))], Paint::Faint, 1.0, false);
            let label = if self.share { format!("{:.0} %", 100.0 * value) } else { rounded(value, step) };
            drawing.text((left - 6.0, up(value) + 4.0), 10.0, Anchor::End, Paint::Ink, label);
        }
        let place = |value: f64| if self.logarithmic { value.max(1e-9).log2() } else { value };
        let (first, last) = self.range(|(x, _)| place(x), false);
        let along = |value: f64| left + (place(value) - first) / (last - first).max(1e-12) * (right - left);
        let mut ticks: Vec<f64> =
            self.series.iter().filter(|s| !s.level).flat_map(|s| s.points.iter().map(|p| p.0)).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let mut free = f64::NEG_INFINITY;
        for tick in ticks {
            if along(tick) - free > 0.0 {
                drawing.line(vec![(along(tick), bottom), (along(tick), bottom + 4.0)], Paint::Ink, 1.0, false);
                drawing.text((along(tick), bottom + 16.0), 10.0, Anchor::Middle, Paint::Ink, number(tick));
                free = along(tick) + 34.0;
            }
        }
        drawing.line(vec![(left, bottom), (right, bottom)], Paint::Ink, 1.0, false);
        for series in &self.series {
            let title = |(x, y): (f64, f64)| {
                let y = if self.share { format!("{:.1} %", 100.0 * y) } else { format!("{y:.2}") };
                format!("{} at {}: {y}", series.name, number(x))
            };
            if series.level {
                let Some((_, value)) = series.points.first() else { continue };
                line(drawing, vec![(left, up(*value)), (right, up(*value))], series.colour);
                continue;
            }
            line(drawing, series.points.iter().map(|(x, y)| (along(*x), up(*y))).collect(), series.colour);
            for point in &series.points {
                mark(drawing, (along(point.0), up(point.1)), series.colour, Some(title(*point)));
            }
        }
    }

    /// The least and the greatest; nothing for nothing.
    fn ends(&self, of: impl Fn((f64, f64)) -> f64, levels: bool) -> Option<(f64, f64)> {
        let points = self.series.iter().filter(|s| levels || !s.level).flat_map(|s| &s.points);
        let all: Vec<f64> = points.map(|point| of(*point)).filter(|x| x.is_finite()).collect();
        let low = all.iter().copied().reduce(f64::min)?;
        Some((low, all.into_iter().fold(low, f64::max)))
    }

    /// The least and the greatest, with a little room around; around 1 if there is nothing.
    fn range(&self, of: impl Fn((f64, f64)) -> f64, levels: bool) -> (f64, f64) {
        let Some((low, high)) = self.ends(of, levels) else { return (0.0, 2.0) };
        let room = if high > low { 0.06 * (high - low) } else { low.abs().max(1.0) * 0.5 };
        (low - room, high + room)
    }
}

/// Where an axis begins, and steps of round numbers that hold everything between `ends`: three to six. It begins at 0 unless
/// what it shows lies far above.
fn scale(ends: Option<(f64, f64)>) -> (f64, f64, u32) {
    let (low, high) = ends.unwrap_or((0.0, 1.0));
    let low = if low >= 0.0 && low <= high / 2.0 { 0.0 } else { low };
    let span = if high > low { high - low } else { low.abs().max(1.0) };
    let magnitude = 10f64.powf((span / 5.0).log10().floor());
    let wanted = span / 5.0 / magnitude;
    let step = magnitude * [1.0, 2.0, 2.5, 5.0].into_iter().find(|round| *round >= wanted - 1e-9).unwrap_or(10.0);
    let first = (low / step + 1e-9).floor() * step;
    (first, step, ((low + span - first) / step - 1e-9).ceil() as u32)
}

/// A number on an axis with this step: no more digits than it needs.
fn rounded(value: f64, step: f64) -> String {
    let digits = (0..6).find(|digits| (step * 10f64.powi(*digits)).fract().abs() < 1e-6).unwrap_or(6);
    format!("{value:.*}", digits as usize)
}

/// A number on an axis: `64`, `2.7 MB` is written by the caller as 2.7.
fn number(x: f64) -> String {
    if x.fract() == 0.0 { format!("{x:.0}") } else { format!("{x:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        let series = |name: &str, colour, level| Series {
            name: name.into(),
            colour,
            points: if level { vec![(0.0, 1.0)] } else { vec![(64.0, 0.25), (128.0, 0.5), (256.0, 1.0)] },
            level,
        };
        Chart {
            title: "kv".into(),
            x: "budget".into(),
            logarithmic: true,
            share: true,
            series: vec![series("dense", 0, true), series("fasa", 1, false)],
        }
    }

    #[test]
    fn doubled_budgets_are_equally_far_apart() {
        let drawing = draw("scores", &[chart()], 3);
        let dots: Vec<(f64, f64)> = drawing
            .shapes
            .iter()
            .filter_map(|s| match s {
                Shape::Dot { at, title: Some(_), .. } => Some(*at),
                _ => None,
            })
            .collect();
        assert_eq!(dots.len(), 3);
        assert!((dots[1].0 - dots[0].0 - (dots[2].0 - dots[1].0)).abs() < 1e-9);
        // A quarter, a half and the whole of the height.
        assert!((dots[0].1 - dots[1].1 - (dots[1].1 - dots[2].1) / 2.0).abs() < 1e-9);
        assert!(dots.iter().all(|(x, y)| *x > 0.0 && *x < drawing.width && *y > 0.0 && *y < drawing.height));
    }

    #[test]
    fn nothing_to_show_is_no_failure() {
        let empty = Chart { series: Vec::new(), ..chart() };
        assert!(draw("", &[empty], 1).height > 0.0);
        assert!(draw("", &[], 1).height > 0.0);
    }

    #[test]
    fn axes_have_round_numbers() {
        for (low, high, want) in [
            (0.3, 570.0, (0.0, 200.0, 3)),
            (1.0, 24.8, (0.0, 5.0, 5)),
            (35.39, 46.04, (35.0, 2.5, 5)),
            (3.0, 3.0, (3.0, 1.0, 3)),
            (0.0, 0.04, (0.0, 0.01, 4)),
            (-3.0, 7.0, (-4.0, 2.0, 6)),
        ] {
            let (first, step, steps) = scale(Some((low, high)));
            assert!((first - want.0).abs() < 1e-9 && (step - want.1).abs() < 1e-9, "{low} to {high}: {first}, {step}");
            assert_eq!(steps, want.2, "{low} to {high}");
            assert!(first <= low && first + step * f64::from(steps) >= high, "{low} to {high}");
        }
        assert_eq!(scale(None).2, 5);
        assert_eq!([rounded(5.0, 5.0), rounded(7.5, 2.5), rounded(0.04, 0.01)], ["5", "7.5", "0.04"]);
    }
}
