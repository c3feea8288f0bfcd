//! `fasa bench attention`: one layer's attention, nothing else.

use super::{HostMemory, in_turns, parse_length};
use crate::report::{self, Format};
use crate::settings::{DtypeName, FasaArgs, Preset};
use anyhow::{Context, Result};
use fasa_burn::generate::Cancel;
use fasa_burn::measure::{Attention, AttentionShape, awake, memory, wait};
use fasa_burn::{DeviceName, Dtype};
use fasa_core::FasaConfig;
use serde::Serialize;

/// Arguments of `fasa bench attention`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Query heads, KV heads and dimensions per head
    #[arg(long, value_name = "HQ,HKV,D", default_value = "32,8,128", value_parser = parse_shape)]
    shape: AttentionShape,

    /// Tokens in the cache
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "8k,32k,128k", value_parser = parse_length)]
    lengths: Vec<usize>,

    /// Tokens that FASA keeps
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    budget: usize,

    /// FASA settings to start from
    #[arg(long, value_enum, default_value_t)]
    preset: Preset,

    /// Changes to the preset
    #[command(flatten)]
    fasa: FasaArgs,

    /// Where it runs: see `fasa devices`
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceName,

    /// Number format of the cache
    #[arg(long, value_enum, default_value_t = DtypeName::F16)]
    dtype: DtypeName,

    /// Threads to use [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Steps that are timed, per method and length
    #[arg(long, value_name = "N", default_value_t = 31)]
    steps: usize,

    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn parse_shape(text: &str) -> Result<AttentionShape, String> {
    let numbers: Option<Vec<usize>> = text.split(',').map(|n| n.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[query_heads, kv_heads, head_dim])
            if kv_heads > 0
                && query_heads > 0
                && query_heads % kv_heads == 0
                && query_heads <= 1024
                && head_dim > 0 =>
        {
            Ok(AttentionShape { query_heads, kv_heads, head_dim })
        }
        _ => Err("give query heads, KV heads (a divisor of them) and dimensions, such as 32,8,128".into()),
    }
}

#[derive(Debug, Serialize)]
struct Report {
    query_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    dtype: Dtype,
    budget: usize,
    preset: &'static str,
    threads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_memory: Option<HostMemory>,
    results: Vec<Speed>,
}

#[derive(Debug, Serialize)]
struct Speed {
    tokens_in_cache: usize,
    /// What the memory gave during these steps.
    memory_bytes_per_second: f64,
    dense_seconds: f64,
    /// Share of the memory's speed at which keys and values were read.
    dense_share_of_bound: f64,
    fasa_seconds: f64,
    fasa_share_of_bound: f64,
    fasa_over_dense: f64,
    /// The ratio that the bytes allow.
    bound_over_dense: f64,
}

/// Runs the command.
///
/// # Errors
/// If the shape is none that a model has, or an operation fails.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    anyhow::ensure!(args.steps > 0, "`--steps` is 0; use at least 1");
    anyhow::ensure!(args.budget > 0, "`--budget` is 0; use at least 1");
    crate::threads::start(args.threads)?;
    let device = args.device.open()?;
    let dtype = args.dtype.dtype(true, &device);
    let config = FasaConfig { dense_layers: 0, ..args.fasa.apply(args.preset) };
    let text = args.format == Format::Text;
    let memory = memory(&device)?;
    let AttentionShape { query_heads, kv_heads, head_dim } = args.shape;
    let mut report = Report {
        query_heads,
        kv_heads,
        head_dim,
        dtype,
        budget: args.budget,
        preset: args.preset.name(),
        threads: rayon::current_num_threads(),
        host_memory: HostMemory::of(&device, &memory),
        results: vec![],
    };
    if text {
        report::text(format_args!(
            "{query_heads} query heads, {kv_heads} KV heads, {head_dim} dimensions, {dtype}; preset {}, {} tokens kept\n\n\
             {:>9}  {:>9}  {:>10} {:>6}  {:>10} {:>6}  {:>7} {:>7}",
            args.preset.name(),
            report::count(args.budget),
            "in cache",
            "memory",
            "dense",
            "share",
            "FASA",
            "share",
            "faster",
            "bound"
        ))?;
    }
    for &length in &args.lengths {
        let mut attention = Attention::new(args.shape, length, dtype, &device)?;
        let plan = attention.plan(config).context("the settings do not fit the shape")?;
        let turns = awake(|| {
            in_turns::<2>(args.steps, &memory, cancel, |i| {
                match i {
                    0 => attention.dense()?,
                    _ => attention.fasa(&plan, args.budget)?,
                };
                Ok(wait(&device)?)
            })
        })?;
        let ([dense, fasa], bandwidth) = (turns.seconds, turns.bytes_per_second);
        let row = (2 * head_dim * dtype.bytes()) as f64;
        let dense_bytes = (kv_heads * length) as f64 * row;
        let view = plan.view();
        let sketch = view.config().precision.row_bytes(view.chunks()) + view.config().precision.scale_bytes();
        let sets = view.config().token_scope.rows(query_heads, kv_heads);
        let kept = args.budget.min(length);
        let fasa_bytes = (view.rows() * length * sketch) as f64 + (sets * kept) as f64 * row;
        let speed = Speed {
            tokens_in_cache: length,
            memory_bytes_per_second: bandwidth,
            dense_seconds: dense,
            dense_share_of_bound: dense_bytes / bandwidth / dense,
            fasa_seconds: fasa,
            fasa_share_of_bound: fasa_bytes / bandwidth / fasa,
            fasa_over_dense: dense / fasa,
            bound_over_dense: dense_bytes / fasa_bytes,
        };
        if text {
            report::text(format_args!(
                "{:>9}  {:>4.1} GB/s  {:>7.3} ms {:>5.0}%  {:>7.3} ms {:>5.0}%  {:>6.1}x {:>6.1}x",
                report::count(length),
                bandwidth / 1e9,
                1e3 * dense,
                100.0 * speed.dense_share_of_bound,
                1e3 * fasa,
                100.0 * speed.fasa_share_of_bound,
                speed.fasa_over_dense,
                speed.bound_over_dense
            ))?;
        }
        report.results.push(speed);
    }
    match (text, report.host_memory) {
        (true, Some(memory)) => report::text(format_args!("\n{}", memory.note())),
        (true, None) => Ok(()),
        (false, _) => report::json(&report),
    }
}
