//! Projections of few tokens: a weight is read once, front to back, which is all the time that a decode step takes
//! outside of attention.
//!
//! What stands before a projection (a root mean square norm) and behind it (a residual, the gate of a feed-forward block)
//! happens in the same launch. The factor of the norm is one number per token, so the sum of squares that it needs is
//! taken in the same pass as the products and multiplied in at the end.

use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use crate::numbers::{Format, number};
use crate::team::{Reduce, cube_reduce, scratch_len};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Units that share a row.
const TEAM: u32 = 32;

/// A weight on the device, `[outputs, inputs]`, as checkpoints store it.
#[derive(Debug, Clone)]
pub struct Weight {
    /// Number format.
    pub format: Format,
    /// The numbers.
    pub numbers: Handle,
    /// Rows.
    pub outputs: usize,
    /// Numbers of a row.
    pub inputs: usize,
}

/// A root mean square norm of the inputs.
#[derive(Debug, Clone)]
pub struct Norm {
    /// `[inputs]`, f32.
    pub weight: Handle,
    /// What is added to the mean square.
    pub eps: f32,
}

/// What is done with a row's sum.
#[derive(Debug, Clone)]
pub enum Finish {
    /// Nothing.
    Plain,
    /// It is added to this, `[tokens, outputs]` in f32.
    Add(Handle),
    /// The weight's first half of rows are gates of the second half: `silu(gate) * up`, half as many outputs.
    Gate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Config {
    format: Format,
    native_half: bool,
    inputs: usize,
    normed: bool,
    added: bool,
    gated: bool,
    /// Outputs of a team, and vectors of a row that a unit reads at once.
    rows: usize,
    steps: usize,
    teams: usize,
    plane: u32,
}

impl Config {
    /// Rows of the weight that a team reads.
    const fn read(&self) -> usize {
        if self.gated { 2 * self.rows } else { self.rows }
    }

    /// Numbers that a team adds up: the rows' sums and the sum of squares.
    const fn sums(&self) -> usize {
        self.read() + 1
    }
}

/// `x weightᵀ`, normed and finished: `x` is `[tokens, inputs]` in f32, the result `[tokens, outputs]` in f32.
///
/// Time: the bytes of the weight, once per token. One launch.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for a size of 0, an odd number of inputs in 16 bits, or a gate of oddly many rows.
pub fn linear(
    gpu: &Gpu,
    x: &Handle,
    tokens: usize,
    weight: &Weight,
    norm: Option<&Norm>,
    finish: &Finish,
) -> Result<Handle> {
    let per_word = weight.format.per_word();
    ensure(tokens > 0 && weight.outputs > 0 && weight.inputs > 0, "weight", "a size is 0")?;
    ensure(weight.inputs.is_multiple_of(per_word), "weight", "its rows do not fill 32-bit words")?;
    let gated = matches!(finish, Finish::Gate);
    ensure(!gated || weight.outputs.is_multiple_of(2), "weight", "half of its rows are gates")?;
    let outputs = if gated { weight.outputs / 2 } else { weight.outputs };
    let words = weight.inputs / per_word;
    let vector = [4, 2, 1].into_iter().find(|v| words.is_multiple_of(*v)).unwrap_or(1);
    let per_vector = vector * per_word;
    let piece = per_vector.min(4);
    let vectors = words / vector;
    let plane = gpu.traits.plane;
    let config = Config {
        format: weight.format,
        native_half: gpu.traits.native_half,
        inputs: weight.inputs,
        normed: norm.is_some(),
        added: matches!(finish, Finish::Add(_)),
        gated,
        rows: if gated { 1 } else { 2 },
        steps: [4, 2].into_iter().find(|s| vectors.is_multiple_of(s * TEAM as usize)).unwrap_or(1),
        teams: if plane > 0 { 4 } else { 1 },
        plane,
    };
    let out = gpu.words(tokens * outputs);
    let norm_weight = norm.map_or(x, |norm| &norm.weight);
    let residual = match finish {
        Finish::Add(residual) => (residual, tokens * outputs),
        _ => (x, 1),
    };
    let cubes = outputs.div_ceil(config.rows * config.teams);
    // A count above what a dimension of the grid may have is spread over two.
    let across = cubes.min(32_768);
    // SAFETY: the lengths are those of the shapes checked above; rows past the last output are read as the last one and not
    // written, and without a norm or a residual what stands in for them is not read.
    unsafe {
        linear_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(across as u32, cubes.div_ceil(across) as u32, tokens as u32),
            CubeDim::new_1d(TEAM * config.teams as u32),
            vector,
            piece,
            buffer(x, tokens * weight.inputs / piece),
            buffer(&weight.numbers, weight.outputs * vectors),
            buffer(norm_weight, weight.inputs / piece),
            buffer(residual.0, residual.1),
            buffer(&out, tokens * outputs),
            outputs as u32,
            norm.map_or(0.0, |norm| norm.eps),
            config,
        );
    }
    Ok(out)
}

#[cube(launch_unchecked)]
fn linear_kernel<N: Size, M: Size>(
    x: &[Vector<f32, M>],
    weight: &[Vector<u32, N>],
    norm: &[Vector<f32, M>],
    residual: &[f32],
    out: &mut [f32],
    outputs: u32,
    eps: f32,
    #[comptime] config: Config,
) {
    let per_word = comptime!(config.format.per_word());
    let (piece, width) = (M::value(), N::value());
    let pieces = comptime!(width * per_word / piece);
    let vectors = comptime!(config.inputs / (width * per_word));
    let (rows, read, steps, sums) = comptime!((config.rows, config.read(), config.steps, config.sums()));
    let team = (UNIT_POS / comptime!(TEAM)) as usize;
    let unit = (UNIT_POS % comptime!(TEAM)) as usize;
    let token = CUBE_POS_Z as usize;
    let cube = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) as usize;
    let first = (cube * comptime!(config.teams) + team) * rows;
    let last = outputs as usize - 1;

    let mut totals = Array::<f32>::new(sums);
    #[unroll]
    for r in 0..sums {
        totals[r] = 0.0f32;
    }
    let mut begin = unit;
    while begin < vectors {
        let mut words = Array::<Vector<u32, N>>::new(comptime!(steps * read));
        #[unroll]
        for s in 0..steps {
            #[unroll]
            for r in 0..read {
                // The gates, then what they are gates of.
                let row = min(first + comptime!(r % rows), last) + comptime!(r / rows) * outputs as usize;
                words[s * read + r] = weight[row * vectors + begin + comptime!(s * TEAM as usize)];
            }
        }
        #[unroll]
        for s in 0..steps {
            #[unroll]
            for p in 0..pieces {
                let at = (begin + comptime!(s * TEAM as usize)) * pieces + p;
                let mut numbers = x[token * comptime!(config.inputs / piece) + at];
                if comptime!(config.normed) {
                    #[unroll]
                    for j in 0..piece {
                        let value = numbers.extract(j);
                        totals[read] += value * value;
                    }
                    numbers *= norm[at];
                }
                #[unroll]
                for j in 0..piece {
                    let value = numbers.extract(j);
                    let i = comptime!(p * piece + j);
                    #[unroll]
                    for r in 0..read {
                        let word = words[s * read + r].extract(comptime!(i / per_word));
                        totals[r] += value * number(word, comptime!(i % per_word), config.format, config.native_half);
                    }
                }
            }
        }
        begin += comptime!(steps * TEAM as usize);
    }
    if comptime!(config.plane > 0) {
        #[unroll]
        for r in 0..sums {
            totals[r] = plane_sum(totals[r]);
        }
    } else {
        let mut scratch = Shared::<[f32]>::new_slice(comptime!(scratch_len(config.sums(), TEAM, 0)));
        cube_reduce(&mut totals, &mut scratch, Reduce::Sum, sums, TEAM, 0u32);
    }
    if unit == 0 {
        let mut factor = 1.0f32;
        if comptime!(config.normed) {
            factor = 1.0f32 / (totals[read] / comptime!(config.inputs as f32) + eps).sqrt();
        }
        #[unroll]
        for r in 0..rows {
            if first + r < outputs as usize {
                let at = token * outputs as usize + first + r;
                let mut sum = totals[r] * factor;
                if comptime!(config.gated) {
                    sum = sum / (1.0f32 + (-sum).exp()) * (totals[rows + r] * factor);
                }
                if comptime!(config.added) {
                    sum += residual[at];
                }
                out[at] = sum;
            }
        }
    }
}
