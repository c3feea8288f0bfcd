//! What the machine can do: the measure that figures are held against.

use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Bytes per second that all threads of rayon's current pool read together from memory: the median of `rounds` sums over
/// `bytes` bytes, which should be several times the last cache (256 MiB is).
///
/// Takes about `rounds * bytes / bandwidth` and as much memory as it is told. NaN for no round or fewer than 8 bytes.
pub fn read_bandwidth(bytes: usize, rounds: usize) -> f64 {
    // Written by the threads that read it, so that the pages are theirs.
    let mut numbers = vec![0u64; bytes / 8];
    numbers.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| piece.fill(i as u64));
    let mut seconds: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            black_box(numbers.par_chunks(PIECE).map(sum).reduce(|| 0, u64::wrapping_add));
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    match seconds.get(rounds / 2) {
        Some(median) if !numbers.is_empty() => size_of_val(&numbers[..]) as f64 / median,
        _ => f64::NAN,
    }
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
