//! `generation_config.json`: how the model's author wants it to be continued.

use std::path::Path;

use serde_json::Value;

use super::Fields;
use crate::checkpoint::read_whole;
use crate::error::{Error, Result};
use crate::sampling::Sampling;

/// The name of the file.
const FILE: &str = "generation_config.json";

/// A real one has a few hundred bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What `transformers` draws from where the file samples and names no number.
const DEFAULT_TOP_K: usize = 50;

/// Settings of `generation_config.json`, each `None` where the file does not set it.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerationConfig {
    /// Whether tokens are drawn at random; the others below count only then, but for the penalty.
    pub do_sample: bool,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Draw from this many of the most likely tokens; 0 is all.
    pub top_k: Option<usize>,
    /// Draw from the most likely tokens that together reach this probability.
    pub top_p: Option<f32>,
    /// Draw from tokens at least this likely, relative to the most likely one.
    pub min_p: Option<f32>,
    /// Makes tokens that were already there less likely.
    pub repetition_penalty: Option<f32>,
    /// Write at most this many tokens.
    pub max_new_tokens: Option<usize>,
    /// The ids that end a text; empty where the file has null or nothing, and then those of `config.json` count.
    pub eos_token_ids: Vec<u32>,
}

/// Settings that would change what is written and that nothing here does, and the values that mean "off".
const UNSUPPORTED: &[(&str, &[f64])] = &[
    ("num_beams", &[1.0]),
    ("num_beam_groups", &[1.0]),
    ("penalty_alpha", &[0.0]),
    ("dola_layers", &[]),
    ("diversity_penalty", &[0.0]),
    ("no_repeat_ngram_size", &[0.0]),
    ("encoder_repetition_penalty", &[1.0]),
    ("bad_words_ids", &[]),
    ("min_length", &[0.0]),
    ("min_new_tokens", &[0.0]),
    ("typical_p", &[1.0]),
    ("epsilon_cutoff", &[0.0]),
    ("eta_cutoff", &[0.0]),
    ("forced_bos_token_id", &[]),
    ("forced_eos_token_id", &[]),
    ("suppress_tokens", &[]),
    ("begin_suppress_tokens", &[]),
    ("sequence_bias", &[]),
    ("guidance_scale", &[1.0]),
    ("watermarking_config", &[]),
    ("exponential_decay_length_penalty", &[]),
];

impl GenerationConfig {
    /// Reads the file in `folder`; without one, nothing is set.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, else as [`from_json`](Self::from_json).
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        match path.exists() {
            true => Self::from_json(&read_whole(&path, MAX_FILE_BYTES)?, &path),
            false => Ok(Self::default()),
        }
    }

    /// Reads the contents of the file; `path` is its name in errors.
    ///
    /// # Errors
    /// [`Error::Config`] for a field of the wrong type or out of bounds, [`Error::Unsupported`] for a way of writing that
    /// this crate does not have, such as beams.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self> {
        let value: Value = serde_json::from_slice(json).map_err(|error| {
            Error::config(path, "(the whole file)", format!("is not JSON: {error}"), "download it again")
        })?;
        let Value::Object(object) = &value else {
            return Err(Error::config(path, "(the whole file)", "is not a JSON object", "download it again"));
        };
        let fields = Fields::new(path, object);
        for (name, off) in UNSUPPORTED {
            let set = |value: &Value| {
                !value.as_array().is_some_and(Vec::is_empty)
                    && value.as_bool() != Some(false)
                    && !value.as_f64().is_some_and(|x| off.contains(&x))
            };
            if let Some(value) = object.get(*name).filter(|value| !value.is_null() && set(value)) {
                return Err(fields.unsupported(
                    format!("`{name}` {value}"),
                    "remove it from the file, or pass `--ignore-generation-config`",
                ));
            }
        }
        let number = |name: &str| fields.positive(name).map(|number| number.map(|number| number as f32));
        // Zero is no positive number, and common: greedy, or off.
        let is_zero = |name: &str| object.get(name).and_then(Value::as_f64) == Some(0.0);
        let or_zero = |name: &str| if is_zero(name) { Ok(Some(0.0)) } else { number(name) };
        let read = Self {
            do_sample: fields.flag("do_sample")?.unwrap_or(false),
            temperature: or_zero("temperature")?,
            top_k: if is_zero("top_k") { Some(0) } else { fields.optional_size("top_k", usize::MAX)? },
            top_p: number("top_p")?,
            min_p: or_zero("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
            max_new_tokens: fields.optional_size("max_new_tokens", usize::MAX)?,
            eos_token_ids: fields.token_ids("eos_token_id")?,
        };
        // What the sampler would refuse is refused here, where the file can be named.
        if let Err(Error::Request { field, problem, mend }) = read.sampling().validate() {
            return Err(fields.error(&field, problem, mend));
        }
        Ok(read)
    }

    /// The sampling that the file asks for: greedy unless it says `do_sample`.
    pub fn sampling(&self) -> Sampling {
        let repetition_penalty = self.repetition_penalty.unwrap_or(1.0);
        let temperature = self.temperature.unwrap_or(1.0);
        if !self.do_sample || temperature == 0.0 {
            return Sampling { repetition_penalty, ..Sampling::default() };
        }
        Sampling {
            temperature,
            top_k: self.top_k.unwrap_or(DEFAULT_TOP_K),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty,
            seed: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<GenerationConfig> {
        GenerationConfig::from_json(json.as_bytes(), Path::new("g.json"))
    }

    #[test]
    fn what_the_file_asks_for() {
        let greedy = Sampling::default();
        let drawn = Sampling { temperature: 1.0, top_k: 50, ..greedy.clone() };
        let cases = [
            ("{}", greedy.clone(), &[][..]),
            (r#"{"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}"#, greedy.clone(), &[2]),
            (r#"{"repetition_penalty": 1.1}"#, Sampling { repetition_penalty: 1.1, ..greedy.clone() }, &[]),
            (r#"{"do_sample": true}"#, drawn.clone(), &[]),
            (r#"{"do_sample": true, "temperature": 0.0, "top_k": 5}"#, greedy.clone(), &[]),
            (
                r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0,
                    "eos_token_id": [151645, 151643], "bos_token_id": 1, "pad_token_id": 151643,
                    "transformers_version": "4.51.0", "num_beams": 1, "suppress_tokens": null, "max_length": 9}"#,
                Sampling { temperature: 0.6, top_k: 20, top_p: 0.95, ..greedy },
                &[151643, 151645],
            ),
            (r#"{"do_sample": true, "top_k": 0}"#, Sampling { top_k: 0, ..drawn }, &[]),
        ];
        for (json, sampling, eos) in cases {
            let config = read(json).expect(json);
            assert_eq!((config.sampling(), config.eos_token_ids.as_slice()), (sampling, eos), "{json}");
        }
        assert_eq!(read(r#"{"max_new_tokens": 7}"#).map(|c| c.max_new_tokens).ok(), Some(Some(7)));
    }

    #[test]
    fn bad_settings_are_named() {
        for (json, field) in [
            ("", "whole file"),
            ("[]", "whole file"),
            (r#"{"do_sample": 1}"#, "do_sample"),
            (r#"{"temperature": -1}"#, "temperature"),
            (r#"{"top_p": "all"}"#, "top_p"),
            (r#"{"do_sample": true, "top_p": 1.5}"#, "top_p"),
            (r#"{"do_sample": true, "min_p": 2}"#, "min_p"),
            (r#"{"top_k": -1}"#, "top_k"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"eos_token_id": ["</s>"]}"#, "eos_token_id"),
            (r#"{"num_beams": 4}"#, "num_beams"),
            (r#"{"no_repeat_ngram_size": 3}"#, "no_repeat_ngram_size"),
            (r#"{"bad_words_ids": [[1]]}"#, "bad_words_ids"),
        ] {
            let message = read(json).expect_err(json).to_string();
            assert!(message.contains("`g.json`") && message.contains(field), "{json}: {message}");
        }
    }
}
