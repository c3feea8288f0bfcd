//! Vectors of sixteen numbers, one thin wrapper per instruction set.
//!
//! Kernels are written once over [`Simd`], whose values are proof that the machine has the instructions; [`dispatch!`]
//! makes such a value and compiles the kernel with the features it needs. Sixteen lanes are one register of AVX-512, two
//! of AVX2, four of SSE2 or NEON: loads from `&[f32; LANES]` need no bounds check and no `unsafe` in a kernel.
//!
//! [`dispatch!`]: crate::isa::dispatch

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, Avx512Vnni};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{Neon, NeonDot};
pub(crate) use portable::Portable;

/// Numbers per vector.
pub(crate) const LANES: usize = 16;

/// An instruction set. Every method is a handful of instructions and inlined.
///
/// Kernels hand these values to `#[inline(always)]` functions only, never to closures: a closure is compiled without the
/// instructions of the function around it, and each intrinsic in it becomes a call.
pub(crate) trait Simd: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32, or sixteen groups of four bytes.
    type I: Copy;
    /// Whether there are registers for a tile of 4 x 4 vectors; 2 x 2 otherwise.
    const WIDE: bool;
    /// What [`dot4_signed`](Self::dot4_signed) adds to every code.
    const SIGNED_OFFSET: i32;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32; LANES]) -> Self::F;
    /// IEEE halves, little-endian, at any address. Subnormals and infinities are exact.
    fn load_half(self, from: &[[u8; 2]; LANES]) -> Self::F;
    fn store(self, x: Self::F, to: &mut [f32; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`; in one rounding where the machine has that.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of both; `b` where `a` is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `value` where `x >= bound`, 0 elsewhere and where x is NaN.
    fn where_ge(self, x: Self::F, bound: Self::F, value: Self::F) -> Self::F;
    /// Bit k: whether lane k of `x` is at least that of `bound`. Not where one of them is NaN.
    #[inline(always)]
    fn at_least(self, x: Self::F, bound: Self::F) -> u32 {
        let mut lanes = [[0.0; LANES]; 2];
        self.store(x, &mut lanes[0]);
        self.store(bound, &mut lanes[1]);
        (0..LANES).fold(0, |bits, k| bits | u32::from(lanes[0][k] >= lanes[1][k]) << k)
    }
    /// `2^n` of lanes that hold `n + 1.5 * 2^23`, n from -126 to 127.
    fn power_of_two(self, biased: Self::F) -> Self::F;
    /// `x * 2^n`, n from -126 to 126, given also as in [`power_of_two`](Self::power_of_two).
    #[inline(always)]
    fn times_power_of_two(self, x: Self::F, _n: Self::F, biased: Self::F) -> Self::F {
        self.mul(x, self.power_of_two(biased))
    }
    /// `2^x` to within 4 millionths, for x up to 126: 0, or at most 2^-126, below -126; anything for NaN.
    #[inline(always)]
    fn exp2_fast(self, x: Self::F) -> Self::F {
        crate::exp::exp2(self, x)
    }
    /// The sums of the lanes of four vectors.
    fn sum4(self, x: [Self::F; 4]) -> [f32; 4];
    /// Lane k: the largest lane of vector k. No lane is NaN.
    fn largest_of_each(self, x: [Self::F; LANES]) -> Self::F;

    fn splat_i(self, x: i32) -> Self::I;
    /// Sixteen pieces of sixteen bytes, transposed: vector k holds bytes `4 k .. 4 k + 4` of each piece.
    fn transpose(self, pieces: [&[u8; 16]; LANES]) -> [Self::I; 4];
    /// [`transpose`](Self::transpose) of pieces that follow each other.
    #[inline(always)]
    fn transpose_rows(self, rows: &[[u8; 16]; LANES]) -> [Self::I; 4] {
        self.transpose(rows.each_ref())
    }
    /// The low half of every byte.
    fn low_nibbles(self, x: Self::I) -> Self::I;
    /// The high half of every byte.
    fn high_nibbles(self, x: Self::I) -> Self::I;
    /// Adds to each lane the inner product of its four bytes of `codes`, 0 to 15, with the four bytes of `query`, -127 to 127.
    fn dot4(self, sum: Self::I, codes: Self::I, query: i32) -> Self::I;
    /// The same with codes from -127 to 127, to each of which [`SIGNED_OFFSET`](Self::SIGNED_OFFSET) is added.
    fn dot4_signed(self, sum: Self::I, codes: Self::I, query: i32) -> Self::I;
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn to_float(self, x: Self::I) -> Self::F;

    /// Asks for the cache line at `at`. Any address is fine.
    fn prefetch<T>(self, at: *const T);

    /// The largest lane.
    #[inline(always)]
    fn largest(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] = if lanes[i] > lanes[i + width] { lanes[i] } else { lanes[i + width] };
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The sum of the lanes.
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        let zero = self.splat(0.0);
        self.sum4([x, zero, zero, zero])[0]
    }
}

/// What caches hold: f32, f16, or an f16 as two bytes at any address.
pub(crate) trait Element: Copy + Send + Sync {
    const ZERO: Self;
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F;

    /// Fewer than [`LANES`] numbers; zeros behind them.
    #[inline(always)]
    fn load_rest<S: Simd>(simd: S, from: &[Self]) -> S::F {
        let mut lanes = [Self::ZERO; LANES];
        lanes[..from.len()].copy_from_slice(from);
        Self::load(simd, &lanes)
    }
}

impl Element for f32 {
    const ZERO: f32 = 0.0;
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[f32; LANES]) -> S::F {
        simd.load(from)
    }
}

impl Element for half::f16 {
    const ZERO: half::f16 = half::f16::ZERO;
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[half::f16; LANES]) -> S::F {
        simd.load_half(bytemuck::cast_ref(from))
    }
}

impl Element for [u8; 2] {
    const ZERO: [u8; 2] = [0; 2];
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[[u8; 2]; LANES]) -> S::F {
        simd.load_half(from)
    }
}

/// Numbers as whole vectors and the rest.
pub(crate) struct Padded {
    blocks: Vec<[f32; LANES]>,
    per_row: usize,
}

impl Padded {
    /// Rows of `dim` numbers, times `factor`, each padded with zeros to whole vectors.
    pub(crate) fn new(rows: &[f32], dim: usize, factor: f32) -> Self {
        let per_row = dim.div_ceil(LANES);
        let mut blocks = vec![[0.0; LANES]; rows.len() / dim * per_row];
        for (row, blocks) in rows.chunks_exact(dim).zip(blocks.chunks_exact_mut(per_row)) {
            for (to, from) in blocks.as_flattened_mut().iter_mut().zip(row) {
                *to = from * factor;
            }
        }
        Self { blocks, per_row }
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len() / self.per_row
    }

    #[inline(always)]
    pub(crate) fn row(&self, r: usize) -> &[[f32; LANES]] {
        &self.blocks[r * self.per_row..(r + 1) * self.per_row]
    }
}

/// `R` rows against `Q` queries: `R * Q` inner products, those of the first row first. Each number of a row is loaded once.
#[inline(always)]
pub(crate) fn dots<S: Simd, E: Element, const R: usize, const Q: usize>(
    simd: S,
    rows: [&[E]; R],
    queries: [&[[f32; LANES]]; Q],
) -> [[S::F; Q]; R] {
    let (blocks, rest) = (rows[0].len() / LANES, rows[0].len() % LANES);
    let whole = rows.map(|row| &row.as_chunks::<LANES>().0[..blocks]);
    let full = queries.map(|query| &query[..blocks]);
    let zero = simd.splat(0.0);
    let mut sums = [[zero; Q]; R];
    let mut row = [zero; R];
    for j in 0..blocks {
        for r in 0..R {
            row[r] = E::load(simd, &whole[r][j]);
        }
        for q in 0..Q {
            let query = simd.load(&full[q][j]);
            for r in 0..R {
                sums[r][q] = simd.mul_add(row[r], query, sums[r][q]);
            }
        }
    }
    if rest > 0 {
        for r in 0..R {
            row[r] = E::load_rest(simd, &rows[r][blocks * LANES..]);
        }
        for q in 0..Q {
            let query = simd.load(&queries[q][blocks]);
            for r in 0..R {
                sums[r][q] = simd.mul_add(row[r], query, sums[r][q]);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests;
