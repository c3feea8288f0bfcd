//! Which instructions this machine has, found once.

use std::sync::OnceLock;

/// Instruction sets that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// Whatever the target's baseline is (SSE2, NEON, ...).
    Portable,
    /// AVX2, FMA and F16C (x86-64-v3).
    Avx2,
    /// AVX-512 F, BW, DQ and VL on top (x86-64-v4).
    Avx512,
}

/// The best instruction set of this machine. `FASA_ISA=portable|avx2|avx512` caps it, for tests and measurements.
pub fn detect() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let cap = match std::env::var("FASA_ISA").as_deref() {
            Ok("portable") => Isa::Portable,
            Ok("avx2") => Isa::Avx2,
            _ => Isa::Avx512,
        };
        available().min(cap)
    })
}

#[cfg(target_arch = "x86_64")]
fn available() -> Isa {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma") && has!("f16c")) {
        Isa::Portable
    } else if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
        Isa::Avx512
    } else {
        Isa::Avx2
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn available() -> Isa {
    Isa::Portable
}

/// Compiles `$kernel::<FMA>` for every instruction set and calls the one this machine runs best.
///
/// The kernel must be `#[inline(always)]`: its loops are then vectorized with the features of the wrapper.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $kernel:ident) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) {
                    $kernel::<true>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512($($arg: $ty),*) {
                    $kernel::<true>($($arg),*)
                }
                match $crate::isa::detect() {
                    // SAFETY: `detect` returns an instruction set only after the CPU reported every feature that the
                    // wrapper enables.
                    $crate::isa::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            $kernel::<false>($($arg),*)
        }
    };
}
pub(crate) use dispatch;

/// `a * b + c`, in one instruction where there is one. A call to the C library otherwise, so `FMA` must be known.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Lanes that kernels are written for: one AVX-512 register, two of AVX2, four of SSE2 or NEON.
pub(crate) const LANES: usize = 16;

/// Inner product in [`LANES`] running sums.
#[inline(always)]
pub(crate) fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] = fma::<FMA>(x[lane], y[lane], sums[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    horizontal(sums) + rest
}

/// Sum of the lanes, by halves: the order that vector instructions reduce in.
#[inline(always)]
pub(crate) fn horizontal(sums: [f32; LANES]) -> f32 {
    let mut sums = sums;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_every_length() {
        for n in 0..70 {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..n).map(|i| (i as f32 * 0.73).cos()).collect();
            let want: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            assert!((f64::from(dot::<false>(&a, &b)) - want).abs() < 1e-5, "{n}");
            assert!((f64::from(dot::<true>(&a, &b)) - want).abs() < 1e-5, "{n}");
        }
    }
}
