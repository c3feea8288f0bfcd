//! Drawings as pixels.

use super::{Anchor, Drawing, Shape, shades};
use anyhow::{Result, ensure};
use embedded_graphics::mono_font::iso_8859_1::{FONT_7X13, FONT_9X18, FONT_10X20};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::{Circle, Line, PrimitiveStyle, Rectangle};
use embedded_graphics::text::{Alignment, Baseline, Text, TextStyleBuilder};
use miniz_oxide::deflate::compress_to_vec_zlib;
use std::convert::Infallible;

/// Pixels per pixel of the drawing, for sharp letters.
const SCALE: f64 = 2.0;
/// How hard to compress, 0 to 10.
const LEVEL: u8 = 8;
/// Pixels of a side, at most.
const MOST: f64 = 16_384.0;

struct Canvas {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(at, colour) in pixels {
            let (Ok(x), Ok(y)) = (u32::try_from(at.x), u32::try_from(at.y)) else { continue };
            if x < self.width && y < self.height {
                let start = 3 * (y as usize * self.width as usize + x as usize);
                self.pixels[start..start + 3].copy_from_slice(&[colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.width, self.height)
    }
}

/// The file, on light paper.
///
/// # Errors
/// If the drawing has no area or is very large.
pub fn bytes(drawing: &Drawing) -> Result<Vec<u8>> {
    let (width, height) = ((drawing.width * SCALE).ceil(), (drawing.height * SCALE).ceil());
    ensure!(
        width >= 1.0 && height >= 1.0 && width <= MOST && height <= MOST,
        "a picture of {width} by {height} pixels is not drawn as PNG; write it as `.svg`"
    );
    let (width, height) = (width as u32, height as u32);
    let paper = shades::light(super::Paint::Paper);
    let mut canvas = Canvas { width, height, pixels: paper.repeat(width as usize * height as usize) };
    for shape in &drawing.shapes {
        let drawn = match shape {
            Shape::Rect { at: [x, y, w, h], fill, .. } => {
                let (from, to) = (point(*x, *y), point(x + w, y + h));
                let size = Size::new((to.x - from.x).max(1) as u32, (to.y - from.y).max(1) as u32);
                let style = PrimitiveStyle::with_fill(colour(*fill));
                Rectangle::new(from, size).into_styled(style).draw(&mut canvas)
            }
            Shape::Line { points, stroke, width, dashed } => {
                let style = PrimitiveStyle::with_stroke(colour(*stroke), (width * SCALE).round().max(1.0) as u32);
                pieces(points, *dashed).into_iter().try_for_each(|(from, to)| {
                    Line::new(point(from.0, from.1), point(to.0, to.1)).into_styled(style).draw(&mut canvas)
                })
            }
            Shape::Dot { at: (x, y), radius, fill, .. } => {
                let diameter = (2.0 * radius * SCALE).round().max(1.0) as u32;
                let style = PrimitiveStyle::with_fill(colour(*fill));
                Circle::with_center(point(*x, *y), diameter).into_styled(style).draw(&mut canvas)
            }
            Shape::Text { at: (x, y), size, anchor, fill, text } => {
                let style = MonoTextStyle::new(font(*size), colour(*fill));
                let alignment = match anchor {
                    Anchor::Start => Alignment::Left,
                    Anchor::Middle => Alignment::Center,
                    Anchor::End => Alignment::Right,
                };
                let layout = TextStyleBuilder::new().alignment(alignment).baseline(Baseline::Alphabetic).build();
                Text::with_text_style(text, point(*x, *y), style, layout).draw(&mut canvas).map(drop)
            }
        };
        match drawn {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }
    Ok(file(width, height, &canvas.pixels))
}

/// A PNG file of rows of red, green and blue.
fn file(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    let row = 3 * width as usize;
    // Every row begins with how it was filtered: not at all.
    let rows: Vec<u8> = pixels.chunks_exact(row).flat_map(|row| [0].iter().chain(row)).copied().collect();
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, data) in [(b"IHDR", header), (b"IDAT", compress_to_vec_zlib(&rows, LEVEL)), (b"IEND", Vec::new())] {
        let body = [&name[..], &data].concat();
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(&body);
        out.extend(crc32fast::hash(&body).to_be_bytes());
    }
    out
}

fn point(x: f64, y: f64) -> Point {
    Point::new((x * SCALE).round() as i32, (y * SCALE).round() as i32)
}

fn colour(paint: super::Paint) -> Rgb888 {
    let [r, g, b] = shades::light(paint);
    Rgb888::new(r, g, b)
}

fn font(size: f64) -> &'static MonoFont<'static> {
    match size {
        s if s < 9.0 => &FONT_7X13,
        s if s < 12.0 => &FONT_9X18,
        _ => &FONT_10X20,
    }
}

type Piece = ((f64, f64), (f64, f64));

/// The straight pieces of a line; of a broken one the parts that are drawn.
fn pieces(points: &[(f64, f64)], dashed: bool) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for pair in points.windows(2) {
        let ((x, y), (to_x, to_y)) = (pair[0], pair[1]);
        let length = (to_x - x).hypot(to_y - y);
        if !dashed || length == 0.0 {
            pieces.push((pair[0], pair[1]));
            continue;
        }
        let at = |way: f64| (x + (to_x - x) * way / length, y + (to_y - y) * way / length);
        let mut way = 0.0;
        while way < length {
            pieces.push((at(way), at((way + 5.0).min(length))));
            way += 9.0;
        }
    }
    pieces
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Paint;
    use super::*;

    #[test]
    fn pixels_are_where_they_were_drawn() {
        let mut drawing = Drawing::new("");
        (drawing.width, drawing.height) = (20.0, 10.0);
        drawing.shapes.push(Shape::Rect { at: [5.0, 2.0, 3.0, 4.0], fill: Paint::Rgb(1, 2, 3), title: None });
        drawing.line(vec![(0.0, 9.0), (19.0, 9.0)], Paint::Rgb(9, 9, 9), 0.5, true);
        let bytes = bytes(&drawing).unwrap();
        assert_eq!(&bytes[8..24], b"\0\0\0\rIHDR\0\0\0\x28\0\0\0\x14");
        let start = bytes.windows(4).position(|w| w == b"IDAT").unwrap();
        let length = u32::from_be_bytes(bytes[start - 4..start].try_into().unwrap()) as usize;
        let rows = miniz_oxide::inflate::decompress_to_vec_zlib(&bytes[start + 4..start + 4 + length]).unwrap();
        let check = u32::from_be_bytes(bytes[start + 4 + length..][..4].try_into().unwrap());
        assert_eq!(check, crc32fast::hash(&bytes[start..start + 4 + length]));
        assert_eq!(rows.len(), 20 * (1 + 3 * 40));
        let pixels: Vec<u8> = rows.chunks_exact(121).flat_map(|row| &row[1..]).copied().collect();
        let at = |x: usize, y: usize| &pixels[3 * (y * 40 + x)..][..3];
        assert_eq!((at(10, 4), at(15, 11)), (&[1, 2, 3][..], &[1, 2, 3][..]));
        assert_eq!((at(9, 4), at(16, 11)), (&[255; 3][..], &[255; 3][..]));
        assert_eq!((at(2, 18), at(14, 18)), (&[9; 3][..], &[255; 3][..]));
        drawing.width = 1e6;
        assert!(super::bytes(&drawing).is_err());
    }
}
