//! NEON: a vector is four registers. The dot product instructions (`sdot`) come with most cores since Armv8.2.

use super::{LANES, Simd};
use std::arch::aarch64::*;
use std::arch::asm;

/// Advanced SIMD, which every 64-bit Arm processor has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The CPU has Advanced SIMD.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// [`Neon`] and the dot product instructions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NeonDot(());

impl NeonDot {
    /// # Safety
    /// The CPU has Advanced SIMD and the dot product instructions.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Everything but the integer inner products, which differ.
macro_rules! neon {
    ($token:ty, $dot4:ident) => {
        // SAFETY of all blocks: a value of this type exists only where its constructor's caller vouched for the
        // instructions; loads and stores go through references to arrays of the full width.
        impl Simd for $token {
            type F = [float32x4_t; 4];
            type I = [int32x4_t; 4];
            // Thirty-two registers are eight vectors.
            const WIDE: bool = false;
            const SIGNED_OFFSET: i32 = 0;

            #[inline(always)]
            fn splat(self, x: f32) -> Self::F {
                unsafe { [vdupq_n_f32(x); 4] }
            }
            #[inline(always)]
            fn load(self, from: &[f32; LANES]) -> Self::F {
                unsafe {
                    let from = from.as_ptr();
                    [vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))]
                }
            }
            #[inline(always)]
            fn load_half(self, from: &[[u8; 2]; LANES]) -> Self::F {
                unsafe {
                    let from = from.as_ptr().cast::<u8>();
                    let ([a, b], [c, d]) = (singles(vld1q_u8(from)), singles(vld1q_u8(from.add(16))));
                    [a, b, c, d]
                }
            }
            #[inline(always)]
            fn store(self, x: Self::F, to: &mut [f32; LANES]) {
                unsafe {
                    let to = to.as_mut_ptr();
                    vst1q_f32(to, x[0]);
                    vst1q_f32(to.add(4), x[1]);
                    vst1q_f32(to.add(8), x[2]);
                    vst1q_f32(to.add(12), x[3]);
                }
            }
            #[inline(always)]
            fn add(self, a: Self::F, b: Self::F) -> Self::F {
                unsafe { [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1]), vaddq_f32(a[2], b[2]), vaddq_f32(a[3], b[3])] }
            }
            #[inline(always)]
            fn sub(self, a: Self::F, b: Self::F) -> Self::F {
                unsafe { [vsubq_f32(a[0], b[0]), vsubq_f32(a[1], b[1]), vsubq_f32(a[2], b[2]), vsubq_f32(a[3], b[3])] }
            }
            #[inline(always)]
            fn mul(self, a: Self::F, b: Self::F) -> Self::F {
                unsafe { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1]), vmulq_f32(a[2], b[2]), vmulq_f32(a[3], b[3])] }
            }
            #[inline(always)]
            fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
                unsafe {
                    [
                        vfmaq_f32(c[0], a[0], b[0]),
                        vfmaq_f32(c[1], a[1], b[1]),
                        vfmaq_f32(c[2], a[2], b[2]),
                        vfmaq_f32(c[3], a[3], b[3]),
                    ]
                }
            }
            #[inline(always)]
            fn max(self, a: Self::F, b: Self::F) -> Self::F {
                unsafe { [larger(a[0], b[0]), larger(a[1], b[1]), larger(a[2], b[2]), larger(a[3], b[3])] }
            }
            #[inline(always)]
            fn min(self, a: Self::F, b: Self::F) -> Self::F {
                unsafe { [smaller(a[0], b[0]), smaller(a[1], b[1]), smaller(a[2], b[2]), smaller(a[3], b[3])] }
            }
            #[inline(always)]
            fn where_ge(self, x: Self::F, bound: Self::F, value: Self::F) -> Self::F {
                unsafe {
                    [
                        if_ge(x[0], bound[0], value[0]),
                        if_ge(x[1], bound[1], value[1]),
                        if_ge(x[2], bound[2], value[2]),
                        if_ge(x[3], bound[3], value[3]),
                    ]
                }
            }
            #[inline(always)]
            fn power_of_two(self, biased: Self::F) -> Self::F {
                unsafe { [power(biased[0]), power(biased[1]), power(biased[2]), power(biased[3])] }
            }
            #[inline(always)]
            fn sum4(self, [a, b, c, d]: [Self::F; 4]) -> [f32; 4] {
                unsafe {
                    let sums = vpaddq_f32(vpaddq_f32(sum(a), sum(b)), vpaddq_f32(sum(c), sum(d)));
                    let mut out = [0.0; 4];
                    vst1q_f32(out.as_mut_ptr(), sums);
                    out
                }
            }
            #[inline(always)]
            fn largest_of_each(self, x: [Self::F; LANES]) -> Self::F {
                unsafe {
                    [
                        largest_of_four([x[0], x[1], x[2], x[3]]),
                        largest_of_four([x[4], x[5], x[6], x[7]]),
                        largest_of_four([x[8], x[9], x[10], x[11]]),
                        largest_of_four([x[12], x[13], x[14], x[15]]),
                    ]
                }
            }

            #[inline(always)]
            fn splat_i(self, x: i32) -> Self::I {
                unsafe { [vdupq_n_s32(x); 4] }
            }
            #[inline(always)]
            fn transpose(self, p: [&[u8; 16]; LANES]) -> [Self::I; 4] {
                unsafe {
                    let a = transpose_four([p[0], p[1], p[2], p[3]]);
                    let b = transpose_four([p[4], p[5], p[6], p[7]]);
                    let c = transpose_four([p[8], p[9], p[10], p[11]]);
                    let d = transpose_four([p[12], p[13], p[14], p[15]]);
                    [
                        [a[0], b[0], c[0], d[0]],
                        [a[1], b[1], c[1], d[1]],
                        [a[2], b[2], c[2], d[2]],
                        [a[3], b[3], c[3], d[3]],
                    ]
                }
            }
            #[inline(always)]
            fn low_nibbles(self, x: Self::I) -> Self::I {
                unsafe { [low(x[0]), low(x[1]), low(x[2]), low(x[3])] }
            }
            #[inline(always)]
            fn high_nibbles(self, x: Self::I) -> Self::I {
                unsafe { [high(x[0]), high(x[1]), high(x[2]), high(x[3])] }
            }
            #[inline(always)]
            fn dot4(self, sum: Self::I, codes: Self::I, query: i32) -> Self::I {
                // 0 to 15 is the same with and without a sign.
                self.dot4_signed(sum, codes, query)
            }
            #[inline(always)]
            fn dot4_signed(self, sum: Self::I, codes: Self::I, query: i32) -> Self::I {
                unsafe {
                    let query = vdupq_n_s32(query);
                    [
                        $dot4(sum[0], codes[0], query),
                        $dot4(sum[1], codes[1], query),
                        $dot4(sum[2], codes[2], query),
                        $dot4(sum[3], codes[3], query),
                    ]
                }
            }
            #[inline(always)]
            fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
                unsafe { [vaddq_s32(a[0], b[0]), vaddq_s32(a[1], b[1]), vaddq_s32(a[2], b[2]), vaddq_s32(a[3], b[3])] }
            }
            #[inline(always)]
            fn to_float(self, x: Self::I) -> Self::F {
                unsafe { [vcvtq_f32_s32(x[0]), vcvtq_f32_s32(x[1]), vcvtq_f32_s32(x[2]), vcvtq_f32_s32(x[3])] }
            }
            #[inline(always)]
            fn prefetch<T>(self, at: *const T) {
                // A prefetch never faults.
                unsafe { asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, readonly, preserves_flags)) }
            }
        }
    };
}

neon!(Neon, widened);
neon!(NeonDot, sdot);

/// Eight halves as singles.
///
/// # Safety
/// Advanced SIMD; conversion from half precision is part of it.
#[inline(always)]
unsafe fn singles(halves: uint8x16_t) -> [float32x4_t; 2] {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: only the named registers change.
    unsafe {
        asm!(
            "fcvtl {low:v}.4s, {halves:v}.4h",
            "fcvtl2 {high:v}.4s, {halves:v}.8h",
            halves = in(vreg) halves,
            low = out(vreg) low,
            high = out(vreg) high,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [low, high]
}

/// `b` where `a` is NaN, which `fmax` and `fmaxnm` are not.
///
/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: as the caller vouches.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn smaller(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: as the caller vouches.
    unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
}

/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn if_ge(x: float32x4_t, bound: float32x4_t, value: float32x4_t) -> float32x4_t {
    // SAFETY: as the caller vouches.
    unsafe { vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(x, bound), vreinterpretq_u32_f32(value))) }
}

/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn power(biased: float32x4_t) -> float32x4_t {
    // SAFETY: as the caller vouches.
    unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vreinterpretq_s32_f32(biased), vdupq_n_s32(127)))) }
}

/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn sum(x: [float32x4_t; 4]) -> float32x4_t {
    // SAFETY: as the caller vouches.
    unsafe { vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3])) }
}

/// The largest lane of each of four vectors.
///
/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn largest_of_four([a, b, c, d]: [[float32x4_t; 4]; 4]) -> float32x4_t {
    // SAFETY: as the caller vouches.
    unsafe { vpmaxq_f32(vpmaxq_f32(largest(a), largest(b)), vpmaxq_f32(largest(c), largest(d))) }
}

/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn largest(x: [float32x4_t; 4]) -> float32x4_t {
    // SAFETY: as the caller vouches.
    unsafe { vmaxq_f32(vmaxq_f32(x[0], x[1]), vmaxq_f32(x[2], x[3])) }
}

/// Four pieces: vector k holds bytes `4 k .. 4 k + 4` of each.
///
/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn transpose_four(pieces: [&[u8; 16]; 4]) -> [int32x4_t; 4] {
    // SAFETY: as the caller vouches; loads are of whole arrays.
    unsafe {
        let a = vreinterpretq_s32_u8(vld1q_u8(pieces[0].as_ptr()));
        let b = vreinterpretq_s32_u8(vld1q_u8(pieces[1].as_ptr()));
        let c = vreinterpretq_s32_u8(vld1q_u8(pieces[2].as_ptr()));
        let d = vreinterpretq_s32_u8(vld1q_u8(pieces[3].as_ptr()));
        let (ab_even, ab_odd) = (vreinterpretq_s64_s32(vtrn1q_s32(a, b)), vreinterpretq_s64_s32(vtrn2q_s32(a, b)));
        let (cd_even, cd_odd) = (vreinterpretq_s64_s32(vtrn1q_s32(c, d)), vreinterpretq_s64_s32(vtrn2q_s32(c, d)));
        [
            vreinterpretq_s32_s64(vtrn1q_s64(ab_even, cd_even)),
            vreinterpretq_s32_s64(vtrn1q_s64(ab_odd, cd_odd)),
            vreinterpretq_s32_s64(vtrn2q_s64(ab_even, cd_even)),
            vreinterpretq_s32_s64(vtrn2q_s64(ab_odd, cd_odd)),
        ]
    }
}

/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn low(x: int32x4_t) -> int32x4_t {
    // SAFETY: as the caller vouches.
    unsafe { vandq_s32(x, vdupq_n_s32(0x0f0f_0f0f)) }
}

/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn high(x: int32x4_t) -> int32x4_t {
    // SAFETY: as the caller vouches.
    unsafe { vreinterpretq_s32_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s32(x))) }
}

/// Inner products of four bytes without an instruction for them.
///
/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn widened(sum: int32x4_t, codes: int32x4_t, query: int32x4_t) -> int32x4_t {
    // SAFETY: as the caller vouches. Products fit in 16 bits, sums of two are made in 32.
    unsafe {
        let (codes, query) = (vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(query));
        let low = vpaddlq_s16(vmull_s8(vget_low_s8(codes), vget_low_s8(query)));
        let high = vpaddlq_s16(vmull_high_s8(codes, query));
        vaddq_s32(sum, vpaddq_s32(low, high))
    }
}

/// # Safety
/// The dot product instructions.
#[inline(always)]
unsafe fn sdot(sum: int32x4_t, codes: int32x4_t, query: int32x4_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: as the caller vouches; only the named register changes.
    unsafe {
        asm!(
            // Inlined into code that is compiled without it, the assembler still has to know it.
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {codes:v}.16b, {query:v}.16b",
            sum = inout(vreg) sum,
            codes = in(vreg) codes,
            query = in(vreg) query,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
