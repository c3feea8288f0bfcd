//! Heads by chunks, a panel per layer.

use super::{Anchor, Drawing, Paint, Shape, shades};
use fasa_core::config::Scope;
use fasa_core::criterion::CriterionKind;
use fasa_core::profile::ProfileView;

/// Scores of all chunks of all heads.
#[derive(Debug, Clone, PartialEq)]
pub struct Heatmap {
    /// What the scores are.
    pub what: String,
    /// What a row is.
    pub row: String,
    /// Per layer, row and chunk.
    pub layers: Vec<Vec<Vec<f64>>>,
    /// Whether layers share a scale: agreements are shares, margins grow with a layer's keys.
    pub shared: bool,
}

impl Heatmap {
    /// Of a profile.
    pub fn of(view: &ProfileView<'_>) -> Self {
        let rows = |layer| {
            let row = |row| {
                let mut scores = vec![0.0; view.ranking(layer, row).len()];
                for (chunk, score) in view.ranking(layer, row).zip(view.scores(layer, row)) {
                    scores[usize::from(chunk)] = f64::from(score);
                }
                scores
            };
            (0..view.rows()).map(row).collect()
        };
        let what = match view.criterion() {
            CriterionKind::Agreement => format!("contextual agreement, K = {}", view.agreement_k()),
            CriterionKind::Margin => "attention margin".into(),
            other => format!("{} score", other.name()),
        };
        Self {
            what,
            row: if view.scope() == Scope::KvHead { "KV head".into() } else { "query head".into() },
            layers: (0..view.model().layers as usize).map(rows).collect(),
            shared: view.criterion() != CriterionKind::Margin,
        }
    }

    /// The largest score of a layer, or of all where they share a scale.
    pub fn top(&self, layer: usize) -> f64 {
        let most = |rows: &[Vec<f64>]| rows.iter().flatten().copied().fold(0.0, f64::max);
        if self.shared {
            self.layers.iter().map(|rows| most(rows)).fold(0.0, f64::max)
        } else {
            most(&self.layers[layer])
        }
    }

    /// A score as a part of its scale.
    pub fn part(&self, layer: usize, score: f64) -> f64 {
        let top = self.top(layer);
        if top > 0.0 { (score / top).clamp(0.0, 1.0) } else { 0.0 }
    }

    /// The picture, its panels in at most `columns` columns.
    pub fn draw(&self, columns: usize) -> Drawing {
        const MARGIN: f64 = 14.0;
        const LEFT: f64 = 46.0;
        const HEAD: f64 = 22.0;
        const GAP: f64 = 26.0;
        let rows = self.layers.iter().map(Vec::len).max().unwrap_or(0);
        let chunks = self.layers.iter().flatten().map(Vec::len).max().unwrap_or(0);
        let cell = (10.0, if rows > 16 { 7.0 } else { 12.0 });
        let columns = if chunks > 40 { 1 } else { columns.clamp(1, self.layers.len().max(1)) };
        let panel = (LEFT + chunks as f64 * cell.0, HEAD + rows as f64 * cell.1 + 16.0);
        let mut drawing = Drawing::new(format!("{} of every head and chunk", self.what));
        drawing.width = 2.0 * MARGIN + columns as f64 * panel.0 + (columns - 1) as f64 * GAP;
        let lines = self.layers.len().div_ceil(columns);
        drawing.height = 2.0 * MARGIN + 58.0 + lines as f64 * (panel.1 + 8.0);
        let heading = format!("{}: {} by chunk, one panel per layer", self.what, self.row);
        drawing.text((MARGIN, MARGIN + 12.0), 14.0, Anchor::Start, Paint::Ink, heading);
        self.legend(&mut drawing, MARGIN, MARGIN + 26.0);
        for (layer, heads) in self.layers.iter().enumerate() {
            let x = MARGIN + (layer % columns) as f64 * (panel.0 + GAP) + LEFT;
            let y = MARGIN + 58.0 + (layer / columns) as f64 * (panel.1 + 8.0) + HEAD;
            let title = if self.shared {
                format!("layer {layer}")
            } else {
                format!("layer {layer}, up to {:.3}", self.top(layer))
            };
            drawing.text((x, y - 6.0), 11.0, Anchor::Start, Paint::Ink, title);
            for (head, scores) in heads.iter().enumerate() {
                let top = y + head as f64 * cell.1;
                if heads.len() <= 16 || head % 4 == 0 {
                    drawing.text((x - 5.0, top + cell.1 - 2.5), 9.0, Anchor::End, Paint::Ink, format!("{head}"));
                }
                for (chunk, score) in scores.iter().enumerate() {
                    let [r, g, b] = shades::shade(self.part(layer, *score));
                    drawing.shapes.push(Shape::Rect {
                        at: [x + chunk as f64 * cell.0, top, cell.0, cell.1],
                        fill: Paint::Rgb(r, g, b),
                        title: Some(format!("layer {layer}, {} {head}, chunk {chunk}: {score:.3}", self.row)),
                    });
                }
            }
            let bottom = y + heads.len() as f64 * cell.1 + 11.0;
            for chunk in (0..chunks).step_by(8) {
                let at = (x + (chunk as f64 + 0.5) * cell.0, bottom);
                drawing.text(at, 9.0, Anchor::Middle, Paint::Ink, format!("{chunk}"));
            }
        }
        drawing
    }

    fn legend(&self, drawing: &mut Drawing, x: f64, y: f64) {
        const STEPS: usize = 40;
        for step in 0..STEPS {
            let [r, g, b] = shades::shade(step as f64 / (STEPS - 1) as f64);
            let fill = Paint::Rgb(r, g, b);
            drawing.shapes.push(Shape::Rect { at: [x + 3.0 * step as f64, y, 3.0, 10.0], fill, title: None });
        }
        let ends = match self.shared {
            true => format!("0 to {:.2}; chunk 0 turns fastest", self.top(0)),
            false => "0 to the layer's largest; chunk 0 turns fastest".into(),
        };
        drawing.text((x + 3.0 * STEPS as f64 + 8.0, y + 9.0), 10.0, Anchor::Start, Paint::Ink, ends);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_score_has_its_place_and_colour() {
        let view = ProfileView::parse(include_bytes!("../../../fixtures/nano/fasa-paper.profile")).unwrap();
        let map = Heatmap::of(&view);
        assert_eq!((map.layers.len(), map.layers[0].len(), map.layers[0][0].len()), (6, 4, 32));
        assert!(map.shared && map.row == "query head" && map.what == "contextual agreement, K = 256");
        let best = usize::from(view.ranking(2, 1).next().unwrap());
        assert_eq!(map.layers[2][1][best], f64::from(view.scores(2, 1).next().unwrap()));
        let drawing = map.draw(2);
        let cells = drawing.shapes.iter().filter(|s| matches!(s, Shape::Rect { title: Some(_), .. })).count();
        assert_eq!(cells, 6 * 4 * 32);
        for shape in &drawing.shapes {
            if let Shape::Rect { at: [x, y, w, h], .. } = shape {
                assert!(*x >= 0.0 && *y >= 0.0 && x + w <= drawing.width && y + h <= drawing.height);
            }
        }
        let margins = ProfileView::parse(include_bytes!("../../../fixtures/nano/fasa-default.profile")).unwrap();
        let map = Heatmap::of(&margins);
        assert!(!map.shared && map.layers[0].len() == 2);
        assert_eq!(map.part(3, map.top(3)), 1.0);
        assert_eq!(map.part(3, -1.0), 0.0);
    }
}
