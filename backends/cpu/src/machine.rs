//! What the machine can do: the measure that figures are held against, and how much memory is left.

mod room;

pub use room::available_memory;

use crate::huge::{Pages, advised};
use crate::isa::dispatch;
use crate::simd::{LANES, Simd};
use crate::team::share_each;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Memory to read for a measure of how fast that goes.
#[derive(Debug)]
pub struct Memory {
    numbers: Vec<[f32; LANES]>,
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
        let mut numbers = vec![[0.0f32; LANES]; bytes / size_of::<[f32; LANES]>()];
        advised(numbers.as_mut_ptr(), size_of_val(&numbers[..]), pages);
        // Written by the threads that read it, so that the pages are theirs.
        numbers.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| piece.fill([i as f32; LANES]));
        Self { numbers }
    }

    /// Bytes per second at which all threads of rayon's current pool together read it once. NaN if it is empty.
    pub fn read(&self) -> f64 {
        let start = Instant::now();
        // As kernels are shared out: threads that are kept awake take nothing else.
        share_each(self.numbers.chunks(PIECE), |_, piece| {
            let mut total = 0.0;
            sum(piece, &mut total);
            black_box(total);
        });
        match self.numbers.is_empty() {
            true => f64::NAN,
            false => size_of_val(&self.numbers[..]) as f64 / start.elapsed().as_secs_f64(),
        }
    }
}

/// The median of `rounds` of [`Memory::read`] over `bytes` bytes on huge pages, on which what the kernels read lies in a program that
/// uses [`HugePages`](crate::HugePages). NaN for no round or fewer than 64 bytes.
pub fn read_bandwidth(bytes: usize, rounds: usize) -> f64 {
    let memory = Memory::on_huge_pages(bytes);
    let mut speeds: Vec<f64> = (0..rounds).map(|_| memory.read()).collect();
    speeds.sort_by(f64::total_cmp);
    speeds.get(rounds / 2).copied().unwrap_or(f64::NAN)
}

/// Vectors per task, 256 KiB.
const PIECE: usize = 1 << 12;

dispatch! {
    /// The sum of all numbers, for which nothing but memory is waited for: four running sums, and lines are asked for as the
    /// kernels ask for theirs.
    fn sum(numbers: &[[f32; LANES]], out: &mut f32) = sum_kernel
}

#[inline(always)]
fn sum_kernel<S: Simd>(simd: S, numbers: &[[f32; LANES]], out: &mut f32) {
    /// Lines of 64 bytes between what is used and what is asked for.
    const LINES_AHEAD: usize = 32;
    let mut sums = [simd.splat(0.0); 4];
    for block in numbers.as_chunks::<4>().0 {
        for k in 0..4 {
            simd.prefetch(block.as_ptr().wrapping_add(LINES_AHEAD + k));
        }
        for k in 0..4 {
            sums[k] = simd.add(sums[k], simd.load(&block[k]));
        }
    }
    *out = simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_positive_number_or_none() {
        assert!(read_bandwidth(1 << 20, 3) > 1e6);
        assert!(read_bandwidth(0, 3).is_nan() && read_bandwidth(256, 0).is_nan());
    }
}
