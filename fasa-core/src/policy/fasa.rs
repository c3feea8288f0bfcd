//! FASA (arXiv 2602.03152): ranks by the dominant chunks alone.

use super::Step;
use crate::config::{FasaConfig, Scope};
use crate::criterion::dominant;
use crate::error::{Error, Result, expect_capacity, expect_length};
use crate::importance::{Importance, combine, dot_by};
use crate::profile::ProfileView;
use crate::rope::MAX_HEAD_DIM;
use crate::sketch::{HeadPlan, fold_query, score};

/// Which channels every head's sketch holds, and how they are normalised: a [`FasaConfig`] applied to a profile.
///
/// A table of `[layers, rows, 2F]` with one row per KV head or per query head.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    config: FasaConfig,
    layers: usize,
    rows: usize,
    chunks: usize,
    channels: &'a [u16],
    scale: &'a [f32],
    centre: &'a [f32],
}

impl<'a> Plan<'a> {
    /// Entries that each of the three tables of [`build`](Self::build) needs for `config` on the profile's model.
    ///
    /// # Errors
    /// [`Error::Range`] if the chunk count does not fit the model, or the profile is of another criterion or scope.
    pub fn table_len(profile: &ProfileView<'_>, config: &FasaConfig) -> Result<usize> {
        let model = profile.model();
        if profile.criterion() != config.criterion {
            return Err(Error::Range { what: "criterion", problem: "the profile was calibrated with another one" });
        }
        if profile.scope() != config.chunk_scope {
            return Err(Error::Range { what: "chunk_scope", problem: "the profile ranks chunks for another scope" });
        }
        let rows = config.chunk_scope.rows(model.query_heads as usize, model.kv_heads as usize);
        let chunks = config.chunks.of(model.head_dim as usize / 2)?;
        Ok(model.layers as usize * rows * 2 * chunks)
    }

    /// Fills caller-provided tables, `[layers, rows, 2F]` each, from a profile. No allocation.
    ///
    /// # Errors
    /// As [`table_len`](Self::table_len); [`Error::Length`] for a table of another size.
    pub fn build(
        profile: &ProfileView<'_>,
        config: FasaConfig,
        channels: &'a mut [u16],
        scale: &'a mut [f32],
        centre: &'a mut [f32],
    ) -> Result<Self> {
        let entries = Self::table_len(profile, &config)?;
        expect_length("channels", channels.len(), entries)?;
        expect_length("scale", scale.len(), entries)?;
        expect_length("centre", centre.len(), entries)?;
        let model = profile.model();
        let layout = model.chunks()?;
        let (query_heads, kv_heads) = (model.query_heads as usize, model.kv_heads as usize);
        let rows = config.chunk_scope.rows(query_heads, kv_heads);
        let count = config.chunks.of(layout.len())?;
        let mut set = [0; MAX_HEAD_DIM / 2];
        for layer in 0..model.layers as usize {
            let layout = model.layer_chunks(layer)?;
            for row in 0..rows {
                let at = (layer * rows + row) * 2 * count..(layer * rows + row + 1) * 2 * count;
                let chosen = dominant(profile.ranking(layer, row), count, &mut set)?;
                layout.channels(chosen, &mut channels[at.clone()])?;
                let kv_head = row * kv_heads / rows;
                for (i, &channel) in at.clone().zip(&channels[at]) {
                    scale[i] = profile.key_scale(layer, kv_head, usize::from(channel));
                    centre[i] = profile.key_centre(layer, kv_head, usize::from(channel));
                }
            }
        }
        Ok(Self { config, layers: model.layers as usize, rows, chunks: count, channels, scale, centre })
    }

    /// The configuration this plan was built for.
    pub fn config(&self) -> &FasaConfig {
        &self.config
    }

    /// Chunks per sketch row.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Sketches per layer.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Whether `layer` attends to everything.
    pub fn is_dense(&self, layer: usize) -> bool {
        layer < self.config.dense_layers as usize
    }

    /// The sketch of `row` (a KV head or a query head) of `layer`.
    ///
    /// # Errors
    /// [`Error::Range`] if there is no such layer or row.
    pub fn head(&self, layer: usize, row: usize) -> Result<HeadPlan<'a>> {
        if layer >= self.layers || row >= self.rows {
            return Err(Error::Range { what: "head", problem: "the plan has fewer layers or heads" });
        }
        let at = (layer * self.rows + row) * 2 * self.chunks..(layer * self.rows + row + 1) * 2 * self.chunks;
        HeadPlan::new(self.config.precision, &self.channels[at.clone()], &self.scale[at.clone()], &self.centre[at])
    }
}

/// A [`Plan`] that owns its tables.
#[cfg(feature = "alloc")]
#[derive(Debug, Clone)]
pub struct OwnedPlan {
    config: FasaConfig,
    layers: usize,
    rows: usize,
    chunks: usize,
    channels: alloc::vec::Vec<u16>,
    scale: alloc::vec::Vec<f32>,
    centre: alloc::vec::Vec<f32>,
}

#[cfg(feature = "alloc")]
impl OwnedPlan {
    /// Builds the plan of `config` for the profile's model.
    ///
    /// # Errors
    /// As [`Plan::build`].
    pub fn new(profile: &ProfileView<'_>, config: FasaConfig) -> Result<Self> {
        use alloc::vec;
        let entries = Plan::table_len(profile, &config)?;
        let (mut channels, mut scale, mut centre) = (vec![0; entries], vec![0.0; entries], vec![0.0; entries]);
        let plan = Plan::build(profile, config, &mut channels, &mut scale, &mut centre)?;
        let Plan { config, layers, rows, chunks, .. } = plan;
        Ok(Self { config, layers, rows, chunks, channels, scale, centre })
    }

    /// The plan.
    pub fn view(&self) -> Plan<'_> {
        Plan {
            config: self.config,
            layers: self.layers,
            rows: self.rows,
            chunks: self.chunks,
            channels: &self.channels,
            scale: &self.scale,
            centre: &self.centre,
        }
    }
}

/// Importance by the dominant chunks, `S(t) = Σ_{i dominant} s_i(t)` (TIP).
///
/// Reads the step's sketches if it carries any; without them, the same channels of the keys themselves, unquantized.
#[derive(Debug, Clone, Copy)]
pub struct Fasa<'a> {
    plan: Plan<'a>,
}

impl<'a> Fasa<'a> {
    /// A scorer for `plan`.
    pub fn new(plan: Plan<'a>) -> Self {
        Self { plan }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan<'a> {
        &self.plan
    }

    /// Row of the plan, and index among the step's sketches, that query head `g` of the group reads.
    fn row(&self, step: &Step<'_>, g: usize) -> (usize, usize) {
        match self.plan.config.chunk_scope {
            Scope::KvHead => (step.kv_head, 0),
            Scope::QueryHead => (step.query_head(g), g),
        }
    }
}

impl Importance for Fasa<'_> {
    fn scope(&self) -> Scope {
        self.plan.config.token_scope
    }

    fn importance(&mut self, step: &Step<'_>, scratch: &mut [f32], scores: &mut [f32]) -> Result<()> {
        if !step.sketches.is_empty() {
            let sketches = self.plan.config.chunk_scope.rows(step.queries.len(), 1);
            expect_length("step.sketches", step.sketches.len(), sketches)?;
        }
        let mut folded = [0.0; MAX_HEAD_DIM];
        combine(step, self.plan.config.token_scope, scratch, scores, |g, out| {
            let (row, sketch) = self.row(step, g);
            let head = self.plan.head(step.layer, row)?;
            let query = step.queries.row(g);
            if let Some(rows) = step.sketches.get(sketch) {
                if rows.precision() != head.precision() {
                    return Err(Error::Range { what: "sketch", problem: "it has another precision than the plan" });
                }
                let folded = &mut folded[..head.channels().len()];
                fold_query(&head, query, folded)?;
                return score(rows, folded, out);
            }
            let channels = head.channels();
            expect_capacity("keys", step.keys.dim(), channels.iter().max().map_or(0, |c| usize::from(*c) + 1))?;
            let gathered = &mut folded[..channels.len()];
            for (slot, &channel) in gathered.iter_mut().zip(channels) {
                *slot = query[usize::from(channel)];
            }
            for (score, key) in out.iter_mut().zip(step.keys.iter()) {
                *score = dot_by(gathered, |c| key[usize::from(channels[c])]);
            }
            Ok(())
        })
    }
}
