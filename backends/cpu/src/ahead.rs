//! Memory that is read next, asked for while a sparse step computes.
//!
//! Scoring a sketch is bound by arithmetic, and the projections behind attention by memory. So whoever knows which weights
//! come next [announces](announce) them, and scoring asks for their first part line by line on its way: when the projection
//! starts, that part is in a cache. It changes no number.

use crate::layer::Numbers;
use crate::simd::Simd;
use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are asked for at a time.
const LINE: usize = 64;

/// Lines that a thread takes at once.
const PORTION: usize = 256;

/// Most bytes that are asked for, per thread: what the second cache has room for beside a sketch that passes through it.
/// Three times as much was a loss.
const MOST_BYTES: usize = 512 << 10;

/// Memory that is going to be read, as addresses: nothing is ever read through them, so it may be gone by then.
#[derive(Debug, Clone, Copy)]
struct Range {
    from: usize,
    portions: usize,
}

thread_local! {
    static ANNOUNCED: RefCell<Vec<Range>> = const { RefCell::new(Vec::new()) };
}

/// Says that `numbers` are read after this thread's next [`fasa_decode`](crate::fasa_decode), in the order in which they are
/// announced. A hint: what is announced beyond
/// the size of a cache is not asked for.
pub fn announce(numbers: Numbers<'_>) {
    ANNOUNCED.with_borrow_mut(|ranges| {
        let asked: usize = ranges.iter().map(|range| range.portions).sum();
        let most = (MOST_BYTES * rayon::current_num_threads()).div_ceil(PORTION * LINE);
        // Whole portions: the end of a matrix is not worth a smaller one.
        ranges.push(Range {
            from: numbers.address(),
            portions: (numbers.bytes() / (PORTION * LINE)).min(most.saturating_sub(asked)),
        });
    });
}

/// What was announced, to be shared out among threads.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    ranges: Vec<Range>,
    taken: AtomicUsize,
}

impl Ahead {
    /// What this thread announced last.
    pub(crate) fn take() -> Self {
        Self { ranges: ANNOUNCED.take(), taken: AtomicUsize::new(0) }
    }

    /// The next portion.
    pub(crate) fn portion(&self) -> Lines {
        if self.ranges.is_empty() {
            return Lines::default();
        }
        let mut index = self.taken.fetch_add(1, Ordering::Relaxed);
        for range in &self.ranges {
            if index < range.portions {
                return Lines { next: range.from + index * PORTION * LINE, left: PORTION };
            }
            index -= range.portions;
        }
        Lines::default()
    }
}

/// Lines to ask for.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    next: usize,
    left: usize,
}

impl Lines {
    /// Lines per block of sixteen rows: a portion in 512 rows.
    const AT_ONCE: usize = 8;

    /// Asks for the next few.
    #[inline(always)]
    pub(crate) fn ask<S: Simd>(&mut self, simd: S) {
        if self.left >= Self::AT_ONCE {
            for line in 0..Self::AT_ONCE {
                simd.prefetch_far(std::ptr::without_provenance::<u8>(self.next + line * LINE));
            }
            self.next += Self::AT_ONCE * LINE;
            self.left -= Self::AT_ONCE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_announced_is_asked_for_once_and_in_order() {
        let [first, second] = [vec![0.0f32; 3 * 4096 + 5], vec![1.0f32; 4096]];
        announce(Numbers::F32(&first));
        announce(Numbers::F32(&second));
        let ahead = Ahead::take();
        let at = |numbers: &[f32], portion: usize| numbers.as_ptr().addr() + portion * PORTION * LINE;
        let want = [at(&first, 0), at(&first, 1), at(&first, 2), at(&second, 0)];
        for want in want {
            let lines = ahead.portion();
            assert_eq!((lines.next, lines.left), (want, PORTION));
        }
        assert_eq!(ahead.portion().left, 0);
        assert_eq!(Ahead::take().portion().left, 0, "it was announced for one step");
    }

    #[test]
    fn no_more_than_caches_hold() {
        let numbers = vec![0.0f32; 1 << 20];
        for _ in 0..100 {
            announce(Numbers::F32(&numbers));
        }
        let ahead = Ahead::take();
        let asked = std::iter::from_fn(|| Some(ahead.portion().left).filter(|left| *left > 0)).sum::<usize>() * LINE;
        let most = MOST_BYTES * rayon::current_num_threads();
        assert!((most..most + PORTION * LINE).contains(&asked), "{asked}");
    }
}
