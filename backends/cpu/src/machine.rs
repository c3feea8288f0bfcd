//! What the machine can do: the measure that figures are held against, and how much memory is left.

mod room;

pub use room::available_memory;

use crate::huge::{Pages, advised};
use crate::team::share_each;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Memory to read for a measure of how fast that goes.
#[derive(Debug)]
pub struct Memory {
    numbers: Vec<u64>,
}

impl Memory {
    /// So many bytes, which should be several times the last cache, on the system's ordinary pages.
    pub fn new(bytes: usize) -> Self {
        Self::on(Pages::Ordinary, bytes)
    }

    /// So many bytes on huge pages, where the system gives some: see [`HugePages`](crate::HugePages).
    pub fn on_huge_pages(bytes: usize) -> Self {
        Self::on(Pages::Huge, bytes)
    }

    fn on(pages: Pages, bytes: usize) -> Self {
        let mut numbers = vec![0u64; bytes / 8];
        advised(numbers.as_mut_ptr(), 8 * numbers.len(), pages);
        // Written by the threads that read it, so that the pages are theirs.
        numbers.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| piece.fill(i as u64));
        Self { numbers }
    }

    /// Bytes per second at which all threads of rayon's current pool together read it once. NaN if it is empty.
    pub fn read(&self) -> f64 {
        let start = Instant::now();
        // As kernels are shared out: threads that are kept awake take nothing else.
        share_each(self.numbers.chunks(PIECE), |_, piece| {
            black_box(sum(piece));
        });
        match self.numbers.is_empty() {
            true => f64::NAN,
            false => size_of_val(&self.numbers[..]) as f64 / start.elapsed().as_secs_f64(),
        }
    }
}

/// The median of `rounds` of [`Memory::read`] over `bytes` bytes. NaN for no round or fewer than 8 bytes.
pub fn read_bandwidth(bytes: usize, rounds: usize) -> f64 {
    let memory = Memory::new(bytes);
    let mut speeds: Vec<f64> = (0..rounds).map(|_| memory.read()).collect();
    speeds.sort_by(f64::total_cmp);
    speeds.get(rounds / 2).copied().unwrap_or(f64::NAN)
}

/// Numbers per task, 256 KiB.
const PIECE: usize = 1 << 15;

/// In enough running sums that adding never waits.
fn sum(numbers: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    for block in numbers.as_chunks::<32>().0 {
        for (sum, x) in sums.iter_mut().zip(block) {
            *sum = sum.wrapping_add(*x);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_positive_number_or_none() {
        assert!(read_bandwidth(1 << 20, 3) > 1e6);
        assert!(read_bandwidth(0, 3).is_nan() && read_bandwidth(64, 0).is_nan());
    }
}
