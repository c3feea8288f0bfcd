//! The operations over slices: what CPU backends run once they have found the memory behind their tensors.

use super::step::{AttentionOptions, FasaStep, PolicyStep, SketchStep, Status, note};
use fasa_core::sketch::quantize_row;
use fasa_core::{Error, Result};
use fasa_cpu::{LayerCache, LayerSketch, Numbers, dense_decode, fasa_decode, policy_decode};
use half::f16;
use std::sync::PoisonError;

/// Keys and values of a layer as they lie in memory: `[kv_heads, capacity, dim]`.
pub(crate) struct Cache<'a> {
    pub keys: Numbers<'a>,
    pub values: Numbers<'a>,
    pub shape: [usize; 3],
}

impl<'a> Cache<'a> {
    fn rows(&self, len: usize, options: AttentionOptions) -> Result<LayerCache<'a>> {
        let [kv_heads, capacity, dim] = self.shape;
        let cache = LayerCache::new(self.keys, self.values, kv_heads, capacity, dim, len)?;
        Ok(cache.within(options.window.unwrap_or(usize::MAX)).capped(options.softcap.unwrap_or(0.0)))
    }
}

/// Numbers that caches hold.
pub(crate) trait Number: Copy {
    fn from_f32(x: f32) -> Self;
}

impl Number for f32 {
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Number for f16 {
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
}

/// Runs `compute` into a new buffer; zeros and a recorded failure if it fails.
fn into_new(len: usize, status: &Status, compute: impl FnOnce(&mut [f32]) -> Result<()>) -> Vec<f32> {
    let mut out = vec![0.0; len];
    let result = compute(&mut out);
    status.record(result);
    out
}

pub(crate) fn dense(
    queries: &[f32],
    cache: Cache<'_>,
    len: usize,
    options: AttentionOptions,
    status: &Status,
) -> Vec<f32> {
    into_new(queries.len(), status, |out| dense_decode(queries, &cache.rows(len, options)?, out))
}

/// `queries` `[new, query_heads, dim]`, at the last of the first `len` rows.
pub(crate) fn causal(
    queries: &[f32],
    query_heads: usize,
    cache: Cache<'_>,
    len: usize,
    options: AttentionOptions,
    status: &Status,
) -> Vec<f32> {
    into_new(queries.len(), status, |out| {
        fasa_cpu::causal_attention(queries, query_heads, &cache.rows(len, options)?, out)
    })
}

/// See [`FasaOps::append`](super::FasaOps::append): writes rows of the cache, returns the queries.
pub(crate) fn append<E: Number>(
    qkv: &[f32],
    [cos, sin]: [&[f32]; 2],
    [keys, values]: [&mut [E]; 2],
    [kv_heads, capacity, dim]: [usize; 3],
    [new, position]: [usize; 2],
) -> Vec<f32> {
    let per_token = qkv.len() / new;
    // With partial rotary positions, less than half of a head.
    let half = cos.len() / new;
    let (query_numbers, kv_numbers) = (per_token - 2 * kv_heads * dim, kv_heads * dim);
    let mut queries = Vec::with_capacity(new * query_numbers);
    let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
    for (t, (qkv, (cos, sin))) in qkv.chunks_exact(per_token).zip(angles).enumerate() {
        let (query_heads, rest) = qkv.split_at(query_numbers);
        for query in query_heads.chunks_exact(dim) {
            queries.extend(rotated(query, cos, sin));
        }
        let (new_keys, new_values) = rest.split_at(kv_numbers);
        let rows = new_keys.chunks_exact(dim).zip(new_values.chunks_exact(dim));
        for (head, (key, value)) in rows.enumerate() {
            let at = (head * capacity + position + t) * dim;
            let to = keys[at..at + dim].iter_mut();
            to.zip(rotated(key, cos, sin)).for_each(|(to, x)| *to = E::from_f32(x));
            values[at..at + dim].iter_mut().zip(value).for_each(|(to, x)| *to = E::from_f32(*x));
        }
    }
    queries
}

/// A head's numbers turned by its position, in the half-split layout; those behind the rotary ones stay.
fn rotated<'a>(x: &'a [f32], cos: &'a [f32], sin: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
    let (turning, still) = x.split_at(2 * cos.len());
    let (first, second) = turning.split_at(cos.len());
    let pairs = move || first.iter().zip(second).zip(cos.iter().zip(sin));
    let turned_first = pairs().map(|((a, b), (cos, sin))| a * cos - b * sin);
    turned_first.chain(pairs().map(|((a, b), (cos, sin))| b * cos + a * sin)).chain(still.iter().copied())
}

/// Keys to make a sketch of.
pub(crate) struct KeyRows<'a> {
    pub numbers: Numbers<'a>,
    /// KV heads, rows of each, dimensions.
    pub shape: [usize; 3],
    /// Which row of the cache the first one is.
    pub first: usize,
}

/// Where a sketch lies: codes `[heads, capacity, row_bytes]`, row scales alike.
pub(crate) struct SketchTables<'a> {
    pub codes: &'a mut [u8],
    pub scales: &'a mut [u8],
    pub capacity: usize,
}

/// Writes codes and row scales of the step's rows.
pub(crate) fn write_sketch(keys: KeyRows<'_>, tables: SketchTables<'_>, step: &SketchStep) {
    let KeyRows { numbers, shape: [kv_heads, held, dim], first } = keys;
    let SketchTables { codes, scales, capacity } = tables;
    let plan = step.plan.view();
    let precision = plan.config().precision;
    let (code_bytes, scale_bytes) = (precision.row_bytes(plan.chunks()), precision.scale_bytes());
    let mut wide = vec![0.0; dim];
    let mut write = || -> Result<()> {
        if plan.rows() % kv_heads != 0 || step.rows.end > capacity.min(first + held) {
            return Err(Error::Range { what: "plan", problem: "it belongs to a model with other heads" });
        }
        for head in 0..plan.rows() {
            let channels = plan.head(step.layer, head)?;
            let kv_head = head * kv_heads / plan.rows();
            for t in step.rows.clone() {
                let (key, at) = ((kv_head * held + t - first) * dim, head * capacity + t);
                let key = match numbers {
                    Numbers::F32(keys) => &keys[key..key + dim],
                    Numbers::F16(keys) => {
                        wide.iter_mut().zip(&keys[key..key + dim]).for_each(|(to, from)| *to = from.to_f32());
                        &wide
                    }
                    _ => return Err(Error::Range { what: "cache", problem: "its number format is unknown" }),
                };
                let code = &mut codes[at * code_bytes..(at + 1) * code_bytes];
                quantize_row(&channels, key, code, &mut scales[at * scale_bytes..(at + 1) * scale_bytes])?;
            }
        }
        Ok(())
    };
    step.status.record(write());
}

pub(crate) fn fasa(queries: &[f32], cache: Cache<'_>, codes: &[u8], scales: &[u8], step: &FasaStep) -> Vec<f32> {
    into_new(queries.len(), &step.status, |out| {
        let plan = step.plan.view();
        let capacity = cache.shape[1];
        let scales = if plan.config().precision.scale_bytes() == 0 { &[] } else { scales };
        let sketch = LayerSketch::new(codes, scales, plan.config().precision, plan.chunks(), plan.rows(), capacity)?;
        let rows = cache.rows(step.len, AttentionOptions { window: None, softcap: step.softcap })?;
        let selected = fasa_decode(step.layer, queries, &rows, &sketch, &plan, step.budget, out)?;
        note(&step.recorder, step.layer, selected);
        Ok(())
    })
}

pub(crate) fn policy(queries: &[f32], cache: Cache<'_>, step: &PolicyStep) -> Vec<f32> {
    into_new(queries.len(), &step.status, |out| {
        let rows = cache.rows(step.len, AttentionOptions { window: None, softcap: step.softcap })?;
        let mut policy = step.policy.lock().unwrap_or_else(PoisonError::into_inner);
        let selected = policy_decode(step.layer, queries, &rows, None, &mut *policy, step.budget, out)?;
        note(&step.recorder, step.layer, selected);
        Ok(())
    })
}
