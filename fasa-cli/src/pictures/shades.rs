//! Colours of numbers and of lines.

use super::Paint;

/// Viridis at nine places: brightness rises evenly, and it reads the same without colour vision or in grey.
const VIRIDIS: [[f64; 3]; 9] = [
    [68.0, 1.0, 84.0],
    [71.0, 44.0, 122.0],
    [59.0, 81.0, 139.0],
    [44.0, 113.0, 142.0],
    [33.0, 144.0, 141.0],
    [39.0, 173.0, 129.0],
    [92.0, 200.0, 99.0],
    [170.0, 220.0, 50.0],
    [253.0, 231.0, 37.0],
];

/// The colour of a number from 0 to 1; others are drawn as the nearer of the two, no number as 0.
pub fn shade(value: f64) -> [u8; 3] {
    let place = (if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }) * (VIRIDIS.len() - 1) as f64;
    let (from, part) = (place as usize, place.fract());
    let to = (from + 1).min(VIRIDIS.len() - 1);
    std::array::from_fn(|c| (VIRIDIS[from][c] * (1.0 - part) + VIRIDIS[to][c] * part).round() as u8)
}

/// Colours of lines on light and on dark paper, told apart without colour vision (Okabe and Ito, darkened or lightened).
pub const SERIES: [([u8; 3], [u8; 3]); 8] = [
    ([0, 96, 160], [86, 180, 233]),
    ([200, 80, 0], [240, 150, 60]),
    ([0, 130, 96], [60, 200, 160]),
    ([170, 70, 130], [225, 150, 195]),
    ([140, 110, 0], [235, 200, 60]),
    ([70, 70, 160], [150, 150, 240]),
    ([160, 30, 30], [245, 120, 110]),
    ([90, 90, 90], [180, 180, 180]),
];

/// A colour on light paper.
pub fn light(paint: Paint) -> [u8; 3] {
    match paint {
        Paint::Paper => [255, 255, 255],
        Paint::Ink => [32, 35, 40],
        Paint::Faint => [208, 212, 218],
        Paint::Series(i) => SERIES[i % SERIES.len()].0,
        Paint::Rgb(r, g, b) => [r, g, b],
    }
}

/// A colour on dark paper.
pub fn dark(paint: Paint) -> [u8; 3] {
    match paint {
        Paint::Paper => [20, 22, 26],
        Paint::Ink => [226, 229, 234],
        Paint::Faint => [62, 66, 74],
        Paint::Series(i) => SERIES[i % SERIES.len()].1,
        Paint::Rgb(r, g, b) => [r, g, b],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades_get_brighter() {
        let brightness = |[r, g, b]: [u8; 3]| 0.2126 * f64::from(r) + 0.7152 * f64::from(g) + 0.0722 * f64::from(b);
        let all: Vec<f64> = (0..=100).map(|i| brightness(shade(f64::from(i) / 100.0))).collect();
        assert!(all.is_sorted(), "{all:?}");
        assert_eq!((shade(-1.0), shade(f64::NAN), shade(2.0)), (shade(0.0), shade(0.0), [253, 231, 37]));
    }
}
