//! Where in the context the asked fact may lie.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

/// A part of the context as fractions of its tokens: 0 is its first token, 1 its end. The asked fact lies wholly
/// inside it, as far as sentence boundaries allow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Depth {
    low: f64,
    high: f64,
}

impl Depth {
    /// The whole context, evenly.
    pub const ANYWHERE: Self = Self { low: 0.0, high: 1.0 };

    /// The older half of the context, which no window over recent tokens can reach.
    pub const FIRST_HALF: Self = Self { low: 0.0, high: 0.5 };

    /// From `low` to `high`, with `0 <= low <= high <= 1`.
    pub fn new(low: f64, high: f64) -> Result<Self> {
        ensure!(
            (0.0..=1.0).contains(&low) && (low..=1.0).contains(&high),
            "a depth range needs 0 <= low <= high <= 1, got {low}..{high}"
        );
        Ok(Self { low, high })
    }

    /// Where the range begins.
    pub fn low(self) -> f64 {
        self.low
    }

    /// Where the range ends.
    pub fn high(self) -> f64 {
        self.high
    }

    /// The same range in tokens of a context of `total`, rounded inwards.
    pub(super) fn in_tokens(self, total: usize) -> (usize, usize) {
        let total = total as f64;
        ((self.low * total).ceil() as usize, (self.high * total).floor() as usize)
    }
}

impl Default for Depth {
    fn default() -> Self {
        Self::ANYWHERE
    }
}

impl fmt::Display for Depth {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}..{}", self.low, self.high)
    }
}

impl FromStr for Depth {
    type Err = anyhow::Error;

    /// `low..high`, such as `0..0.5`.
    fn from_str(text: &str) -> Result<Self> {
        let (low, high) =
            text.split_once("..").with_context(|| format!("a depth range is written low..high, got {text:?}"))?;
        let fraction = |part: &str| part.trim().parse::<f64>().with_context(|| format!("{part:?} is not a fraction"));
        Self::new(fraction(low)?, fraction(high)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_written() {
        let depth: Depth = "0.25..0.5".parse().unwrap();
        assert_eq!(depth, Depth::new(0.25, 0.5).unwrap());
        assert_eq!(depth.to_string().parse::<Depth>().unwrap(), depth);
        assert_eq!("0..1".parse::<Depth>().unwrap(), Depth::ANYWHERE);
    }

    #[test]
    fn wrong_ranges_are_refused() {
        for text in ["", "0.5", "0.6..0.5", "-0.1..1", "0..1.5", "a..b", "NaN..1"] {
            assert!(text.parse::<Depth>().is_err(), "{text}");
        }
    }

    #[test]
    fn tokens_round_inwards() {
        assert_eq!(Depth::new(0.25, 0.5).unwrap().in_tokens(10), (3, 5));
        assert_eq!(Depth::ANYWHERE.in_tokens(10), (0, 10));
    }
}
