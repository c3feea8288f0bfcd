//! Spans of tokens: scoring notes the largest of each, so that selection need not look at every token.
//!
//! Units of a cube score rows that lie next to each other, and each unit some more at equal distances. A span is what some
//! neighbouring units score, so that its largest score is found without leaving a plane.

use cubecl::prelude::*;

/// Units of a cube that looks at every token.
pub(crate) const UNITS: u32 = 256;

/// How tokens form spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Spans {
    /// Tokens of a unit, [`UNITS`] apart.
    pub rows: usize,
    /// Units of a span, a power of two up to 32.
    pub lanes: usize,
}

impl Spans {
    /// For `lists` times `len` tokens. The spans are about as many as the tokens that selection looks at afterwards.
    pub fn new(len: usize, lists: usize, processors: usize) -> Self {
        // Short contexts are spread over more units.
        let enough = 2 * processors * UNITS as usize;
        let rows = [4, 2].into_iter().find(|rows| len * lists >= rows * enough).unwrap_or(1);
        let tokens = (len / 256).isqrt().next_power_of_two().clamp(4, 128);
        Self { rows, lanes: (tokens / rows).clamp(1, 32) }
    }

    /// Tokens of a span.
    pub const fn tokens(self) -> usize {
        self.rows * self.lanes
    }

    /// Tokens of a chunk, which a cube looks at together.
    pub const fn chunk(self) -> usize {
        self.rows * UNITS as usize
    }

    /// Spans of a chunk.
    pub const fn of_chunk(self) -> usize {
        UNITS as usize / self.lanes
    }

    /// Spans of `len` tokens: those of whole chunks.
    pub const fn count(self, len: usize) -> usize {
        len.div_ceil(self.chunk()) * self.of_chunk()
    }
}

/// Token `i` of a span.
#[cube]
pub(crate) fn token(span: u32, i: u32, #[comptime] spans: Spans) -> u32 {
    let (of_chunk, lanes) = comptime!((spans.of_chunk() as u32, spans.lanes as u32));
    let (chunk, first) = (span / of_chunk, (span % of_chunk) * lanes);
    chunk * comptime!(spans.chunk() as u32) + (i / lanes) * UNITS + first + i % lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_in_one_span() {
        for (len, lists) in [(1, 1), (4096, 8), (65_536, 8), (131_072, 64), (1 << 20, 1)] {
            let spans = Spans::new(len, lists, 132);
            let (of_chunk, lanes) = (spans.of_chunk(), spans.lanes);
            let mut seen = vec![false; len.next_multiple_of(spans.chunk())];
            for span in 0..spans.count(len) {
                for i in 0..spans.tokens() {
                    let t = span / of_chunk * spans.chunk() + i / lanes * UNITS as usize + span % of_chunk * lanes;
                    assert!(!std::mem::replace(&mut seen[t + i % lanes], true));
                }
            }
            assert!(seen.into_iter().all(|seen| seen), "{spans:?}");
        }
    }
}
