//! `fasa bench decode`: tokens per second of a whole model.

use super::{HostMemory, Turns, in_turns, median, parse_length, random_decoder};
use crate::methods;
use crate::model::LanguageModel;
use crate::report::{self, Format};
use crate::settings::{MethodArgs, MethodName, ModelArgs};
use anyhow::Result;
use clap::builder::PossibleValuesParser;
use fasa_burn::Dtype;
use fasa_burn::cache::KvCache;
use fasa_burn::device::is_gpu;
use fasa_burn::generate::Cancel;
use fasa_burn::measure::{memory, wait, weight_bytes};
use fasa_burn::method::Method;
use fasa_burn::model::{Decoder, Logits, to_host};
use fasa_burn::random;
use serde::Serialize;
use std::time::Instant;

/// Arguments of `fasa bench decode`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Random weights in the shape of a well-known model, and chunks ranked by noise, instead of `--model`
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(random::shapes()))]
    random: Option<String>,

    #[command(flatten)]
    method: MethodArgs,

    /// Tokens in the cache, filled with noise; lengths beyond what the model was trained for are fine
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "2k,8k,32k", value_parser = parse_length)]
    lengths: Vec<usize>,

    /// Steps that are timed, per method and length
    #[arg(long, value_name = "N", default_value_t = 32)]
    steps: usize,

    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    dtype: Dtype,
    threads: usize,
    weight_bytes_per_step: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_memory: Option<HostMemory>,
    results: Vec<Speed>,
}

/// Times of a step on a GPU whose kernels are asked for one after the other.
const LAUNCHES: usize = 9;

#[derive(Debug, Serialize)]
struct Speed {
    tokens_in_cache: usize,
    /// What the memory gave during these steps.
    memory_bytes_per_second: f64,
    method: &'static str,
    tokens_per_second: f64,
    cache_bytes_per_step: u64,
    /// Tokens per second if reading weights and cache were all there is to do.
    bound_tokens_per_second: f64,
    share_of_bound: f64,
    /// On a GPU: how long the host takes to ask for a step's kernels, while the device works.
    #[serde(skip_serializing_if = "Option::is_none")]
    launch_seconds: Option<f64>,
}

/// How long [`Speed::launch_seconds`] is.
fn launching(decoder: &Decoder, cache: &mut KvCache, method: &Method, length: usize) -> Result<Option<f64>> {
    if !is_gpu(decoder.device()) {
        return Ok(None);
    }
    let mut times = Vec::with_capacity(LAUNCHES);
    for _ in 0..LAUNCHES {
        cache.truncate(length);
        wait(decoder.device())?;
        let start = Instant::now();
        let logits = decoder.forward(&[1], cache, method, Logits::Last)?;
        times.push(start.elapsed().as_secs_f64());
        drop(logits);
    }
    Ok(Some(median(times)))
}

/// What is measured: its name, the decoder, and FASA for it; `random` names a shape instead of a model.
pub(super) fn subject(
    model: &ModelArgs,
    random: Option<&str>,
    method: &MethodArgs,
) -> Result<(String, Decoder, Method)> {
    let (config, preset, budget) = (method.config(), method.preset, method.budget);
    let Some(name) = random else {
        let model = LanguageModel::load(model)?;
        let fasa = methods::build(&model, MethodName::Fasa, &config, preset, method.profile.as_deref(), budget)?;
        return Ok((model.name, model.decoder, fasa));
    };
    let decoder = random_decoder(name, model)?;
    let plan = random::plan(decoder.fingerprint(), config)?;
    Ok((format!("random {name}"), decoder, Method::Fasa { plan, budget, dense_below: 0 }))
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be loaded or fails.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    anyhow::ensure!(args.steps > 0, "`--steps` is 0; use at least 1");
    anyhow::ensure!(
        args.method.method == MethodName::Fasa,
        "`--method` is for other commands: this one measures dense attention and FASA"
    );
    let longest = args.lengths.iter().copied().max().unwrap_or(0);
    let (name, mut decoder, fasa) = subject(&args.model, args.random.as_deref(), &args.method)?;
    decoder.allow_positions(longest + 8);
    let text = args.format == Format::Text;
    let memory = memory(decoder.device())?;
    let (numbers, dtype) = (decoder.config().clone(), decoder.dtype());
    let weights = weight_bytes(&numbers, dtype);
    let mut report = Report {
        model: name.clone(),
        dtype,
        threads: rayon::current_num_threads(),
        weight_bytes_per_step: weights,
        host_memory: HostMemory::of(decoder.device(), &memory),
        results: vec![],
    };
    if text {
        report::text(format_args!(
            "{}: {} of weights per step, {dtype}; {} of {} tokens kept\n\n{:>9}  {:>9}  {:<7} {:>9}  {:>10}  {:>9}  {:>6}",
            name,
            report::bytes(weights),
            report::count(fasa.kept(longest)),
            report::count(longest),
            "in cache",
            "memory",
            "method",
            "tokens/s",
            "cache read",
            "bound",
            "share"
        ))?;
    }
    for &length in &args.lengths {
        let mut cache = decoder.new_cache(length + 1);
        cache.append_noise(length)?;
        let methods = [("dense", &Method::Dense), ("fasa", &fasa)];
        let Turns { seconds, bytes_per_second: bandwidth } = in_turns::<2>(args.steps, &memory, cancel, |i| {
            cache.truncate(length);
            let logits = decoder.forward(&[1], &mut cache, methods[i].1, Logits::Last)?;
            logits.map_or(Ok(()), |logits| to_host(logits).map(drop))?;
            Ok(())
        })?;
        for ((name, method), seconds) in methods.into_iter().zip(seconds) {
            let cache_bytes = method.bytes_per_step(&numbers, length + 1, dtype);
            let bound = bandwidth / (weights + cache_bytes) as f64;
            let speed = Speed {
                tokens_in_cache: length,
                memory_bytes_per_second: bandwidth,
                method: name,
                tokens_per_second: 1.0 / seconds,
                cache_bytes_per_step: cache_bytes,
                bound_tokens_per_second: bound,
                share_of_bound: 1.0 / seconds / bound,
                launch_seconds: launching(&decoder, &mut cache, method, length)?,
            };
            if text {
                report::text(format_args!(
                    "{:>9}  {:>4.1} GB/s  {:<7} {:>9.1}  {:>10}  {:>9.1}  {:>5.0}%{}",
                    report::count(length),
                    bandwidth / 1e9,
                    name,
                    speed.tokens_per_second,
                    report::bytes(cache_bytes),
                    bound,
                    100.0 * speed.share_of_bound,
                    speed.launch_seconds.map_or(String::new(), |s| format!("  launched in {:.2} ms", 1e3 * s))
                ))?;
            }
            report.results.push(speed);
        }
    }
    match (text, report.host_memory) {
        (true, Some(memory)) => report::text(format_args!("\n{}", memory.note())),
        (true, None) => Ok(()),
        (false, _) => report::json(&report),
    }
}
