//! Decode steps on a GPU whose launches are recorded once and run again: to start each of some hundred kernels takes the host
//! about as long as a small model's step takes the device.
//!
//! What changes from token to token (the token, its angles, how many there are) lies in buffers that are overwritten. A recording
//! holds for one cache, one way to attend, and lengths up to a bound.

use super::layer::Turning;
use super::{Decoder, Watch, to_host};
use crate::cache::KvCache;
use crate::error::{Error, Result};
use crate::method::Method;
use crate::ops;
use crate::rope::Angles;
use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Int, Tensor, TensorCreationOptions, TensorData};
use fasa_core::policy::OwnedPlan;
use fasa_cube::tape::Tape;
use std::sync::Arc;
use std::thread::ThreadId;

/// Recordings that a cache keeps.
const MOST: usize = 2;

/// A way to attend, and its recorded step once it was taken twice.
#[derive(Debug)]
pub(crate) struct Recorded {
    way: Way,
    step: Option<Step>,
}

/// How all layers attend.
#[derive(Debug)]
enum Way {
    Dense,
    Sparse { plan: Arc<OwnedPlan>, kept: usize, sinks: usize, recent: usize },
}

#[derive(Debug)]
struct Step {
    tape: Tape,
    inputs: Inputs,
    /// What the tape writes.
    logits: Tensor<2>,
    /// Tokens that it holds for.
    most: usize,
    /// Launches are in the order of a thread.
    thread: ThreadId,
    /// See [`ops::cube::copies`].
    copies: u64,
}

/// What is overwritten before a step.
#[derive(Debug)]
struct Inputs {
    token: Tensor<1, Int>,
    angles: Angles,
    len: Tensor<1, Int>,
}

impl Way {
    fn of(method: &Method, seen: usize) -> Self {
        match method {
            Method::Fasa { plan, .. } if method.kept(seen) < seen => {
                let kept = method.kept(seen);
                let (sinks, recent_from) = plan.view().config().guarantees.forced(seen, kept);
                Way::Sparse { plan: plan.clone(), kept, sinks, recent: seen - recent_from }
            }
            _ => Way::Dense,
        }
    }
}

impl PartialEq for Way {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Way::Dense, Way::Dense) => true,
            (Way::Sparse { plan: a, kept, sinks, recent }, Way::Sparse { plan: b, kept: k, sinks: s, recent: r }) => {
                Arc::ptr_eq(a, b) && (kept, sinks, recent) == (k, s, r)
            }
            _ => false,
        }
    }
}

impl Inputs {
    fn new(token: u32, [cos, sin]: &[Vec<f32>; 2], len: usize, device: &Device) -> Self {
        let word = |number: usize| {
            let options = TensorCreationOptions::new(device.clone()).with_dtype(DType::I32);
            Tensor::from_data(TensorData::new(vec![number as i32], [1]), options)
        };
        Self { token: word(token as usize), angles: Angles::of_one(cos, sin, device), len: word(len) }
    }

    fn overwrite(&self, token: u32, [cos, sin]: &[Vec<f32>; 2], len: usize) {
        ops::overwrite_int(&self.token, token);
        ops::overwrite(&self.angles.cos(), cos);
        ops::overwrite(&self.angles.sin(), sin);
        ops::overwrite_int(&self.len, len as u32);
    }
}

impl Decoder {
    /// The next token's logits by a recorded step, which is recorded first if this way to attend was taken before. `None` if
    /// it has to be an ordinary step.
    pub(super) fn step_again(&self, token: u32, cache: &mut KvCache, method: &Method) -> Result<Option<Tensor<2>>> {
        let (position, seen) = (cache.len(), cache.len() + 1);
        if self.local_rope.is_some() || self.layers.iter().any(|layer| layer.turning != Turning::Usual) {
            return Ok(None);
        }
        let way = Way::of(method, seen);
        let plan = match &way {
            Way::Sparse { plan, .. } => Some(&**plan),
            Way::Dense => None,
        };
        if !cache.stays_on_device(plan) {
            return Ok(None);
        }
        if let Way::Sparse { plan, .. } = &way
            && cache.sketched_tokens(plan) != Some(position)
        {
            return Ok(None);
        }
        let Some(known) = cache.recorded.iter().position(|recorded| recorded.way == way) else {
            if cache.recorded.len() == MOST {
                cache.recorded.remove(0);
            }
            cache.recorded.push(Recorded { way, step: None });
            return Ok(None);
        };
        let step = cache.recorded[known].step.take();
        let holds = |step: &Step| {
            step.most >= seen && step.thread == std::thread::current().id() && step.copies == ops::cube::copies()
        };
        let angles = self.rope.numbers(position, 1, cache.expected());
        let (step, logits) = match step.filter(holds) {
            Some(step) => {
                step.inputs.overwrite(token, &angles, seen);
                step.tape.run()?;
                if matches!(way, Way::Sparse { .. }) {
                    cache.note_sketched(seen);
                }
                // The next step writes over the tape's own.
                let logits = step.logits.clone().mul_scalar(1.0);
                (step, logits)
            }
            None => self.record(Inputs::new(token, &angles, seen, &self.device), seen, cache, method)?,
        };
        // Where making room has moved what other recordings use, all are forgotten.
        if let Some(recorded) = cache.recorded.get_mut(known) {
            recorded.step = Some(step);
        }
        cache.advance(1);
        Ok(Some(logits))
    }

    fn record(&self, inputs: Inputs, seen: usize, cache: &mut KvCache, method: &Method) -> Result<(Step, Tensor<2>)> {
        let DispatchDevice::Cube(device) = self.device.as_dispatch() else {
            return Err(Error::request("device", "records no steps", "use a GPU"));
        };
        // More room than that would have dense attention start cubes for rows that are not there.
        let most = cache.capacity().min(seen + (seen / 16).max(256));
        let mut first = Vec::new();
        let (tape, logits) = Tape::record(
            &device.client(),
            || {
                // Both runs are of the same token.
                cache.truncate(seen - 1);
                ops::with_length(&inputs.len, most, || {
                    let ids = inputs.token.clone();
                    let watch = &mut Watch::default();
                    let x = self.through_layers(ids, &inputs.angles, [None, None], cache, method, watch)?;
                    Ok::<_, Error>(self.logits(x))
                })
            },
            |logits| {
                first = to_host(logits)?;
                Ok(())
            },
        )?;
        let (thread, copies) = (std::thread::current().id(), ops::cube::copies());
        let width = first.len();
        let first = Tensor::from_data(TensorData::new(first, [1, width]), &self.device);
        Ok((Step { tape, inputs, logits, most, thread, copies }, first))
    }
}
