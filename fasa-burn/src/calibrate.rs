//! Calibration: which chunks of each head are dominant, from texts that are read, not written.
//!
//! A sample is read in one dense pass. Each judged token is a decode step: its query against the keys of all tokens up to
//! it. Nothing is sampled, so the same texts give the same profile.

use crate::error::{Error, Result};
use crate::generate::Cancel;
use crate::method::Method;
use crate::model::{Decoder, Logits, PREFILL_CHUNK, Watch};
use crate::trace::{LayerTrace, Queries, Trace};
use fasa_core::criterion::{Agreement, CriterionKind, Greedy, Margin, Observation, RankChunks, Tally, Workspace};
use fasa_core::profile::{Model, Profile, Provenance};
use fasa_core::{Chunks, Pairing, Scope};
use rayon::prelude::*;

/// One calibration text, as token ids.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The text, the start token first.
    pub tokens: Vec<u32>,
    /// Positions of the steps that are judged, ascending: each asks what its token's heads attend to among the tokens up
    /// to and including itself.
    pub judged: Vec<usize>,
}

impl Sample {
    /// Whether there is a step to judge, and each is at a token.
    fn is_sound(&self) -> bool {
        self.judged.is_sorted() && self.judged.last().is_some_and(|last| *last < self.tokens.len())
    }
}

/// What to calibrate.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// The criterion.
    pub criterion: CriterionKind,
    /// K of the agreement, alone or greedy.
    pub agreement_k: usize,
    /// One ranking per KV head or per query head.
    pub scope: Scope,
    /// Takes these dimensions as chunks instead of those that the model turns together. The profile then names a model
    /// with that layout, and [`Decoder::profile`] refuses it: it is for comparisons.
    pub pairing: Option<Pairing>,
    /// What the samples are, for the profile.
    pub text: String,
}

/// Running mean and mean square of every key channel, `[layers, kv_heads, head_dim]`.
struct KeyStatistics {
    sums: Vec<f64>,
    squares: Vec<f64>,
    rows: u64,
}

impl Decoder {
    /// Ranks the chunks of every head by `samples`. `progress` hears of samples done and may stop the work through
    /// `cancel`.
    ///
    /// # Errors
    /// [`Error::Request`] without a sample or for one without a step to judge, [`Error::Prompt`] for one longer
    /// than the model's positions, [`Error::Cancelled`] if stopped.
    pub fn calibrate(
        &self,
        samples: &[Sample],
        calibration: &Calibration,
        cancel: &Cancel,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Profile> {
        let config = self.config();
        let (layers, heads) = (config.num_hidden_layers, config.num_attention_heads);
        let own = self.fingerprint();
        let model = Model { pairing: calibration.pairing.unwrap_or(own.pairing), ..own };
        let chunks = model.chunks()?;
        let channels = layers * config.num_key_value_heads * config.head_dim;
        let mut statistics = KeyStatistics { sums: vec![0.0; channels], squares: vec![0.0; channels], rows: 0 };
        if samples.is_empty() || !samples.iter().all(Sample::is_sound) {
            return Err(Error::request("text", "has no steps to judge", "give a longer calibration text"));
        }
        // Greedy ranking looks at all steps at once; the others add up, and need one sample at a time.
        let mut kept = Vec::new();
        let mut tally = Tally::new(calibration.criterion, layers * heads, chunks.len());
        for (i, sample) in samples.iter().enumerate() {
            progress(i, samples.len());
            let trace = self.trace(sample, cancel)?;
            statistics.add(trace.layers(), config.head_dim);
            if calibration.criterion == CriterionKind::Greedy {
                kept.push(trace);
                continue;
            }
            let parts: Vec<Tally> = trace
                .layers()
                .par_iter()
                .enumerate()
                .map(|(layer, trace)| {
                    if cancel.is_cancelled() {
                        return Err(Error::Cancelled);
                    }
                    self.judge(layer, trace, sample, calibration, &model.layer_chunks(layer)?)
                })
                .collect::<Result<_>>()?;
            for part in &parts {
                tally.merge(part)?;
            }
        }
        let (scale, centre) = statistics.finish();
        if calibration.criterion == CriterionKind::Greedy {
            return self.rank_greedily(samples, &kept, calibration, model, [&scale, &centre], cancel);
        }
        progress(samples.len(), samples.len());
        let k = if calibration.criterion == CriterionKind::Agreement { calibration.agreement_k as u32 } else { 0 };
        let profile = Profile::new(
            model,
            calibration.criterion,
            k,
            calibration.scope,
            &tally,
            &scale,
            &centre,
            &calibration.text,
        )?;
        Ok(profile)
    }

    /// The greedy ranking of every head, chosen by all judged steps of all samples. Half of the chunks are chosen greedily,
    /// the others follow by their own agreement.
    fn rank_greedily(
        &self,
        samples: &[Sample],
        traces: &[Trace],
        calibration: &Calibration,
        model: Model<'_>,
        [scale, centre]: [&[f32]; 2],
        cancel: &Cancel,
    ) -> Result<Profile> {
        let config = self.config();
        let count = model.chunks()?.len();
        let rows = calibration.scope.rows(config.num_attention_heads, config.num_key_value_heads);
        let of_row = config.num_attention_heads / rows;
        let greedy = Greedy::new(calibration.agreement_k)?.with_rounds(count / 2);
        let rank = |place: usize| -> Result<(Vec<u16>, Vec<f64>)> {
            let (index, row) = (place / rows, place % rows);
            let (chunks, window) = (model.layer_chunks(index)?, config.window(index));
            let mut steps = Vec::new();
            for (sample, trace) in samples.iter().zip(traces) {
                for head in row * of_row..(row + 1) * of_row {
                    let layer = &trace.layers()[index];
                    let (queries, kv_head) = (layer.queries(head)?, head / config.num_key_value_groups());
                    for position in &sample.judged {
                        let keys = layer.keys_at(kv_head, *position, window)?;
                        steps.push(Observation { query: queries.row(position - trace.from()), keys, chunks: &chunks });
                    }
                }
            }
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let (scores, entries, positions) = greedy.ranking_workspace_len(&steps);
            let (mut numbers, mut entries, mut positions) = (vec![0.0; scores], vec![0; entries], vec![0; positions]);
            let mut workspace = Workspace { scores: &mut numbers, entries: &mut entries, positions: &mut positions };
            let (mut ranking, mut scores) = (vec![0; count], vec![0.0; count]);
            greedy.rank_chunks(&steps, &mut workspace, &mut ranking, &mut scores)?;
            Ok((ranking, scores))
        };
        let places = (0..config.num_hidden_layers * rows).into_par_iter().map(rank).collect::<Result<Vec<_>>>()?;
        let (ranking, scores): (Vec<_>, Vec<_>) = places.into_iter().unzip();
        let provenance = Provenance {
            model,
            criterion: CriterionKind::Greedy,
            agreement_k: calibration.agreement_k as u32,
            scope: calibration.scope,
            steps: samples.iter().map(|s| s.judged.len() as u64).sum(),
            text: &calibration.text,
        };
        Ok(Profile::from_rankings(&provenance, &ranking.concat(), &scores.concat(), scale, centre)?)
    }

    /// Reads a sample and brings the judged queries and all keys of every layer to the host.
    fn trace(&self, sample: &Sample, cancel: &Cancel) -> Result<Trace> {
        let mut queries = Queries::new(self.config().num_hidden_layers, sample.judged[0]);
        let mut cache = self.new_cache(sample.tokens.len());
        cache.expect(sample.tokens.len());
        for chunk in sample.tokens.chunks(PREFILL_CHUNK) {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let mut watch = Watch { observer: Some(&mut queries), recorder: None };
            self.forward_watched(chunk, &mut cache, &Method::Dense, Logits::None, &mut watch)?;
        }
        queries.finish(&cache)
    }

    /// The criterion of every step and head of one layer.
    fn judge(
        &self,
        layer: usize,
        trace: &LayerTrace,
        sample: &Sample,
        calibration: &Calibration,
        chunks: &Chunks,
    ) -> Result<Tally> {
        let config = self.config();
        let heads = config.num_attention_heads;
        let mut tally = Tally::new(calibration.criterion, config.num_hidden_layers * heads, chunks.len());
        for head in 0..heads {
            let (queries, kv_head) = (trace.queries(head)?, head / config.num_key_value_groups());
            for &position in &sample.judged {
                let query = queries.row(position - sample.judged[0]);
                let keys = trace.keys_at(kv_head, position, config.window(layer))?;
                let observation = Observation { query, keys, chunks };
                match calibration.criterion {
                    CriterionKind::Margin => tally.observe(&Margin, layer * heads + head, &observation)?,
                    CriterionKind::Agreement => {
                        let agreement = Agreement::new(calibration.agreement_k)?;
                        tally.observe(&agreement, layer * heads + head, &observation)?;
                    }
                    other => {
                        let problem = format!("`{}` cannot be calibrated here", other.name());
                        return Err(Error::request("criterion", problem, "use margin, agreement or greedy"));
                    }
                }
            }
        }
        Ok(tally)
    }
}

impl KeyStatistics {
    fn add(&mut self, traces: &[LayerTrace], dim: usize) {
        let per_layer = self.sums.len() / traces.len();
        let heads = per_layer / dim;
        for (layer, trace) in traces.iter().enumerate() {
            let rows_per_head = trace.key_numbers().len() / heads;
            for (head, keys) in trace.key_numbers().chunks_exact(rows_per_head).enumerate() {
                let at = layer * per_layer + head * dim;
                for key in keys.chunks_exact(dim) {
                    for (c, k) in key.iter().enumerate() {
                        self.sums[at + c] += f64::from(*k);
                        self.squares[at + c] += f64::from(*k) * f64::from(*k);
                    }
                }
            }
        }
        self.rows += traces.first().map_or(0, |t| t.key_numbers().len() / per_layer) as u64;
    }

    /// Standard deviation and mean per channel: what the sketch normalises by. A channel that never moves gets scale 1.
    fn finish(&self) -> (Vec<f32>, Vec<f32>) {
        let rows = self.rows.max(1) as f64;
        let moments = self.sums.iter().zip(&self.squares).map(|(sum, square)| {
            let mean = sum / rows;
            let deviation = (square / rows - mean * mean).max(0.0).sqrt() as f32;
            (if deviation > 1e-6 { deviation } else { 1.0 }, mean as f32)
        });
        moments.unzip()
    }
}
