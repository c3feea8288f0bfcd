//! The metadata as a `config.json`.

use serde_json::{Map, Value as Json, json};

use super::header::Gguf;
use super::names::{ROPE_FACTORS, interleaved};
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// Classes of the architectures that `names` translates.
const CLASSES: &[(&str, &str)] =
    &[("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")];

/// Low and high frequency factor of Llama 3's scaling, the same in all published models. A GGUF file has none of its
/// parameters, only what they do to each frequency.
const LLAMA3: (f64, f64) = (1.0, 4.0);

impl Gguf {
    /// The model's numbers.
    ///
    /// # Errors
    /// [`Error::Config`] for a field that is missing or of the wrong type, [`Error::Unsupported`] for an architecture or a
    /// setting that is not computed here.
    pub fn config(&self) -> Result<ModelConfig> {
        let text = Json::Object(self.config_json()?).to_string();
        ModelConfig::from_json(text, self.path())
    }

    /// The same as the object that a `config.json` holds.
    fn config_json(&self) -> Result<Map<String, Json>> {
        let architecture = self.architecture()?;
        interleaved(architecture, self.path())?;
        let field = |name: &str| format!("{architecture}.{name}");
        let integer = |name: &str| self.get(&field(name)).and_then(super::Value::integer);
        let number = |name: &str| self.get(&field(name)).and_then(super::Value::number);
        let needed = |name: &str| {
            integer(name).ok_or_else(|| {
                let mend = "convert the model again with llama.cpp";
                Error::config(self.path(), field(name), "is missing or no whole number", mend)
            })
        };
        let embeddings = self.tensors().get("token_embd.weight").and_then(|place| place.shape.first().copied());
        let vocab_size = embeddings.ok_or_else(|| {
            Error::tensor(self.path(), "token_embd.weight", "is missing", "use a file with the whole model")
        })?;
        let heads = needed("attention.head_count")?;
        let mut config = Map::new();
        let mut set = |name: &str, value: Json| config.insert(name.into(), value);
        let class = CLASSES.iter().find(|(name, _)| *name == architecture).map(|(_, class)| *class);
        set("architectures", json!([class]));
        set("model_type", json!(architecture));
        set("vocab_size", json!(vocab_size));
        set("hidden_size", json!(needed("embedding_length")?));
        set("intermediate_size", json!(needed("feed_forward_length")?));
        set("num_hidden_layers", json!(needed("block_count")?));
        set("num_attention_heads", json!(heads));
        set("num_key_value_heads", json!(integer("attention.head_count_kv").unwrap_or(heads)));
        let head_dim = integer("attention.key_length").or(integer("rope.dimension_count"));
        set("head_dim", head_dim.map_or(Json::Null, |dim| json!(dim)));
        set("rms_norm_eps", json!(number("attention.layer_norm_rms_epsilon")));
        set("max_position_embeddings", json!(needed("context_length")?));
        set("tie_word_embeddings", json!(!self.tensors().contains_key("output.weight")));
        let rope_theta = number("rope.freq_base").unwrap_or(10_000.0);
        set("rope_theta", json!(rope_theta));
        if let Some(dim) = integer("rope.dimension_count").zip(head_dim).filter(|(turned, dim)| turned != dim) {
            let problem = format!("is {}, of {} dimensions", dim.0, dim.1);
            let mend = "use the safetensors of this model";
            return Err(Error::config(self.path(), field("rope.dimension_count"), problem, mend));
        }
        set("rope_scaling", self.rope_scaling(architecture, rope_theta)?);
        if integer("attention.sliding_window").is_some_and(|window| window > 0) {
            let what = format!("`{}`", field("attention.sliding_window"));
            return Err(Error::unsupported(self.path(), what, "use the safetensors of this model"));
        }
        if integer("expert_count").is_some_and(|experts| experts > 0) {
            let what = format!("`{}` (a mixture of experts)", field("expert_count"));
            return Err(Error::unsupported(self.path(), what, "use a dense model"));
        }
        for (name, ids) in
            [("bos_token_id", &["bos_token_id"][..]), ("eos_token_id", &["eos_token_id", "eot_token_id"])]
        {
            let ids: Vec<u64> = ids
                .iter()
                .filter_map(|id| self.get(&format!("tokenizer.ggml.{id}")).and_then(super::Value::integer))
                .collect();
            match ids.as_slice() {
                [] => {}
                [id] => drop(set(name, json!(id))),
                ids => drop(set(name, json!(ids))),
            }
        }
        Ok(config)
    }

    /// `rope_scaling`, from its fields or from the frequencies in a tensor.
    fn rope_scaling(&self, architecture: &str, rope_theta: f64) -> Result<Json> {
        let field = |name: &str| format!("{architecture}.rope.scaling.{name}");
        let number = |name: &str| self.get(&field(name)).and_then(super::Value::number);
        if self.tensors().contains_key(ROPE_FACTORS) {
            return self.llama3(rope_theta);
        }
        match self.get(&field("type")).and_then(super::Value::text) {
            None | Some("none") => Ok(Json::Null),
            Some("linear") => Ok(json!({"rope_type": "linear", "factor": number("factor")})),
            Some("yarn") => Ok(json!({
                "rope_type": "yarn",
                "factor": number("factor"),
                "original_max_position_embeddings": number("original_context_length").map(|n| n as u64),
            })),
            Some(other) => {
                let what = format!("`{}` \"{other}\"", field("type"));
                Err(Error::unsupported(self.path(), what, "use the safetensors of this model"))
            }
        }
    }

    /// The parameters of Llama 3's scaling that give the frequencies of the file.
    fn llama3(&self, rope_theta: f64) -> Result<Json> {
        let factors: Vec<f64> = self.read_f32(ROPE_FACTORS)?.into_iter().map(f64::from).collect();
        let (low, high) = LLAMA3;
        let frequency = |i: usize| rope_theta.powf(-(i as f64) / factors.len() as f64);
        let factor = factors.iter().copied().fold(1.0, f64::max);
        // A frequency between the two that are kept and divided in full tells where those lie.
        let original =
            factors.iter().enumerate().find(|(_, found)| (1.01..0.99 * factor).contains(*found)).map(|(i, found)| {
                let smooth = (1.0 / found - 1.0 / factor) / (1.0 - 1.0 / factor);
                ((low + smooth * (high - low)) * std::f64::consts::TAU / frequency(i)).round()
            });
        let fits = |original: f64| {
            factors.iter().enumerate().all(|(i, found)| {
                let turns = original * frequency(i) / std::f64::consts::TAU;
                let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                let want = 1.0 / ((1.0 - smooth) / factor + smooth);
                (found - want).abs() <= 1e-3 * want
            })
        };
        match original.filter(|original| *original >= 1.0 && *original < 1e9 && fits(*original)) {
            Some(original) => Ok(json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original as u64,
            })),
            None => {
                let what = "tensor `rope_freqs.weight` with other frequencies than Llama 3's scaling gives";
                Err(Error::unsupported(self.path(), what, "use the safetensors of this model"))
            }
        }
    }
}
