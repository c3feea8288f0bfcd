//! `fasa bench memory`: what a context takes and a step costs, by where keys and values lie.

use super::{in_turns, parse_length};
use crate::pictures::curves::{self, Chart, Series};
use crate::report::{self, Format};
use crate::settings::{MethodArgs, MethodName, ModelArgs};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use fasa_burn::Dtype;
use fasa_burn::cache::Placement;
use fasa_burn::generate::Cancel;
use fasa_burn::measure::Memory;
use fasa_burn::method::Method;
use fasa_burn::model::{Decoder, Logits, to_host};
use fasa_burn::random;
use serde::Serialize;
use std::path::PathBuf;

/// Arguments of `fasa bench memory`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Random weights in the shape of a well-known model, and chunks ranked by noise, instead of `--model`
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(random::shapes()))]
    random: Option<String>,

    #[command(flatten)]
    method: MethodArgs,

    /// What is measured; one alone has the process to itself
    #[arg(long, value_enum, value_name = "WHAT,..", value_delimiter = ',', default_value = "fasa-m,fasa-c,dense")]
    what: Vec<Way>,

    /// Tokens in the cache, filled with noise; lengths beyond what the model was trained for are fine
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "2k,8k,32k", value_parser = parse_length)]
    lengths: Vec<usize>,

    /// Steps that are timed, each with another token
    #[arg(long, value_name = "N", default_value_t = 32)]
    steps: usize,

    /// Draw memory and time over the length into this file, .svg or .png
    #[arg(long, value_name = "FILE", value_parser = crate::pictures::parse_path)]
    picture: Option<PathBuf>,

    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Ways to hold a context and to attend to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Everything in memory and every token read
    Dense,
    /// Everything in memory, FASA
    FasaC,
    /// Keys and values in the second tier, FASA
    FasaM,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Dense => "dense",
            Way::FasaC => "fasa-c",
            Way::FasaM => "fasa-m",
        }
    }
}

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    dtype: Dtype,
    threads: usize,
    /// F / d, of the dimensions that the sketch holds, and so the memory of the published method over that of dense.
    published_memory_share: f64,
    results: Vec<Measured>,
}

#[derive(Debug, Serialize)]
struct Measured {
    tokens_in_cache: usize,
    what: &'static str,
    tokens_kept: usize,
    /// Keys and values in the device's memory, with sketches and recently chosen rows.
    device_bytes: u64,
    /// Keys and values in the second tier.
    tier_bytes: u64,
    /// `device_bytes` over the keys and values of the same context all in memory.
    device_share_of_dense: f64,
    /// What the process took more than before there was a cache, as the operating system counts it; none where it does
    /// not say. What lay free in the process before is not seen.
    resident_bytes: Option<u64>,
    /// Read from and written to the second tier.
    bytes_moved_per_step: f64,
    /// The share of chosen rows that were in memory; none without a second tier.
    hit_rate: Option<f64>,
    seconds_per_step: f64,
    tokens_per_second: f64,
    /// Cache bytes that a dense step reads over those that this one reads.
    bytes_fewer: f64,
    /// The same as published, for a sketch in the cache's format: 1 / (F / d + N / n).
    published_bytes_fewer: f64,
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be loaded or fails.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    ensure!(args.steps > 0, "`--steps` is 0; use at least 1");
    ensure!(
        args.method.method == MethodName::Fasa,
        "`--method` is for other commands: `--what` says what this one measures"
    );
    let folder = match args.model.cache.placement()? {
        Placement::Auto(folder) | Placement::Tiered(folder) => Some(folder),
        Placement::Device => None,
    };
    ensure!(
        folder.is_some() || !args.what.contains(&Way::FasaM),
        "`--cache device` leaves no second tier to measure; leave it out, or leave fasa-m out of `--what`"
    );
    let (name, mut decoder, fasa) = super::decode::subject(&args.model, args.random.as_deref(), &args.method)?;
    let longest = args.lengths.iter().copied().max().unwrap_or(0);
    decoder.allow_positions(longest + args.steps + 8);
    let Method::Fasa { plan, .. } = &fasa else { anyhow::bail!("the method is FASA") };
    let share = plan.view().chunks() as f64 / decoder.config().head_dim as f64;
    let mut report = Report {
        model: name,
        dtype: decoder.dtype(),
        threads: rayon::current_num_threads(),
        published_memory_share: share,
        results: vec![],
    };
    let text = args.format == Format::Text;
    if text {
        report::text(heading(&report))?;
    }
    for &length in &args.lengths {
        for &way in &args.what {
            decoder.set_placement(match (way, &folder) {
                (Way::FasaM, Some(folder)) => Placement::Tiered(folder.clone()),
                _ => Placement::Device,
            })?;
            let method = if way == Way::Dense { &Method::Dense } else { &fasa };
            let measured = measure(&decoder, way, method, length, args.steps, share, cancel)?;
            if text {
                report::text(row(&measured))?;
            }
            report.results.push(measured);
        }
    }
    if let Some(path) = &args.picture {
        curves::draw("Memory and time over the length of the context", &charts(&report), 2).save(path)?;
    }
    if text { Ok(()) } else { report::json(&report) }
}

fn measure(
    decoder: &Decoder,
    way: Way,
    method: &Method,
    length: usize,
    steps: usize,
    share: f64,
    cancel: &Cancel,
) -> Result<Measured> {
    let before = resident();
    let mut cache = decoder.new_cache(length + steps + 2);
    cache.append_noise(length)?;
    let vocabulary = decoder.config().vocab_size as u32;
    let mut token = 0u32;
    let mut traffic = None;
    // No bound is held against these times, and memory to read would be counted.
    let turns = in_turns::<1>(steps, &Memory::new(0), cancel, |_| {
        if token == 1 {
            // Behind the first step, which makes the sketch.
            traffic = cache.tier().map(|tier| tier.traffic);
        }
        token += 1;
        let id = token.wrapping_mul(7919) % vocabulary;
        let logits = decoder.forward(&[id], &mut cache, method, Logits::Last)?;
        Ok(to_host(logits.context("no logits")?).map(drop)?)
    })?;
    let resident_bytes = before.zip(resident()).map(|(before, now)| now.saturating_sub(before));
    let moved = cache.tier().zip(traffic).map(|(tier, before)| tier.traffic.since(&before));
    let (config, dtype, seen) = (decoder.config(), decoder.dtype(), length + 1);
    let dense_read = Method::Dense.bytes_per_step(config, seen, dtype) as f64;
    let row = (2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.bytes()) as f64;
    let (device_bytes, kept) = (cache.device_bytes(), method.kept(seen));
    let [seconds] = turns.seconds;
    let published = if way == Way::Dense { 1.0 } else { 1.0 / (share + kept as f64 / seen as f64) };
    Ok(Measured {
        tokens_in_cache: length,
        what: way.name(),
        tokens_kept: kept,
        device_bytes,
        tier_bytes: cache.tier().map_or(0, |tier| tier.file_bytes),
        device_share_of_dense: device_bytes as f64 / (row * (length + steps + 2) as f64),
        resident_bytes,
        bytes_moved_per_step: moved.map_or(0.0, |m| (m.bytes_read + m.bytes_written) as f64 / steps as f64),
        hit_rate: moved.and_then(|moved| moved.hit_rate()),
        seconds_per_step: seconds,
        tokens_per_second: 1.0 / seconds,
        bytes_fewer: dense_read / method.bytes_per_step(config, seen, dtype) as f64,
        published_bytes_fewer: published,
    })
}

/// Memory of this process that is no file's, as Linux counts it.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn heading(report: &Report) -> String {
    format!(
        "{}, {}; memory as published: {:.3} of dense\n\n\
         {:>9}  {:<7}  {:>9} {:>6}  {:>9}  {:>9}  {:>10} {:>6}  {:>9}  {:>6} {:>9}",
        report.model,
        report.dtype,
        report.published_memory_share,
        "in cache",
        "what",
        "device",
        "share",
        "resident",
        "tier",
        "moved/step",
        "hits",
        "tokens/s",
        "bytes",
        "published"
    )
}

fn row(measured: &Measured) -> String {
    format!(
        "{:>9}  {:<7}  {:>9} {:>6.3}  {:>9}  {:>9}  {:>10} {:>6}  {:>9.1}  {:>5.1}x {:>8.1}x",
        report::count(measured.tokens_in_cache),
        measured.what,
        report::bytes(measured.device_bytes),
        measured.device_share_of_dense,
        measured.resident_bytes.map_or_else(|| "?".into(), report::bytes),
        report::bytes(measured.tier_bytes),
        report::bytes(measured.bytes_moved_per_step as u64),
        measured.hit_rate.map_or_else(|| "-".into(), |share| format!("{:.0}%", 100.0 * share)),
        measured.tokens_per_second,
        measured.bytes_fewer,
        measured.published_bytes_fewer
    )
}

/// Memory and time, a line for each way.
fn charts(report: &Report) -> Vec<Chart> {
    let line = |colour: usize, way: Way, of: &dyn Fn(&Measured) -> f64| {
        let mut points: Vec<(f64, f64)> = report
            .results
            .iter()
            .filter(|measured| measured.what == way.name())
            .map(|measured| (measured.tokens_in_cache as f64, of(measured)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series { name: way.name().into(), colour, points, level: false }
    };
    let chart = |title: &str, of: &dyn Fn(&Measured) -> f64| Chart {
        title: title.into(),
        x: "tokens in the cache".into(),
        logarithmic: true,
        share: false,
        series: [Way::Dense, Way::FasaC, Way::FasaM]
            .into_iter()
            .enumerate()
            .map(|(colour, way)| line(colour, way, of))
            .filter(|series| !series.points.is_empty())
            .collect(),
    };
    vec![
        chart("Device memory of the cache (MB)", &|measured| measured.device_bytes as f64 / 1e6),
        chart("Time per token (ms)", &|measured| 1e3 * measured.seconds_per_step),
    ]
}
