//! Drawings as SVG.

use super::{Anchor, Drawing, Paint, Shape, shades};
use std::fmt::Write;

/// Style rules of the colours with a name, for light and dark.
pub fn style() -> String {
    let rules = |colour: fn(Paint) -> [u8; 3]| {
        let named = [("paper", Paint::Paper), ("ink", Paint::Ink), ("faint", Paint::Faint)].map(|(n, p)| (n.into(), p));
        let series = (0..shades::SERIES.len()).map(|i| (format!("s{i}"), Paint::Series(i)));
        named.into_iter().chain(series).fold(String::new(), |mut out, (name, paint)| {
            let colour = hex(colour(paint));
            let _ = write!(out, ".f-{name}{{fill:{colour}}}.l-{name}{{stroke:{colour}}}");
            out
        })
    };
    format!("{}@media (prefers-color-scheme:dark){{{}}}", rules(shades::light), rules(shades::dark))
}

/// A file of its own.
pub fn standalone(drawing: &Drawing) -> String {
    let paper = format!(r#"<rect width="100%" height="100%"{}/>"#, painted("fill", 'f', Paint::Paper));
    body(drawing, &format!("<style>{}</style>{paper}", style()))
}

/// A part of a page that has [`style`] among its rules.
pub fn inline(drawing: &Drawing) -> String {
    body(drawing, "")
}

fn body(drawing: &Drawing, head: &str) -> String {
    let (width, height) = (drawing.width, drawing.height);
    let mut out = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" font-family="system-ui, sans-serif"><title>{}</title>{head}"#,
        escaped(&drawing.title)
    );
    out.push('\n');
    for shape in &drawing.shapes {
        // A string takes everything that is written to it.
        let _ = match shape {
            Shape::Rect { at: [x, y, w, h], fill, title } => {
                let title = titled(title.as_deref());
                writeln!(
                    out,
                    r#"<rect x="{}" y="{}" width="{}" height="{}"{}>{title}</rect>"#,
                    short(*x),
                    short(*y),
                    short(*w),
                    short(*h),
                    painted("fill", 'f', *fill)
                )
            }
            Shape::Line { points, stroke, width, dashed } => {
                let points: Vec<String> = points.iter().map(|(x, y)| format!("{},{}", short(*x), short(*y))).collect();
                let dashes = if *dashed { r#" stroke-dasharray="5 4""# } else { "" };
                writeln!(
                    out,
                    r#"<polyline points="{}" fill="none" stroke-width="{width}" stroke-linejoin="round"{dashes}{}/>"#,
                    points.join(" "),
                    painted("stroke", 'l', *stroke)
                )
            }
            Shape::Dot { at: (x, y), radius, fill, title } => {
                let title = titled(title.as_deref());
                writeln!(
                    out,
                    r#"<circle cx="{}" cy="{}" r="{radius}"{}>{title}</circle>"#,
                    short(*x),
                    short(*y),
                    painted("fill", 'f', *fill)
                )
            }
            Shape::Text { at: (x, y), size, anchor, fill, text } => {
                let anchor = match anchor {
                    Anchor::Start => "start",
                    Anchor::Middle => "middle",
                    Anchor::End => "end",
                };
                writeln!(
                    out,
                    r#"<text x="{}" y="{}" font-size="{size}" text-anchor="{anchor}"{}>{}</text>"#,
                    short(*x),
                    short(*y),
                    painted("fill", 'f', *fill),
                    escaped(text)
                )
            }
        };
    }
    out + "</svg>\n"
}

/// A colour as attribute, and as class where the reader's setting decides.
fn painted(attribute: &str, prefix: char, paint: Paint) -> String {
    let class = match paint {
        Paint::Paper => "paper".into(),
        Paint::Ink => "ink".into(),
        Paint::Faint => "faint".into(),
        Paint::Series(i) => format!("s{}", i % shades::SERIES.len()),
        Paint::Rgb(..) => return format!(r#" {attribute}="{}""#, hex(shades::light(paint))),
    };
    format!(r#" {attribute}="{}" class="{prefix}-{class}""#, hex(shades::light(paint)))
}

fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

fn titled(title: Option<&str>) -> String {
    title.map_or_else(String::new, |title| format!("<title>{}</title>", escaped(title)))
}

/// Two digits are finer than any screen.
fn short(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}

/// Text as it may stand between tags and in attributes.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_marked_up() {
        let mut drawing = Drawing::new("a < b");
        drawing.text((1.0, 2.123), 12.0, Anchor::End, Paint::Ink, "\"x\" & y");
        let fill = Paint::Series(9);
        drawing.shapes.push(Shape::Dot { at: (0.0, 0.0), radius: 2.0, fill, title: Some("<1>".into()) });
        let text = standalone(&drawing);
        for part in
            ["<title>a &lt; b</title>", "&quot;x&quot; &amp; y", r#"y="2.12""#, "f-s1", "<title>&lt;1&gt;</title>"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("prefers-color-scheme:dark") && !inline(&drawing).contains("<style>"));
    }
}
