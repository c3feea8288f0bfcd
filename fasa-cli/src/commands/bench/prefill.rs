//! `fasa bench prefill`: reading a prompt.

use super::{parse_length, random_decoder};
use crate::model::LanguageModel;
use crate::report::{self, Format};
use crate::settings::ModelArgs;
use anyhow::Result;
use clap::builder::PossibleValuesParser;
use fasa_burn::Dtype;
use fasa_burn::generate::Cancel;
use fasa_burn::method::Method;
use fasa_burn::model::{Logits, PREFILL_CHUNK, to_host};
use fasa_burn::random;
use serde::Serialize;
use std::time::Instant;

/// Arguments of `fasa bench prefill`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Random weights in the shape of a well-known model, instead of `--model`
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(random::shapes()))]
    random: Option<String>,

    /// Where the stretches end that are timed
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "2k,8k,16k", value_parser = parse_length)]
    lengths: Vec<usize>,

    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    dtype: Dtype,
    threads: usize,
    results: Vec<Stretch>,
}

#[derive(Debug, Serialize)]
struct Stretch {
    from: usize,
    to: usize,
    tokens_per_second: f64,
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be loaded or fails.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    let mut ends = args.lengths.clone();
    ends.sort_unstable();
    ends.dedup();
    let (name, mut decoder) = match &args.random {
        Some(shape) => (format!("random {shape}"), random_decoder(shape, &args.model)?),
        None => {
            let model = LanguageModel::load(&args.model)?;
            (model.name, model.decoder)
        }
    };
    let longest = ends.last().copied().unwrap_or(0);
    decoder.allow_positions(longest);
    let vocabulary = decoder.config().vocab_size as u32;
    let tokens: Vec<u32> = (0..longest as u32).map(|i| i.wrapping_mul(7919) % vocabulary).collect();
    let mut cache = decoder.new_cache(longest);
    let text = args.format == Format::Text;
    if text {
        let dtype = decoder.dtype();
        report::text(format_args!("{}, {dtype}\n\n{:>16}  {:>9}", name, "tokens", "tokens/s"))?;
    }
    // The first chunk pays for memory that later ones find.
    decoder.forward(&tokens[..PREFILL_CHUNK.min(longest)], &mut cache, &Method::Dense, Logits::None)?;
    cache.truncate(0);
    let mut results = vec![];
    let mut from = 0;
    for &to in &ends {
        let start = Instant::now();
        for chunk in tokens[from..to].chunks(PREFILL_CHUNK) {
            anyhow::ensure!(!cancel.is_cancelled(), "stopped");
            let logits = decoder.forward(chunk, &mut cache, &Method::Dense, Logits::Last)?;
            logits.map_or(Ok(()), |logits| to_host(logits).map(drop))?;
        }
        let tokens_per_second = (to - from) as f64 / start.elapsed().as_secs_f64();
        if text {
            let span = format!("{} to {}", report::count(from), report::count(to));
            report::text(format_args!("{span:>16}  {tokens_per_second:>9.0}"))?;
        }
        results.push(Stretch { from, to, tokens_per_second });
        from = to;
    }
    if text {
        return Ok(());
    }
    let (dtype, threads) = (decoder.dtype(), rayon::current_num_threads());
    report::json(&Report { model: name, dtype, threads, results })
}
