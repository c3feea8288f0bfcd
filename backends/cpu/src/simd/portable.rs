//! Plain arrays: what compilers vectorize with the target's baseline (SSE2 on x86-64).

use super::{LANES, Simd};

/// No instructions beyond the target's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

/// Where every machine of the target multiplies and adds in one instruction. Elsewhere `mul_add` is a library call.
const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

/// IEEE half to single, without branches but for infinities and NaN: the exponent is rebiased by one multiplication, which
/// also turns subnormal halves into normal singles.
#[inline(always)]
fn half_to_single(half: [u8; 2]) -> f32 {
    let half = u32::from(u16::from_le_bytes(half));
    let magnitude = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    let special = if half & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | ((half & 0x8000) << 16))
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    const WIDE: bool = false;
    const SIGNED_OFFSET: i32 = 0;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }
    #[inline(always)]
    fn load_half(self, from: &[[u8; 2]; LANES]) -> Self::F {
        each(|i| half_to_single(from[i]))
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        *to = x;
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| if FUSED { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] })
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn where_ge(self, x: Self::F, bound: Self::F, value: Self::F) -> Self::F {
        each(|i| if x[i] >= bound[i] { value[i] } else { 0.0 })
    }
    #[inline(always)]
    fn power_of_two(self, biased: Self::F) -> Self::F {
        each(|i| f32::from_bits(biased[i].to_bits().wrapping_add(127) << 23))
    }
    #[inline(always)]
    fn sum4(self, x: [Self::F; 4]) -> [f32; 4] {
        x.map(|mut lanes| {
            // By halves: the order that vector instructions reduce in.
            let mut width = LANES / 2;
            while width > 0 {
                for i in 0..width {
                    lanes[i] += lanes[i + width];
                }
                width /= 2;
            }
            lanes[0]
        })
    }
    #[inline(always)]
    fn largest_of_each(self, x: [Self::F; LANES]) -> Self::F {
        each(|k| self.largest(x[k]))
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    fn transpose(self, pieces: [&[u8; 16]; LANES]) -> [Self::I; 4] {
        let mut groups = [[0; LANES]; 4];
        for lane in 0..LANES {
            for (group, bytes) in groups.iter_mut().zip(pieces[lane].as_chunks::<4>().0) {
                group[lane] = i32::from_le_bytes(*bytes);
            }
        }
        groups
    }
    #[inline(always)]
    fn low_nibbles(self, x: Self::I) -> Self::I {
        x.map(|x| x & 0x0f0f_0f0f)
    }
    #[inline(always)]
    fn high_nibbles(self, x: Self::I) -> Self::I {
        x.map(|x| (x >> 4) & 0x0f0f_0f0f)
    }
    #[inline(always)]
    fn dot4(self, sum: Self::I, codes: Self::I, query: i32) -> Self::I {
        self.dot4_signed(sum, codes, query)
    }
    #[inline(always)]
    fn dot4_signed(self, sum: Self::I, codes: Self::I, query: i32) -> Self::I {
        let q = query.to_le_bytes().map(|b| i32::from(b as i8));
        std::array::from_fn(|i| {
            let x = codes[i];
            let byte = |at: u32| (x << (24 - 8 * at)) >> 24;
            sum[i] + byte(0) * q[0] + byte(1) * q[1] + byte(2) * q[2] + byte(3) * q[3]
        })
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn to_float(self, x: Self::I) -> Self::F {
        each(|i| x[i] as f32)
    }
    #[inline(always)]
    fn prefetch<T>(self, _at: *const T) {}
}
