//! How a decode step attends.

use crate::config::ModelConfig;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use fasa_core::policy::{CachePolicy, OwnedPlan};
use fasa_core::profile::ProfileView;
use fasa_core::{Budget, FasaConfig};
use std::sync::{Arc, Mutex};

/// A policy that decode operations can share.
pub type SharedPolicy = Arc<Mutex<dyn CachePolicy + Send>>;

/// How decode steps attend. Prefill is always dense.
#[derive(Clone)]
#[non_exhaustive]
pub enum Method {
    /// To every token.
    Dense,
    /// FASA with a budget.
    Fasa {
        /// The dominant chunks.
        plan: Arc<OwnedPlan>,
        /// Tokens kept per step.
        budget: Budget,
        /// Steps with fewer tokens in the cache are dense: reading few rows is faster than choosing among them.
        dense_below: usize,
    },
    /// Any policy of `fasa-core`, with a budget. Runs on the host, head after head: for comparing methods, not for speed.
    Policy {
        /// The policy.
        policy: SharedPolicy,
        /// Tokens kept per step.
        budget: Budget,
        /// The first layers, this many, attend to everything.
        dense_layers: u32,
    },
}

impl std::fmt::Debug for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Method::Dense => f.write_str("Dense"),
            Method::Fasa { budget, plan, .. } => write!(f, "Fasa({budget:?}, {:?})", plan.view().config()),
            Method::Policy { budget, .. } => write!(f, "Policy({budget:?})"),
        }
    }
}

impl Method {
    /// FASA by a profile.
    ///
    /// # Errors
    /// [`Error::Request`] for a budget of 0 or a chunk count that the model does not have, or if the profile was
    /// calibrated for another scope or criterion than `config` asks for.
    pub fn fasa(profile: &ProfileView<'_>, config: FasaConfig, budget: Budget) -> Result<Self> {
        check(budget)?;
        if profile.scope() != config.chunk_scope || profile.criterion() != config.criterion {
            return Err(Error::request(
                "profile",
                format!(
                    "ranks chunks by {} per {}, the settings ask for {} per {}",
                    profile.criterion().name(),
                    profile.scope().name(),
                    config.criterion.name(),
                    config.chunk_scope.name()
                ),
                "calibrate with the same preset, or change the settings",
            ));
        }
        let plan = OwnedPlan::new(profile, config).map_err(|e| {
            Error::request("chunks", format!("does not fit the model: {e}"), "use at most half the head dimension")
        })?;
        Ok(Self::Fasa { plan: Arc::new(plan), budget, dense_below: 0 })
    }

    /// The same method, dense with fewer than `tokens` in the cache. Only FASA has such a bound: policies are there to be
    /// compared, and what is compared must not change with the length.
    #[must_use]
    pub fn dense_below(mut self, tokens: usize) -> Self {
        if let Method::Fasa { dense_below, .. } = &mut self {
            *dense_below = tokens;
        }
        self
    }

    /// Any policy.
    ///
    /// # Errors
    /// [`Error::Request`] for a budget of 0.
    pub fn policy(policy: impl CachePolicy + Send + 'static, budget: Budget, dense_layers: u32) -> Result<Self> {
        check(budget)?;
        Ok(Self::Policy { policy: Arc::new(Mutex::new(policy)), budget, dense_layers })
    }

    /// Tokens that a step with `seen` tokens in the cache attends to.
    pub fn kept(&self, seen: usize) -> usize {
        match self {
            Method::Dense => seen,
            Method::Fasa { dense_below, .. } if seen < *dense_below => seen,
            Method::Fasa { budget, .. } | Method::Policy { budget, .. } => budget.tokens(seen),
        }
    }

    /// Layers that attend to everything even so.
    pub fn dense_layers(&self, layers: usize) -> usize {
        match self {
            Method::Dense => layers,
            Method::Fasa { plan, .. } => (plan.view().config().dense_layers as usize).min(layers),
            Method::Policy { dense_layers, .. } => (*dense_layers as usize).min(layers),
        }
    }

    /// Whether `layer`, which has this sliding window, attends to fewer tokens than there are once the budget is exceeded.
    /// Layers with a window attend to all tokens in it.
    pub fn is_sparse(&self, layer: usize, window: Option<usize>) -> bool {
        window.is_none() && layer >= self.dense_layers(usize::MAX)
    }

    /// Bytes of keys, values and sketch that one decode step reads with `seen` tokens in the cache, all layers, counting
    /// each read row once per set of tokens it is in, in a cache of `dtype`.
    pub fn bytes_per_step(&self, config: &ModelConfig, seen: usize, dtype: Dtype) -> u64 {
        let row = (2 * config.head_dim * dtype.bytes()) as u64;
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let kept = self.kept(seen);
        let dense_layer = |layer| (kv_heads * seen.min(config.window(layer).unwrap_or(seen))) as u64 * row;
        let sparse_layer = match self {
            Method::Dense => 0,
            Method::Fasa { plan, .. } => {
                let plan = plan.view();
                let precision = plan.config().precision;
                let sketch = plan.rows() * seen * (precision.row_bytes(plan.chunks()) + precision.scale_bytes());
                let sets = plan.config().token_scope.rows(heads, kv_heads);
                sketch as u64 + (sets * kept) as u64 * row
            }
            // What a policy reads to decide is its own affair; this counts the rows it then attends to.
            Method::Policy { policy, .. } => {
                let scope = policy.lock().map(|p| p.scope()).unwrap_or(fasa_core::Scope::KvHead);
                (scope.rows(heads, kv_heads) * kept) as u64 * row
            }
        };
        let layers = (0..config.num_hidden_layers).map(|layer| match self.is_sparse(layer, config.window(layer)) {
            true if kept < seen => sparse_layer,
            _ => dense_layer(layer),
        });
        layers.sum()
    }
}

fn check(budget: Budget) -> Result<()> {
    budget.validate().map_err(|_| {
        Error::request(
            "budget",
            "keeps no token, or more than there are",
            "use at least 1 token, or a ratio from 0 to 1",
        )
    })
}
