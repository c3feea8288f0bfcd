//! A method, ready to run on any prompt.

use super::profiles::{Profiles, name_of};
use super::spec::{Name, Settings, Spec};
use crate::settings::FasaArgs;
use anyhow::{Context, Result};
use fasa_burn::config::ModelConfig;
use fasa_burn::evicting::Evicting;
use fasa_burn::method::Method;
use fasa_burn::model::Decoder;
use fasa_burn::trace::Trace;
use fasa_core::budget::{Schedule, TopP};
use fasa_core::importance::Importance;
use fasa_core::policy::quest::PAGE;
use fasa_core::policy::{
    CachePolicy, CacheShape, EvictingPolicy, Fasa, H2o, Memory, Oracle, OwnedPlan, Quest, RKv, Random, Ranked,
    Selection, SnapKv, Sparq, Step, Streaming, Tova,
};
use fasa_core::profile::ProfileView;
use fasa_core::select::scratch_len;
use fasa_core::{Budget, Scope};
use std::sync::Arc;

/// A method, ready to run.
pub struct Contender {
    /// What reports call it.
    pub label: String,
    /// The same without the number of chunks, if it has chunks.
    pub family: Option<String>,
    /// Checksum of its profile, if it has one.
    pub profile: Option<String>,
    name: Name,
    settings: Settings,
    plan: Option<Arc<OwnedPlan>>,
}

/// Makes the method for one prompt and a budget.
pub type Maker<'t> = Box<dyn Fn(Budget) -> Result<Method> + 't>;

impl Contender {
    /// Finds the profile that a method needs.
    ///
    /// # Errors
    /// If there is none, or it does not fit the settings.
    pub fn new(spec: &Spec, args: &FasaArgs, profiles: &mut Profiles<'_>) -> Result<Self> {
        let (settings, label) = (spec.settings(args)?, spec.label(args)?);
        let mut this = Self { label, family: None, profile: None, name: spec.name, settings, plan: None };
        if let Some(preset) = spec.name.preset() {
            let bytes = profiles.find(&this.settings, preset).with_context(|| format!("method {}", this.label))?;
            let plan = OwnedPlan::new(&ProfileView::parse(&bytes)?, this.settings.config)
                .with_context(|| format!("method {}: use at most half the head dimension", this.label))?;
            this.profile = Some(name_of(&bytes)?);
            this.family = Some(spec.family(args)?);
            this.plan = Some(Arc::new(plan));
        }
        Ok(this)
    }

    /// Whether it reads everything.
    pub fn is_dense(&self) -> bool {
        self.name == Name::Dense
    }

    /// Queries of how many of a prompt's last tokens it looks at.
    pub fn window(&self) -> usize {
        match self.name {
            Name::Snapkv => Evicting::window(&self.snapkv()),
            Name::H2o => Evicting::window(&self.h2o()),
            Name::Tova => Evicting::window(&self.tova()),
            Name::Rkv => Evicting::window(&self.rkv()),
            _ => 0,
        }
    }

    fn snapkv(&self) -> SnapKv {
        SnapKv::default().with_guarantees(self.settings.config.guarantees)
    }

    fn h2o(&self) -> H2o {
        H2o::default().with_guarantees(self.settings.config.guarantees)
    }

    fn tova(&self) -> Tova {
        Tova::default().with_guarantees(self.settings.config.guarantees)
    }

    fn rkv(&self) -> RKv {
        RKv::default().with_guarantees(self.settings.config.guarantees)
    }

    /// Looks at a prompt once, for all budgets. `trace` holds the queries of its last [`window`](Self::window) tokens, and
    /// `room` is how many tokens the context may grow to.
    ///
    /// # Errors
    /// If the method fails on the prompt.
    pub fn read<'t>(&'t self, decoder: &Decoder, trace: Option<&'t Trace>, room: usize) -> Result<Maker<'t>> {
        let config = decoder.config();
        let (dense, guarantees) = (self.settings.config.dense_layers, self.settings.config.guarantees);
        let (scope, layers) = (self.settings.scope, config.num_hidden_layers);
        Ok(match self.name {
            Name::Dense => Box::new(|_| Ok(Method::Dense)),
            Name::Default | Name::Paper => {
                let plan = self.plan.clone().context("a FASA method has a plan")?;
                Box::new(move |budget| self.fasa(&plan, budget, layers))
            }
            Name::Oracle => Box::new(move |budget| {
                Ok(Method::policy(Ranked::new("oracle", Oracle { scope }, guarantees), budget, dense)?)
            }),
            Name::Sparq => {
                let sparq = Sparq::new(self.settings.components, scope);
                Box::new(move |budget| Ok(Method::policy(Ranked::new("sparq", sparq, guarantees), budget, dense)?))
            }
            Name::Random => {
                let random = Random::new(self.settings.seed, scope);
                Box::new(move |budget| Ok(Method::policy(Ranked::new("random", random, guarantees), budget, dense)?))
            }
            Name::Quest => {
                let shape = CacheShape {
                    layers,
                    kv_heads: config.num_key_value_heads,
                    head_dim: config.head_dim,
                    tokens: room.max(1),
                };
                Box::new(move |budget| {
                    let quest = Quest::owned(shape)?.with_scope(scope).with_guarantees(guarantees);
                    Ok(Method::policy(quest, budget, dense)?)
                })
            }
            Name::Streaming => {
                let streaming = Streaming { sinks: guarantees.sinks };
                Box::new(move |budget| Ok(Method::policy(streaming, budget, dense)?))
            }
            Name::Snapkv => self.evicting(self.snapkv(), config, trace)?,
            Name::H2o => self.evicting(self.h2o(), config, trace)?,
            Name::Tova => self.evicting(self.tova(), config, trace)?,
            Name::Rkv => self.evicting(self.rkv(), config, trace)?,
        })
    }

    fn fasa(&self, plan: &Arc<OwnedPlan>, budget: Budget, layers: usize) -> Result<Method> {
        let Settings { top_p, pyramid, config, .. } = &self.settings;
        if top_p.is_none() && pyramid.is_none() {
            budget.validate()?;
            return Ok(Method::Fasa { plan: plan.clone(), budget, dense_below: 0 });
        }
        // On the host, over the keys' own channels: what a sketch of full precision would find.
        let mut policy = Ranked::new("fasa", Chunks(plan.clone()), config.guarantees);
        if let Some(p) = top_p {
            policy = policy.with_top_p(TopP::new(*p, 1, u32::MAX)?);
        }
        let dense = config.dense_layers;
        match pyramid {
            None => Ok(Method::policy(policy, budget, dense)?),
            Some(beta) => {
                let schedule = Schedule::Pyramid { beta: *beta };
                Ok(Method::policy(Scheduled { policy, schedule, dense: dense as usize, layers }, budget, dense)?)
            }
        }
    }

    fn evicting<'t, P: EvictingPolicy + Clone + Send + Sync + 'static>(
        &self,
        policy: P,
        model: &ModelConfig,
        trace: Option<&'t Trace>,
    ) -> Result<Maker<'t>> {
        let trace = trace.context("an evicting method has to see the prompt")?;
        let dense = self.settings.config.dense_layers;
        let (kv_heads, group) = (model.num_key_value_heads, model.num_key_value_groups());
        let read = Evicting::read(&policy, self.settings.scope, kv_heads, group, dense as usize, trace)?;
        let seen = trace.layers().first().map_or(0, fasa_burn::trace::LayerTrace::tokens) + 1;
        Ok(Box::new(move |budget| Ok(Method::policy(read.within(budget.tokens(seen), group, trace)?, budget, dense)?)))
    }

    /// Bytes of the cache that a step reads with `seen` tokens in it: rows that are attended to, counted once per set that
    /// they are in, and what is read to find them. `rows` is how many rows per sparse layer were attended to, where that
    /// was counted.
    pub fn bytes_per_step(&self, decoder: &Decoder, budget: Budget, seen: usize, rows: Option<f64>) -> u64 {
        let (model, element) = (decoder.config(), decoder.dtype().bytes());
        let (layers, kv_heads, dim) = (model.num_hidden_layers, model.num_key_value_heads, model.head_dim);
        let (heads, row) = (model.num_attention_heads, 2 * dim * element);
        let dense_layer = kv_heads * seen * row;
        let kept = budget.tokens(seen);
        let dense = (self.settings.config.dense_layers as usize).min(layers);
        if self.is_dense() || self.name == Name::Oracle || (kept >= seen && self.settings.top_p.is_none()) {
            return (layers * dense_layer) as u64;
        }
        let (to_find, sets) = match (self.name, &self.plan) {
            (_, Some(plan)) => {
                let plan = plan.view();
                let precision = plan.config().precision;
                let per_row = match self.settings.top_p.is_some() || self.settings.pyramid.is_some() {
                    true => 2 * plan.chunks() * element,
                    false => precision.row_bytes(plan.chunks()) + precision.scale_bytes(),
                };
                (plan.rows() * seen * per_row, plan.config().token_scope.rows(heads, kv_heads))
            }
            (Name::Quest, _) => {
                (kv_heads * seen.div_ceil(PAGE) * 2 * dim * element, self.settings.scope.rows(heads, kv_heads))
            }
            (Name::Sparq, _) => {
                let components = self.settings.components.of(dim).unwrap_or(dim);
                // Every query head has components of its own; together they read no more than the whole keys.
                let channels = (components * model.num_key_value_groups()).min(dim);
                (kv_heads * seen * channels * element, self.settings.scope.rows(heads, kv_heads))
            }
            (Name::Streaming, _) => (0, kv_heads),
            _ => (0, self.settings.scope.rows(heads, kv_heads)),
        };
        let attended = rows.unwrap_or((sets * kept) as f64) * row as f64;
        (dense * dense_layer) as u64 + ((layers - dense) as f64 * (to_find as f64 + attended)) as u64
    }

    /// Whether its steps differ in how many rows they attend to.
    pub fn varies(&self) -> bool {
        self.settings.top_p.is_some()
    }

    /// FASA's plan.
    pub fn plan(&self) -> Option<&Arc<OwnedPlan>> {
        self.plan.as_ref()
    }
}

/// FASA's ranking that owns its plan.
struct Chunks(Arc<OwnedPlan>);

impl Importance for Chunks {
    fn scope(&self) -> Scope {
        self.0.view().config().token_scope
    }

    fn importance(&mut self, step: &Step<'_>, scratch: &mut [f32], scores: &mut [f32]) -> fasa_core::Result<()> {
        Fasa::new(self.0.view()).importance(step, scratch, scores)
    }
}

/// A policy whose budget differs from layer to layer.
struct Scheduled<P> {
    policy: P,
    schedule: Schedule,
    dense: usize,
    layers: usize,
}

impl<P: CachePolicy> CachePolicy for Scheduled<P> {
    fn name(&self) -> &'static str {
        self.policy.name()
    }

    fn scope(&self) -> Scope {
        self.policy.scope()
    }

    fn select(
        &mut self,
        step: &Step<'_>,
        budget: usize,
        memory: &mut Memory<'_>,
        selection: &mut Selection<'_>,
    ) -> fasa_core::Result<()> {
        let (layer, layers) = (step.layer.saturating_sub(self.dense), self.layers - self.dense);
        let budget = self.schedule.tokens(budget, step.keys.len(), layer, layers)?;
        // Some layers keep more than the mean, for which the caller made room.
        let mut entries = vec![0; scratch_len(budget)];
        let mut memory = Memory { scores: &mut *memory.scores, entries: &mut entries };
        self.policy.select(step, budget, &mut memory, selection)
    }

    fn rewind(&mut self, tokens: usize) {
        self.policy.rewind(tokens);
    }
}
