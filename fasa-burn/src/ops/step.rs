//! What a decode operation needs beside tensors.

use crate::error::{Error, Result};
use crate::method::SharedPolicy;
use fasa_core::policy::OwnedPlan;
use fasa_cpu::Selected;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Where an operation leaves its failure.
#[derive(Debug, Clone, Default)]
pub struct Status(Arc<Mutex<Option<fasa_core::Error>>>);

impl Status {
    /// Keeps the first failure.
    pub(crate) fn record<T>(&self, result: fasa_core::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                None
            }
        }
    }

    pub(crate) fn into_result(self) -> Result<()> {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(Error::Core(error)),
            None => Ok(()),
        }
    }
}

/// What a layer's attention has beyond the usual.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AttentionOptions {
    /// Rows that a token attends to at most, its own and those before; all if none.
    pub window: Option<usize>,
    /// Scores are capped: `cap * tanh(score / cap)`, after their division by `√head_dim`.
    pub softcap: Option<f32>,
}

impl AttentionOptions {
    /// # Errors
    /// [`fasa_core::Error::Range`] if there is anything: for backends that compute plain attention only.
    pub fn expect_plain(&self) -> fasa_core::Result<()> {
        match self {
            Self { window: None, softcap: None } => Ok(()),
            _ => Err(fasa_core::Error::Range {
                what: "layer",
                problem: "sliding windows and capped scores are not computed on this device",
            }),
        }
    }
}

/// Collects the tokens that decode steps attended to, layer after layer: for tests and evaluation.
pub type Recorder = Arc<Mutex<Vec<(usize, Selected)>>>;

/// Which sketch rows to make.
#[derive(Debug, Clone)]
pub struct SketchStep {
    /// Layer, from 0.
    pub layer: usize,
    /// Rows of the cache.
    pub rows: Range<usize>,
    /// The channels.
    pub plan: Arc<OwnedPlan>,
    /// Where a failure goes.
    pub status: Status,
}

/// One FASA step of one layer.
#[derive(Debug, Clone)]
pub struct FasaStep {
    /// Layer, from 0.
    pub layer: usize,
    /// Rows of the cache in use, the current token's included.
    pub len: usize,
    /// Tokens kept.
    pub budget: usize,
    /// See [`AttentionOptions::softcap`]. It changes what the kept tokens weigh, not which are kept.
    pub softcap: Option<f32>,
    /// The channels.
    pub plan: Arc<OwnedPlan>,
    /// Where the chosen tokens go.
    pub recorder: Option<Recorder>,
    /// Where a failure goes.
    pub status: Status,
}

/// One step of one layer under any policy.
#[derive(Clone)]
pub struct PolicyStep {
    /// Layer, from 0.
    pub layer: usize,
    /// Rows of the cache in use, the current token's included.
    pub len: usize,
    /// Tokens kept.
    pub budget: usize,
    /// See [`AttentionOptions::softcap`]. It changes what the kept tokens weigh, not which are kept.
    pub softcap: Option<f32>,
    /// The policy.
    pub policy: SharedPolicy,
    /// Where the chosen tokens go.
    pub recorder: Option<Recorder>,
    /// Where a failure goes.
    pub status: Status,
}

pub(crate) fn note(recorder: &Option<Recorder>, layer: usize, selected: Selected) {
    if let Some(recorder) = recorder {
        recorder.lock().unwrap_or_else(PoisonError::into_inner).push((layer, selected));
    }
}
