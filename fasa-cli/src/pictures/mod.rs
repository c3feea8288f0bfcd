//! Pictures of results, drawn once and written as SVG, PNG or on the terminal.
//!
//! | module | what it holds |
//! |---|---|
//! | [`heatmap`] | heads by chunks, a panel per layer |
//! | [`curves`] | scores over budgets, bytes and chunks, a line per method |
//! | [`shades`] | colours of numbers |
//! | [`svg`], [`png`](mod@png) | the same drawing as text or pixels |
//! | [`terminal`] | heat maps and curves of characters |

pub mod curves;
pub mod heatmap;
pub mod png;
pub mod shades;
pub mod svg;
pub mod terminal;

use anyhow::{Context, Result, bail};
use std::path::Path;

/// A colour. Those with a name follow the reader's light or dark setting where the format can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// Behind everything.
    Paper,
    /// Text and frames.
    Ink,
    /// What should not be noticed first.
    Faint,
    /// One of the colours that tell lines apart.
    Series(usize),
    /// A colour of its own.
    Rgb(u8, u8, u8),
}

/// Which end of a text is at its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// It begins there.
    Start,
    /// It is centred there.
    Middle,
    /// It ends there.
    End,
}

/// A part of a drawing, in pixels from the top left.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// A filled rectangle: left, top, width, height; with a text that shows on hovering.
    Rect {
        /// Left, top, width, height.
        at: [f64; 4],
        /// Its colour.
        fill: Paint,
        /// Shows on hovering.
        title: Option<String>,
    },
    /// Straight lines from point to point.
    Line {
        /// The points.
        points: Vec<(f64, f64)>,
        /// Its colour.
        stroke: Paint,
        /// Its width.
        width: f64,
        /// Whether it is broken.
        dashed: bool,
    },
    /// A filled circle.
    Dot {
        /// Its centre.
        at: (f64, f64),
        /// Its radius.
        radius: f64,
        /// Its colour.
        fill: Paint,
        /// Shows on hovering.
        title: Option<String>,
    },
    /// A line of text; `at` is on its base line.
    Text {
        /// Where.
        at: (f64, f64),
        /// Height of its letters' box.
        size: f64,
        /// Which end is there.
        anchor: Anchor,
        /// Its colour.
        fill: Paint,
        /// The text.
        text: String,
    },
}

/// A picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawing {
    /// Width in pixels.
    pub width: f64,
    /// Height in pixels.
    pub height: f64,
    /// What it shows, for those who cannot see it.
    pub title: String,
    /// Its parts, from back to front.
    pub shapes: Vec<Shape>,
}

impl Drawing {
    /// An empty one.
    pub fn new(title: impl Into<String>) -> Self {
        Self { width: 0.0, height: 0.0, title: title.into(), shapes: Vec::new() }
    }

    fn text(&mut self, at: (f64, f64), size: f64, anchor: Anchor, fill: Paint, text: impl Into<String>) {
        self.shapes.push(Shape::Text { at, size, anchor, fill, text: text.into() });
    }

    fn line(&mut self, points: Vec<(f64, f64)>, stroke: Paint, width: f64, dashed: bool) {
        self.shapes.push(Shape::Line { points, stroke, width, dashed });
    }

    /// Writes it as the file's name asks: `.svg` or `.png`.
    ///
    /// # Errors
    /// For another name, or if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes = match extension(path)? {
            Extension::Svg => svg::standalone(self).into_bytes(),
            Extension::Png => png::bytes(self)?,
        };
        std::fs::write(path, bytes).with_context(|| format!("cannot write the picture `{}`", path.display()))
    }
}

/// Formats of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// Vectors.
    Svg,
    /// Pixels.
    Png,
}

/// The format that a file's name asks for.
///
/// # Errors
/// For another name than `.svg` or `.png`.
pub fn extension(path: &Path) -> Result<Extension> {
    match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("svg") => Ok(Extension::Svg),
        Some("png") => Ok(Extension::Png),
        _ => bail!("`{}` is neither `.svg` nor `.png`; the picture's format follows from its name", path.display()),
    }
}

/// A picture's name on the command line.
///
/// # Errors
/// As [`extension`].
pub fn parse_path(text: &str) -> Result<std::path::PathBuf> {
    extension(Path::new(text))?;
    Ok(text.into())
}
