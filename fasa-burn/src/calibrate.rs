//! Calibration: which chunks of each head are dominant, from texts that are read, not written.
//!
//! A sample is read in one dense pass. Each judged token is a decode step: its query against the keys of all tokens up to
//! it. Nothing is sampled, so the same texts give the same profile.

use crate::error::{Error, Result};
use crate::generate::Cancel;
use crate::method::Method;
use crate::model::{Decoder, Logits, Observer, PREFILL_CHUNK, Watch, to_host};
use burn::tensor::Tensor;
use fasa_core::criterion::{Agreement, CriterionKind, Margin, Observation, Tally};
use fasa_core::profile::Profile;
use fasa_core::{Chunks, Rows, Scope};
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
    /// K of the agreement.
    pub agreement_k: usize,
    /// One ranking per KV head or per query head.
    pub scope: Scope,
    /// What the samples are, for the profile.
    pub text: String,
}

/// Keeps the queries of the steps that are judged.
struct Queries {
    from: usize,
    /// Per layer, chunks of `[query_heads, steps, head_dim]` on the device.
    layers: Vec<Vec<Tensor<3>>>,
}

impl Observer for Queries {
    fn queries(&mut self, layer: usize, position: usize, queries: &Tensor<3>) {
        let new = queries.dims()[1];
        let skip = self.from.saturating_sub(position).min(new);
        if skip < new {
            self.layers[layer].push(queries.clone().narrow(1, skip, new - skip));
        }
    }
}

/// Running mean and mean square of every key channel, `[layers, kv_heads, head_dim]`.
struct KeyStatistics {
    sums: Vec<f64>,
    squares: Vec<f64>,
    rows: u64,
}

/// One layer of one sample, on the host.
struct LayerTrace {
    queries: Vec<f32>,
    keys: Vec<f32>,
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
        let model = self.fingerprint();
        let chunks = model.chunks()?.len();
        let mut tally = Tally::new(calibration.criterion, layers * heads, chunks);
        let channels = layers * config.num_key_value_heads * config.head_dim;
        let mut statistics = KeyStatistics { sums: vec![0.0; channels], squares: vec![0.0; channels], rows: 0 };
        if samples.is_empty() || !samples.iter().all(Sample::is_sound) {
            return Err(Error::request("text", "has no steps to judge", "give a longer calibration text"));
        }
        for (i, sample) in samples.iter().enumerate() {
            progress(i, samples.len());
            let traces = self.trace(sample, cancel)?;
            statistics.add(&traces, config.head_dim);
            let parts: Vec<Tally> = traces
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
        progress(samples.len(), samples.len());
        let (scale, centre) = statistics.finish();
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

    /// Reads a sample and brings the judged queries and all keys of every layer to the host.
    fn trace(&self, sample: &Sample, cancel: &Cancel) -> Result<Vec<LayerTrace>> {
        let layers = self.config().num_hidden_layers;
        let mut queries = Queries { from: sample.judged[0], layers: vec![Vec::new(); layers] };
        let mut cache = self.new_cache(sample.tokens.len());
        for chunk in sample.tokens.chunks(PREFILL_CHUNK) {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let mut watch = Watch { observer: Some(&mut queries), recorder: None };
            self.forward_watched(chunk, &mut cache, &Method::Dense, Logits::None, &mut watch)?;
        }
        queries
            .layers
            .into_iter()
            .enumerate()
            .map(|(layer, chunks)| {
                let queries = to_host(Tensor::cat(chunks, 1))?;
                Ok(LayerTrace { queries, keys: to_host(cache.rows(layer).0)? })
            })
            .collect()
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
        let (heads, dim) = (config.num_attention_heads, config.head_dim);
        let (from, tokens) = (sample.judged[0], sample.tokens.len());
        let kept_queries = tokens - from;
        let mut tally = Tally::new(calibration.criterion, config.num_hidden_layers * heads, chunks.len());
        for head in 0..heads {
            let kv_head = head / config.num_key_value_groups();
            let keys = Rows::contiguous(&trace.keys[kv_head * tokens * dim..(kv_head + 1) * tokens * dim], dim)?;
            for &position in &sample.judged {
                let query = &trace.queries[(head * kept_queries + position - from) * dim..][..dim];
                let seen = keys.first(position + 1);
                let observation = Observation { query, keys: seen, chunks };
                match calibration.criterion {
                    CriterionKind::Margin => tally.observe(&Margin, layer * heads + head, &observation)?,
                    CriterionKind::Agreement => {
                        let agreement = Agreement::new(calibration.agreement_k)?;
                        tally.observe(&agreement, layer * heads + head, &observation)?;
                    }
                    other => {
                        let problem = format!("`{}` cannot be calibrated here", other.name());
                        return Err(Error::request("criterion", problem, "use margin or agreement"));
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
            let rows_per_head = trace.keys.len() / heads;
            for (head, keys) in trace.keys.chunks_exact(rows_per_head).enumerate() {
                let at = layer * per_layer + head * dim;
                for key in keys.chunks_exact(dim) {
                    for (c, k) in key.iter().enumerate() {
                        self.sums[at + c] += f64::from(*k);
                        self.squares[at + c] += f64::from(*k) * f64::from(*k);
                    }
                }
            }
        }
        self.rows += traces.first().map_or(0, |t| t.keys.len() / per_layer) as u64;
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
