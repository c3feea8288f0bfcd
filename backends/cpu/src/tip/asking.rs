//! What is read next, asked for while scores and weights are computed.
//!
//! Scoring reads memory, weighing what was scored reads none. Asked for evenly through both, the rows of the next span come at the
//! pace at which they are used, and the memory never rests.

use crate::simd::Simd;
use fasa_core::sketch::SketchRows;

/// Bytes that are asked for at a time.
const LINE: usize = 64;

/// The rows of the next span.
#[derive(Debug, Default)]
pub(crate) struct Asking {
    /// Where the rows that nobody has asked for begin. An address: nothing is read through it.
    next: usize,
    /// Lines of them.
    left: usize,
    /// Where their scales begin, and the lines of these.
    next_scales: usize,
    left_scales: usize,
    /// A quarter of the lines of sixteen rows.
    quarter: usize,
    /// Whether scoring asks for all of them.
    at_once: bool,
}

impl Asking {
    /// For `rows`, as many as are scored meanwhile. If nothing is weighed before they are scored, `at_once`.
    pub(super) fn new(rows: &SketchRows<'_>, at_once: bool) -> Self {
        let codes = rows.codes();
        Self {
            next: codes.as_ptr().addr(),
            left: codes.len() / LINE,
            next_scales: rows.scales().as_ptr().addr(),
            left_scales: rows.scales().len().div_ceil(LINE),
            quarter: rows.precision().row_bytes(rows.chunks()) / 16,
            at_once,
        }
    }

    /// Beside the scores of sixteen rows of `16 * quarter` bytes.
    #[inline(always)]
    pub(super) fn beside_scores<S: Simd>(&mut self, simd: S, quarter: usize) {
        if self.at_once {
            self.ask(simd, 4 * quarter)
        } else {
            self.ask(simd, 3 * quarter)
        }
        if self.left_scales > 0 {
            simd.prefetch(std::ptr::without_provenance::<u8>(self.next_scales));
            self.next_scales += LINE;
            self.left_scales -= 1;
        }
    }

    /// Beside the weights of sixteen rows.
    #[inline(always)]
    pub(super) fn beside_weights<S: Simd>(&mut self, simd: S) {
        self.ask(simd, self.quarter);
    }

    /// So many lines, if there are.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, simd: S, lines: usize) {
        if self.left >= lines {
            for line in 0..lines {
                simd.prefetch(std::ptr::without_provenance::<u8>(self.next + line * LINE));
            }
            self.next += lines * LINE;
            self.left -= lines;
        }
    }
}
