//! Projections of few tokens: what a decode step does with weights.
//!
//! A step reads every weight once, so the memory's speed is the bound. Each row of a weight is read once for all tokens,
//! whatever its format, and multiplied in single precision; activations are never rounded. Rows are split over threads
//! ([`crate::team`]) in a few long pieces. How rows are split does not change a bit of the result.

use crate::exp::exp;
use crate::isa::dispatch;
use crate::layer::Numbers;
use crate::simd::{Element, LANES, Padded, Simd};
use crate::team::share_each;
use fasa_core::{Error, Result};
use half::f16;
use rayon::prelude::*;

/// Most tokens that [`linear`] is made for. It works for more, but a matrix product is faster then.
pub const FEW_TOKENS: usize = 8;

/// Weights are split into pieces of at least so many bytes.
const PIECE_BYTES: usize = 32 * 1024;

/// Pieces per thread, so that one that was held up leaves the rest to the others.
const PIECES_PER_THREAD: usize = 4;

/// Lines of 64 bytes between what is used and what is asked for: 2 KiB.
const LINES_AHEAD: usize = 32;

/// Pieces begin at multiples of this many rows, so that no two threads write one cache line of the result.
const ROWS_PER_STEP: usize = 16;

/// `out = x weightᵀ`: `x` is `[tokens, inputs]`, `weight` `[outputs, inputs]`, `out` `[tokens, outputs]`.
///
/// # Errors
/// [`Error::Length`] if the sizes disagree.
pub fn linear<'a>(x: &[f32], weight: impl Into<Numbers<'a>>, inputs: usize, out: &mut [f32]) -> Result<()> {
    project(x, weight.into(), inputs, out, |_, sum| sum)
}

/// `out += x weightᵀ`: as [`linear`], for a projection that is added to the residual stream.
///
/// # Errors
/// As [`linear`].
pub fn linear_add<'a>(x: &[f32], weight: impl Into<Numbers<'a>>, inputs: usize, out: &mut [f32]) -> Result<()> {
    project(x, weight.into(), inputs, out, |before, sum| before + sum)
}

/// The gated half of a feed-forward: `out = silu(x gateᵀ) * (x upᵀ)`. `gate_up` is `[2 * inner, inputs]`, the gate's rows
/// first; `out` is `[tokens, inner]`.
///
/// # Errors
/// As [`linear`].
pub fn swiglu<'a>(x: &[f32], gate_up: impl Into<Numbers<'a>>, inputs: usize, out: &mut [f32]) -> Result<()> {
    let weight = gate_up.into();
    let tokens = tokens(x, inputs)?;
    check(weight, 2 * out.len() / tokens * inputs)?;
    let (inner, x) = (out.len() / tokens, Padded::new(x, inputs, 1.0));
    by_rows(inner, weight.bytes(), tokens, out, |from, sums| {
        // [2, rows, tokens]: the piece's gates, then its ups.
        let mut both = vec![0.0; 2 * sums.len()];
        let (gate, up) = both.split_at_mut(sums.len());
        sums_of_rows(&x, weight, inputs, from, gate);
        sums_of_rows(&x, weight, inputs, inner + from, up);
        gated(gate, up, sums);
    });
    Ok(())
}

/// [`swiglu`] of projections that are there already, for many tokens: `out = silu(gate) * up`. `gate_up` is
/// `[tokens, 2 * inner]`, each token's gates first; `out` is `[tokens, inner]`.
///
/// # Errors
/// [`Error::Length`] if the sizes disagree.
pub fn gate(gate_up: &[f32], inner: usize, out: &mut [f32]) -> Result<()> {
    if inner == 0 || !out.len().is_multiple_of(inner) || gate_up.len() != 2 * out.len() {
        return Err(Error::Length { what: "gate_up", want: 2 * out.len(), got: gate_up.len() });
    }
    out.par_chunks_exact_mut(inner).zip(gate_up.par_chunks_exact(2 * inner)).for_each(|(out, gate_up)| {
        let (gate, up) = gate_up.split_at(inner);
        gated(gate, up, out);
    });
    Ok(())
}

/// Root mean square norm of each token: `x / sqrt(mean(x²) + eps) * weight`. `x` and `out` are `[tokens, weight.len()]`.
///
/// # Errors
/// [`Error::Length`] if the sizes disagree.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> Result<()> {
    tokens(x, weight.len())?;
    if out.len() != x.len() {
        return Err(Error::Length { what: "out", want: x.len(), got: out.len() });
    }
    match weight.len() {
        width if out.len() > FEW_TOKENS * width => {
            let rows = out.par_chunks_mut(FEW_TOKENS * width).zip(x.par_chunks(FEW_TOKENS * width));
            rows.for_each(|(out, x)| norm_rows(x, weight, eps, out));
        }
        _ => norm_rows(x, weight, eps, out),
    }
    Ok(())
}

/// Numbers in single precision, as matrix products over many tokens want their weights. Spread over rayon's threads.
///
/// # Errors
/// [`Error::Length`] if the sizes disagree.
pub fn widen(numbers: &[f16], out: &mut [f32]) -> Result<()> {
    if out.len() != numbers.len() {
        return Err(Error::Length { what: "out", want: numbers.len(), got: out.len() });
    }
    const PIECE: usize = 64 * 1024;
    out.par_chunks_mut(PIECE).zip(numbers.par_chunks(PIECE)).for_each(|(out, numbers)| widen_piece(numbers, out));
    Ok(())
}

/// How many tokens there are in `x`.
fn tokens(x: &[f32], inputs: usize) -> Result<usize> {
    if inputs == 0 || x.is_empty() || !x.len().is_multiple_of(inputs) {
        return Err(Error::Length { what: "x", want: x.len().div_ceil(inputs.max(1)).max(1) * inputs, got: x.len() });
    }
    Ok(x.len() / inputs)
}

fn check(weight: Numbers<'_>, want: usize) -> Result<()> {
    if weight.len() != want || want == 0 {
        return Err(Error::Length { what: "weight", want: want.max(1), got: weight.len() });
    }
    Ok(())
}

/// `out[t, r] = put(out[t, r], x[t] · weight[r])`.
fn project(
    x: &[f32],
    weight: Numbers<'_>,
    inputs: usize,
    out: &mut [f32],
    put: impl Fn(f32, f32) -> f32 + Sync,
) -> Result<()> {
    let tokens = tokens(x, inputs)?;
    check(weight, out.len() / tokens * inputs)?;
    let (outputs, x) = (out.len() / tokens, Padded::new(x, inputs, 1.0));
    by_rows(outputs, weight.bytes(), tokens, out, |from, out| {
        let mut sums = vec![0.0; out.len()];
        sums_of_rows(&x, weight, inputs, from, &mut sums);
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = put(*out, sum));
    });
    Ok(())
}

/// Splits `[tokens, rows]` into pieces of rows and has `work` fill each, as `[rows, tokens]` from a first row on. What was
/// in `out` is there before.
fn by_rows(rows: usize, bytes: usize, tokens: usize, out: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
    let pieces = (PIECES_PER_THREAD * rayon::current_num_threads()).min(bytes / PIECE_BYTES).max(1);
    let per_piece = rows.div_ceil(pieces).next_multiple_of(ROWS_PER_STEP);
    let each = |out: &mut [f32]| {
        if per_piece >= rows {
            work(0, out);
        } else {
            share_each(out.chunks_mut(per_piece * tokens), |i, out| work(i * per_piece, out));
        }
    };
    if tokens == 1 {
        return each(out);
    }
    let mut columns = vec![0.0; out.len()];
    for (t, row) in out.chunks_exact(rows).enumerate() {
        row.iter().zip(columns[t..].iter_mut().step_by(tokens)).for_each(|(from, to)| *to = *from);
    }
    each(&mut columns);
    for (t, row) in out.chunks_exact_mut(rows).enumerate() {
        row.iter_mut().zip(columns[t..].iter().step_by(tokens)).for_each(|(to, from)| *to = *from);
    }
}

/// Inner products of the tokens with rows of a weight from row `from` on: `[rows, tokens]`.
fn sums_of_rows(x: &Padded, weight: Numbers<'_>, inputs: usize, from: usize, sums: &mut [f32]) {
    let range = from * inputs..(from + sums.len() / x.len()) * inputs;
    match weight {
        Numbers::F32(weight) => rows(x, &weight[range], inputs, sums),
        Numbers::F16(weight) => rows(x, &weight[range], inputs, sums),
    }
}

dispatch! {
    fn rows[E: Element](x: &Padded, weight: &[E], inputs: usize, sums: &mut [f32]) = rows_kernel
}

#[inline(always)]
fn rows_kernel<S: Simd, E: Element>(simd: S, x: &Padded, weight: &[E], inputs: usize, sums: &mut [f32]) {
    let tokens = x.len();
    for (weight, sums) in weight.chunks(4 * inputs).zip(sums.chunks_mut(4 * tokens)) {
        let rows = sums.len() / tokens;
        // Rows past the end repeat the last one; their sums are dropped.
        let row = |r: usize| &weight[r.min(rows - 1) * inputs..][..inputs];
        let mut put = |t: usize, of_rows: [f32; 4]| {
            for r in 0..rows {
                sums[r * tokens + t] = of_rows[r];
            }
        };
        let mut t = 0;
        while t < tokens {
            match (tokens - t, S::WIDE) {
                (4.., true) => {
                    let queries = [x.row(t), x.row(t + 1), x.row(t + 2), x.row(t + 3)];
                    let mut products = [[simd.splat(0.0); 4]; 4];
                    for r in 0..4 {
                        products[r] = product(simd, row(r), queries);
                    }
                    for q in 0..4 {
                        put(t + q, simd.sum4(std::array::from_fn(|r| products[r][q])));
                    }
                    t += 4;
                }
                _ => {
                    let mut products = [simd.splat(0.0); 4];
                    for r in 0..4 {
                        [products[r]] = product(simd, row(r), [x.row(t)]);
                    }
                    put(t, simd.sum4(products));
                    t += 1;
                }
            }
        }
    }
}

/// One row against `Q` tokens, in four running sums so that adding never waits. Memory is read front to back: tiles of
/// several rows, as attention has them, take two to four times as long here, because rows of a weight are long and the
/// machine fetches ahead well only along one.
#[inline(always)]
fn product<S: Simd, E: Element, const Q: usize>(simd: S, row: &[E], x: [&[[f32; LANES]]; Q]) -> [S::F; Q] {
    let (blocks, rest) = row.as_chunks::<LANES>();
    let (fours, single) = blocks.as_chunks::<4>();
    let mut sums = [[simd.splat(0.0); Q]; 4];
    for (j, four) in fours.iter().enumerate() {
        // Rows follow each other, so that what lies ahead is read next, or is not there to be read.
        let ahead = four.as_ptr().cast::<[u8; 64]>().wrapping_add(LINES_AHEAD);
        for line in 0..size_of::<[[E; LANES]; 4]>() / 64 {
            simd.prefetch(ahead.wrapping_add(line));
        }
        for k in 0..4 {
            let weight = E::load(simd, &four[k]);
            for q in 0..Q {
                sums[k][q] = simd.mul_add(weight, simd.load(&x[q][4 * j + k]), sums[k][q]);
            }
        }
    }
    for k in 0..single.len() {
        let weight = E::load(simd, &single[k]);
        for q in 0..Q {
            sums[k][q] = simd.mul_add(weight, simd.load(&x[q][4 * fours.len() + k]), sums[k][q]);
        }
    }
    if !rest.is_empty() {
        let weight = E::load_rest(simd, rest);
        for q in 0..Q {
            sums[3][q] = simd.mul_add(weight, simd.load(&x[q][blocks.len()]), sums[3][q]);
        }
    }
    std::array::from_fn(|q| simd.add(simd.add(sums[0][q], sums[1][q]), simd.add(sums[2][q], sums[3][q])))
}

dispatch! {
    /// `out = silu(gate) * up`.
    fn gated(gate: &[f32], up: &[f32], out: &mut [f32]) = gated_kernel
}

#[inline(always)]
fn gated_kernel<S: Simd>(simd: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((gate, up), out) in gate.chunks(LANES).zip(up.chunks(LANES)).zip(out.chunks_mut(LANES)) {
        // silu(x) = x / (1 + e^-x)
        let (mut silu, mut negated) = ([0.0; LANES], [0.0; LANES]);
        negated.iter_mut().zip(gate).for_each(|(negated, gate)| *negated = -gate);
        let denominator = simd.add(exp(simd, simd.load(&negated)), simd.splat(1.0));
        simd.store(denominator, &mut silu);
        for (((out, gate), up), denominator) in out.iter_mut().zip(gate).zip(up).zip(silu) {
            *out = gate / denominator * up;
        }
    }
}

dispatch! {
    fn norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = norm_rows_kernel
}

#[inline(always)]
fn norm_rows_kernel<S: Simd>(simd: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let (blocks, rest) = x.as_chunks::<LANES>();
        let mut squares = simd.splat(0.0);
        for block in blocks {
            let x = simd.load(block);
            squares = simd.mul_add(x, x, squares);
        }
        let tail: f32 = rest.iter().map(|x| x * x).sum();
        let factor = 1.0 / ((simd.sum(squares) + tail) / width as f32 + eps).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * factor * weight;
        }
    }
}

dispatch! {
    fn widen_piece(numbers: &[f16], out: &mut [f32]) = widen_kernel
}

#[inline(always)]
fn widen_kernel<S: Simd>(simd: S, numbers: &[f16], out: &mut [f32]) {
    let ((numbers, rest), (out, out_rest)) = (numbers.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
    for (numbers, out) in numbers.iter().zip(out) {
        simd.store(f16::load(simd, numbers), out);
    }
    out_rest.iter_mut().zip(rest).for_each(|(out, number)| *out = number.to_f32());
}

#[cfg(test)]
mod tests;
