//! Decode and prefill rates of candle-transformers' Llama, batch 1, in f32 and f16.
//!
//! `peers-candle check FOLDER`, `peers-candle measure FOLDER LENGTH... > rows.jsonl`; REPEATS, STEPS and
//! RAYON_NUM_THREADS in the environment.

use candle_core::{D, DType, Device, Result, Tensor, safetensors};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Tokens that one prefill call takes. Its attention holds scores of all heads, this many queries, all keys; more at
/// once is not faster and needs memory without end.
const PREFILL: usize = 512;
/// Largest difference of two logits, relative to the spread of the reference logits.
const TOLERANCE: f64 = 0.1;
const DTYPES: [(&str, DType); 2] = [("f32", DType::F32), ("f16", DType::F16)];

struct Model {
    llama: Llama,
    config: Config,
    dtype: DType,
}

impl Model {
    fn load(folder: &Path, dtype: DType, positions: usize) -> Result<Self> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
        files.retain(|f| f.extension().is_some_and(|e| e == "safetensors") && !f.ends_with("expected.safetensors"));
        let mut config = config(folder)?;
        // Only the size of its tables of angles; the lengths may go past the trained positions.
        config.max_position_embeddings = positions;
        // SAFETY: nobody writes to the checkpoint while it is mapped.
        let weights = unsafe { VarBuilder::from_mmaped_safetensors(&files, dtype, &Device::Cpu)? };
        Ok(Self { llama: Llama::load(weights, &config)?, config, dtype })
    }

    fn cache(&self) -> Result<Cache> {
        Cache::new(true, self.dtype, &self.config, &Device::Cpu)
    }

    /// Runs `tokens` at `position` and returns the logits of the last one.
    fn forward(&self, tokens: &[u32], position: usize, cache: &mut Cache) -> Result<Tensor> {
        self.llama.forward(&Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?, position, cache)?.squeeze(0)
    }
}

/// `config.json` as candle reads it: it knows the older spelling of the rope parameters only.
fn config(folder: &Path) -> Result<Config> {
    let mut config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?).expect("config.json");
    if let Some(rope) = config.get("rope_parameters").cloned() {
        config["rope_theta"] = rope["rope_theta"].clone();
        let default = rope["rope_type"].as_str().is_none_or(|kind| kind == "default");
        config["rope_scaling"] = if default { Value::Null } else { rope };
    }
    Ok(serde_json::from_value::<LlamaConfig>(config).expect("a Llama that candle knows").into_config(false))
}

fn check(folder: &Path) -> Result<()> {
    let expected = safetensors::load(folder.join("expected.safetensors"), &Device::Cpu)?;
    let ids = expected["input_ids"].to_dtype(DType::U32)?.to_vec1::<u32>()?;
    let reference = expected["logits"].to_dtype(DType::F32)?;
    let spread = reference.flatten_all()?.var(0)?.to_scalar::<f32>()?.sqrt();
    let allowed = TOLERANCE * f64::from(spread);
    for (name, dtype) in DTYPES {
        let model = Model::load(folder, dtype, ids.len())?;
        let largest = |a: &Tensor, b: &Tensor| (a - b)?.abs()?.flatten_all()?.max(D::Minus1)?.to_scalar::<f32>();
        let mut cache = model.cache()?;
        let steps: Vec<_> =
            ids.iter().enumerate().map(|(i, &id)| model.forward(&[id], i, &mut cache)).collect::<Result<_>>()?;
        let worst = largest(&Tensor::stack(&steps, 0)?, &reference)?;
        let batch = largest(&model.forward(&ids, 0, &mut model.cache()?)?, &reference.get(ids.len() - 1)?)?;
        println!(
            "candle, {name}: largest difference of logits {worst:.4} ({batch:.4} as one batch), {allowed:.4} allowed"
        );
        assert!(f64::from(worst.max(batch)) < allowed, "candle computes something else");
    }
    Ok(())
}

fn measure(folder: &Path, lengths: &[usize]) -> Result<()> {
    let number = |name, default| std::env::var(name).map_or(default, |n| n.parse().expect("a number"));
    let (repeats, steps) = (number("REPEATS", 3), number("STEPS", 32));
    let longest = *lengths.last().expect("at least one length");
    for (name, dtype) in DTYPES {
        let model = Model::load(folder, dtype, longest + steps + 2)?;
        let ids: Vec<u32> = (0..longest).map(|i| (i * 7919 % model.config.vocab_size) as u32).collect();
        let row = |what: &str, from: usize, to: usize, tokens: usize, start: Instant| {
            let rate = tokens as f64 / start.elapsed().as_secs_f64();
            println!(
                r#"{{"engine": "candle", "variant": "{name}", "what": "{what}", "from": {from}, "to": {to}, "tokens_per_s": {rate}}}"#
            );
        };
        model.forward(&ids[..PREFILL.min(longest)], 0, &mut model.cache()?)?;
        for _ in 0..repeats {
            let mut cache = model.cache()?;
            let mut from = 0;
            for &to in lengths {
                let start = Instant::now();
                let mut position = from;
                for part in ids[from..to].chunks(PREFILL) {
                    model.forward(part, position, &mut cache)?;
                    position += part.len();
                }
                row("prefill", from, to, to - from, start);
                // Steps on a copy: candle's tensors do not change, so this is a way back to `to` tokens.
                let mut copy = cache.clone();
                let mut step = |i: usize| model.forward(&ids[i..=i], to + i, &mut copy);
                (0..2).try_for_each(|i| step(i).map(drop))?;
                let start = Instant::now();
                (2..steps + 2).try_for_each(|i| step(i).map(drop))?;
                row("decode", to, to, steps, start);
                from = to;
            }
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["check", folder] => check(Path::new(folder)),
        ["measure", folder, ref lengths @ ..] => {
            let mut lengths: Vec<usize> = lengths.iter().map(|n| n.parse().expect("a length")).collect();
            lengths.sort_unstable();
            measure(Path::new(folder), &lengths)
        }
        _ => panic!("usage: peers-candle check FOLDER | measure FOLDER LENGTH..."),
    }
}
