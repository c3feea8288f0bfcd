//! Which instructions this machine has, found once.

use std::sync::OnceLock;

/// Instruction sets that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// Whatever the target's baseline is (SSE2, ...).
    Portable,
    /// AVX2, FMA and F16C (x86-64-v3).
    Avx2,
    /// AVX-512 F, BW, DQ and VL on top (x86-64-v4).
    Avx512,
    /// AVX-512 VNNI on top: integer inner products.
    Avx512Vnni,
    /// Advanced SIMD of 64-bit Arm.
    Neon,
    /// Integer inner products on top (`dotprod`).
    NeonDot,
}

impl Isa {
    /// All of them, those of one architecture together, the poorest first.
    pub const ALL: [Isa; 6] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni, Isa::Neon, Isa::NeonDot];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "AVX2",
            Isa::Avx512 => "AVX-512",
            Isa::Avx512Vnni => "AVX-512 VNNI",
            Isa::Neon => "NEON",
            Isa::NeonDot => "NEON dot product",
        }
    }
}

/// The best instruction set of this machine. `FASA_ISA=portable|avx2|avx512|avx512vnni|neon|neondot` caps it, for tests and measurements.
pub fn detect() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let cap = match std::env::var("FASA_ISA").as_deref() {
            Ok("portable") => Isa::Portable,
            Ok("avx2") => Isa::Avx2,
            Ok("avx512") => Isa::Avx512,
            Ok("avx512vnni") => Isa::Avx512Vnni,
            Ok("neon") => Isa::Neon,
            _ => Isa::NeonDot,
        };
        available().min(cap)
    })
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn available() -> Isa {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma") && has!("f16c")) {
        Isa::Portable
    } else if !(has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")) {
        Isa::Avx2
    } else if !has!("avx512vnni") {
        Isa::Avx512
    } else {
        Isa::Avx512Vnni
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) fn available() -> Isa {
    use std::arch::is_aarch64_feature_detected as has;
    if !has!("neon") {
        Isa::Portable
    } else if !has!("dotprod") {
        Isa::Neon
    } else {
        Isa::NeonDot
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn available() -> Isa {
    Isa::Portable
}

/// Compiles `$kernel(simd, ..)` for every instruction set and calls the one this machine runs best.
///
/// The kernel must be `#[inline(always)]` and generic over [`Simd`](crate::simd::Simd) first: the wrapper hands it the
/// proof that the features are there, and it is compiled with those features. The form `for isa` lets the caller choose,
/// which tests do; an instruction set that the machine lacks is replaced by the best it has.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident$([$($generic:ident: $bound:path),+])?($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $kernel:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name$(<$($generic: $bound),+>)?($($arg: $ty),*) $(-> $ret)? {
            $crate::isa::dispatch!(@for $crate::isa::detect(), [$($($generic: $bound),+)?] ($($arg: $ty),*) [$($ret)?] $kernel)
        }
    };
    (@for $isa:expr, [$($generic:ident: $bound:path),*] ($($arg:ident: $ty:ty),*) [$($ret:ty)?] $kernel:ident) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx2<$($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function is only called on machines with its features.
                $kernel(unsafe { $crate::simd::Avx2::new() }, $($arg),*)
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx512<$($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: as above.
                $kernel(unsafe { $crate::simd::Avx512::new() }, $($arg),*)
            }
            #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx512vnni<$($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: as above.
                $kernel(unsafe { $crate::simd::Avx512Vnni::new() }, $($arg),*)
            }
            let isa: $crate::isa::Isa = $isa;
            match isa {
                // SAFETY: `detect` returns an instruction set only after the CPU reported every feature that the wrapper
                // enables, and tests ask for no better one than `available`.
                $crate::isa::Isa::Avx512Vnni => return unsafe { avx512vnni($($arg),*) },
                // SAFETY: as above.
                $crate::isa::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                $crate::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                _ => {}
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            #[target_feature(enable = "neon")]
            #[allow(clippy::too_many_arguments)]
            fn neon<$($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function is only called on machines with its features.
                $kernel(unsafe { $crate::simd::Neon::new() }, $($arg),*)
            }
            #[target_feature(enable = "neon,dotprod")]
            #[allow(clippy::too_many_arguments)]
            fn neon_dot<$($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: as above.
                $kernel(unsafe { $crate::simd::NeonDot::new() }, $($arg),*)
            }
            let isa: $crate::isa::Isa = $isa;
            match isa {
                // SAFETY: as for the other architecture.
                $crate::isa::Isa::NeonDot => return unsafe { neon_dot($($arg),*) },
                // SAFETY: as above.
                $crate::isa::Isa::Neon => return unsafe { neon($($arg),*) },
                _ => {}
            }
        }
        $kernel($crate::simd::Portable, $($arg),*)
    }};
}
pub(crate) use dispatch;
