//! What FASA adds to a decode step: sketch the new keys, score the sketch, choose the tokens.

use fasa_core::policy::{CachePolicy, Fasa as Scorer, Memory, OwnedPlan, Ranked, Selection, Step};
use fasa_core::profile::ProfileView;
use fasa_core::select::scratch_len;
use fasa_core::sketch::{HeadPlan, SketchRows, quantize_row};
use fasa_core::{Budget, Error, FasaConfig, Result, Rows, Scope};

/// The sketch of one KV head: plain bytes, one row per token.
#[derive(Debug, Default)]
pub struct Sketch {
    codes: Vec<u8>,
    scales: Vec<u8>,
    len: usize,
}

impl Sketch {
    /// Appends the rows that are missing: one in a decode step, all of them after a prefill.
    fn catch_up(&mut self, plan: &HeadPlan<'_>, keys: Rows<'_>) -> Result<SketchRows<'_>> {
        let (precision, chunks) = (plan.precision(), plan.chunks());
        let (code_bytes, scale_bytes) = (precision.row_bytes(chunks), precision.scale_bytes());
        self.codes.resize(keys.len() * code_bytes, 0);
        self.scales.resize(keys.len() * scale_bytes, 0);
        for t in self.len..keys.len() {
            let codes = &mut self.codes[t * code_bytes..][..code_bytes];
            quantize_row(plan, keys.row(t), codes, &mut self.scales[t * scale_bytes..][..scale_bytes])?;
        }
        self.len = keys.len();
        SketchRows::new(precision, chunks, self.len, &self.codes, &self.scales)
    }
}

/// The tokens of one layer and KV head that a decode step attended to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Layer, from 0.
    pub layer: usize,
    /// KV head within the layer, from 0.
    pub kv_head: usize,
    /// Ascending.
    pub positions: Vec<u32>,
}

/// FASA for one model: its dominant chunks, a budget, and the memory that choosing needs.
#[derive(Debug)]
pub struct Fasa {
    plan: OwnedPlan,
    budget: Budget,
    scores: Vec<f32>,
    entries: Vec<u64>,
    positions: Vec<u32>,
    chosen: Vec<Chosen>,
}

impl Fasa {
    /// FASA by a profile, which must be of the model (see `ProfileView::model`).
    ///
    /// # Errors
    /// [`Error::Range`] if the profile, the settings and the budget do not go together, or if they ask for token sets or
    /// sketches per query head, which this example does not keep.
    pub fn new(profile: &ProfileView<'_>, config: FasaConfig, budget: Budget) -> Result<Self> {
        budget.validate()?;
        if config.token_scope != Scope::KvHead || config.chunk_scope != Scope::KvHead {
            return Err(Error::Range { what: "config", problem: "this example decides per KV head" });
        }
        let plan = OwnedPlan::new(profile, config)?;
        Ok(Self { plan, budget, scores: vec![], entries: vec![], positions: vec![], chosen: vec![] })
    }

    /// Whether `layer` attends to all of `seen` tokens: because it always does, or because the budget covers them.
    pub fn is_dense(&self, layer: usize, seen: usize) -> bool {
        self.plan.view().is_dense(layer) || self.budget.tokens(seen) >= seen
    }

    /// The tokens that the query heads of one KV head attend to: `queries` `[group, head_dim]`, `keys` of all tokens seen,
    /// the current one last.
    ///
    /// # Errors
    /// Whatever the core returns for shapes that do not fit.
    pub fn choose(
        &mut self,
        layer: usize,
        kv_head: usize,
        queries: &[f32],
        keys: Rows<'_>,
        sketch: &mut Sketch,
    ) -> Result<&[u32]> {
        let (plan, seen) = (self.plan.view(), keys.len());
        let budget = self.budget.tokens(seen);
        let sketches = [sketch.catch_up(&plan.head(layer, kv_head)?, keys)?];
        let step = Step { layer, kv_head, queries: Rows::contiguous(queries, keys.dim())?, keys, sketches: &sketches };

        // All memory is ours and kept between steps.
        self.scores.resize(Memory::scores_len(1, seen), 0.0);
        self.entries.resize(scratch_len(budget), 0);
        self.positions.resize(budget, 0);
        let mut memory = Memory { scores: &mut self.scores, entries: &mut self.entries };
        let mut lengths = [0];
        let mut selection = Selection::new(&mut self.positions, &mut lengths, budget)?;
        let mut policy = Ranked::new("fasa", Scorer::new(plan), plan.config().guarantees);
        policy.select(&step, budget, &mut memory, &mut selection)?;

        self.chosen.push(Chosen { layer, kv_head, positions: selection.set(0).to_vec() });
        Ok(&self.positions[..lengths[0]])
    }

    /// What was chosen since the last call, in the order of layers and KV heads.
    pub fn take_chosen(&mut self) -> Vec<Chosen> {
        std::mem::take(&mut self.chosen)
    }
}
