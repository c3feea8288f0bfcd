//! The operations over slices: what both CPU backends run once they have found the memory behind their tensors.

use super::step::{FasaStep, PolicyStep, SketchStep, Status, note};
use fasa_core::sketch::quantize_row;
use fasa_core::{Error, Result};
use fasa_cpu::{LayerCache, LayerSketch, dense_decode, fasa_decode, policy_decode};
use std::sync::PoisonError;

/// Keys and values of a layer as they lie in memory: `[kv_heads, capacity, dim]`.
pub(super) struct Cache<'a> {
    pub keys: &'a [f32],
    pub values: &'a [f32],
    pub shape: [usize; 3],
}

impl<'a> Cache<'a> {
    fn rows(&self, len: usize) -> Result<LayerCache<'a>> {
        let [kv_heads, capacity, dim] = self.shape;
        LayerCache::new(self.keys, self.values, kv_heads, capacity, dim, len)
    }
}

/// Runs `compute` into a new buffer; zeros and a recorded failure if it fails.
fn into_new(len: usize, status: &Status, compute: impl FnOnce(&mut [f32]) -> Result<()>) -> Vec<f32> {
    let mut out = vec![0.0; len];
    let result = compute(&mut out);
    status.record(result);
    out
}

pub(super) fn dense(queries: &[f32], cache: Cache<'_>, len: usize, status: &Status) -> Vec<f32> {
    into_new(queries.len(), status, |out| dense_decode(queries, &cache.rows(len)?, out))
}

/// Codes and row scales of the step's rows.
pub(super) fn sketch(keys: &[f32], shape: [usize; 3], step: &SketchStep) -> (Vec<u8>, Vec<u8>) {
    let [kv_heads, capacity, dim] = shape;
    let plan = step.plan.view();
    let precision = plan.config().precision;
    let (code_bytes, scale_bytes) = (precision.row_bytes(plan.chunks()), precision.scale_bytes());
    let rows = step.rows.len();
    let mut codes = vec![0; plan.rows() * rows * code_bytes];
    let mut scales = vec![0; plan.rows() * rows * scale_bytes];
    let mut write = || -> Result<()> {
        if plan.rows() % kv_heads != 0 || step.rows.end > capacity {
            return Err(Error::Range { what: "plan", problem: "it belongs to a model with other heads" });
        }
        for head in 0..plan.rows() {
            let channels = plan.head(step.layer, head)?;
            let kv_head = head * kv_heads / plan.rows();
            for (i, t) in step.rows.clone().enumerate() {
                let at = head * rows + i;
                let key = &keys[(kv_head * capacity + t) * dim..][..dim];
                let code = &mut codes[at * code_bytes..(at + 1) * code_bytes];
                quantize_row(&channels, key, code, &mut scales[at * scale_bytes..(at + 1) * scale_bytes])?;
            }
        }
        Ok(())
    };
    step.status.record(write());
    if scale_bytes == 0 {
        scales = vec![0]; // a tensor cannot be empty on every backend
    }
    (codes, scales)
}

/// Shapes of what [`sketch`] returns.
pub(super) fn sketch_shapes(step: &SketchStep) -> ([usize; 3], [usize; 3]) {
    let plan = step.plan.view();
    let (precision, rows) = (plan.config().precision, step.rows.len());
    let codes = [plan.rows(), rows, precision.row_bytes(plan.chunks())];
    let scales = match precision.scale_bytes() {
        0 => [1, 1, 1],
        bytes => [plan.rows(), rows, bytes],
    };
    (codes, scales)
}

pub(super) fn fasa(queries: &[f32], cache: Cache<'_>, codes: &[u8], scales: &[u8], step: &FasaStep) -> Vec<f32> {
    into_new(queries.len(), &step.status, |out| {
        let plan = step.plan.view();
        let capacity = cache.shape[1];
        let scales = if plan.config().precision.scale_bytes() == 0 { &[] } else { scales };
        let sketch = LayerSketch::new(codes, scales, plan.config().precision, plan.chunks(), plan.rows(), capacity)?;
        let rows = cache.rows(step.len)?;
        let selected = fasa_decode(step.layer, queries, &rows, &sketch, &plan, step.budget, out)?;
        note(&step.recorder, step.layer, selected);
        Ok(())
    })
}

pub(super) fn policy(queries: &[f32], cache: Cache<'_>, step: &PolicyStep) -> Vec<f32> {
    into_new(queries.len(), &step.status, |out| {
        let rows = cache.rows(step.len)?;
        let mut policy = step.policy.lock().unwrap_or_else(PoisonError::into_inner);
        let selected = policy_decode(step.layer, queries, &rows, None, &mut *policy, step.budget, out)?;
        note(&step.recorder, step.layer, selected);
        Ok(())
    })
}
