//! `fasa inspect`: what is in a profile or a model.

use crate::builtin;
use crate::pictures::heatmap::Heatmap;
use crate::pictures::{parse_path, terminal};
use crate::report::{self, Format};
use crate::settings::DtypeName;
use anyhow::{Context, Result, bail};
use fasa_burn::checkpoint::Checkpoint;
use fasa_burn::config::ModelConfig;
use fasa_burn::{DeviceName, Dtype};
use fasa_core::FasaConfig;
use fasa_core::profile::ProfileView;
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Arguments of `fasa inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A profile, or a model's folder; `nano` is the model inside this binary
    path: PathBuf,

    /// Chunks shown per head of a profile
    #[arg(long, value_name = "N", default_value_t = 8)]
    chunks: usize,

    /// Number format of the cache, for its size
    #[arg(long, value_enum, default_value_t)]
    dtype: DtypeName,

    /// Draws a profile's scores, a panel per layer, into this file, .svg or .png; without a file, on the terminal
    #[arg(long, value_name = "FILE", num_args = 0..=1, value_parser = parse_path)]
    heatmap: Option<Option<PathBuf>>,

    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What `--format json` prints of a model.
#[derive(Debug, Serialize)]
struct ModelReport {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    rope_theta: f64,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
    tensors: usize,
    parameters: u64,
    dtype: Dtype,
    cache_bytes_per_token: usize,
    sketch_bytes_per_token: usize,
}

/// Runs the command.
///
/// # Errors
/// If the path is neither a profile nor a model, or damaged.
pub fn run(args: &Args) -> Result<()> {
    if args.heatmap.is_some() && (args.path == Path::new(builtin::NAME) || args.path.is_dir()) {
        bail!("`--heatmap` draws a profile and `{}` is a model; name its profile", args.path.display());
    }
    if args.path == Path::new(builtin::NAME) {
        let config = ModelConfig::from_json(builtin::CONFIG, Path::new("nano/config.json"))?;
        return model(args, &config, &Checkpoint::from_bytes("nano/model.safetensors", builtin::WEIGHTS)?);
    }
    if args.path.is_dir() {
        return model(args, &ModelConfig::read(&args.path)?, &Checkpoint::open(&args.path)?);
    }
    let bytes = std::fs::read(&args.path)
        .with_context(|| format!("cannot read `{}`; give a profile or a model's folder", args.path.display()))?;
    let view = ProfileView::parse(&bytes).with_context(|| format!("`{}`", args.path.display()))?;
    match &args.heatmap {
        None => profile(args, &view, bytes.len()),
        Some(Some(file)) => Heatmap::of(&view).draw(2).save(file),
        Some(None) => report::text(terminal::heatmap(&Heatmap::of(&view), console::colors_enabled()).trim_end()),
    }
}

fn model(args: &Args, config: &ModelConfig, checkpoint: &Checkpoint) -> Result<()> {
    let sizes = checkpoint.names().map(|name| checkpoint.shape(name).unwrap_or(&[]).iter().product::<usize>());
    let (tensors, parameters) = sizes.fold((0, 0), |(n, sum), size| (n + 1, sum + size as u64));
    let dtype = args.dtype.dtype(checkpoint.is_half(), &DeviceName::default().open()?);
    let row = config.num_hidden_layers * config.num_key_value_heads;
    let fasa = FasaConfig::DEFAULT;
    let chunks = match fasa.chunks.of(config.head_dim / 2) {
        Ok(chunks) => chunks,
        Err(error) => bail!("`head_dim` of the model: {error}"),
    };
    let sketch = fasa.precision.row_bytes(chunks) + fasa.precision.scale_bytes();
    let result = ModelReport {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        num_key_value_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        rope_theta: config.rope.theta,
        max_position_embeddings: config.max_position_embeddings,
        tie_word_embeddings: config.tie_word_embeddings,
        tensors,
        parameters,
        dtype,
        cache_bytes_per_token: row * 2 * config.head_dim * dtype.bytes(),
        sketch_bytes_per_token: row * sketch,
    };
    match args.format {
        Format::Json => report::json(&result),
        Format::Text => report::text(format_args!(
            "model         {} ({} parameters in {} tensors)\n\
             layers        {} of width {}, feed-forward {}\n\
             heads         {} query, {} key-value, {} dimensions ({} chunks)\n\
             positions     {}, rope_theta {}\n\
             vocabulary    {}{}\n\
             cache         {} per token in {dtype}; the default sketch adds {} ({:.1} %)",
            args.path.display(),
            report::count(parameters as usize),
            tensors,
            result.num_hidden_layers,
            result.hidden_size,
            result.intermediate_size,
            result.num_attention_heads,
            result.num_key_value_heads,
            result.head_dim,
            result.head_dim / 2,
            report::count(result.max_position_embeddings),
            result.rope_theta,
            report::count(result.vocab_size),
            if result.tie_word_embeddings { ", output tied to the embedding" } else { "" },
            report::bytes(result.cache_bytes_per_token as u64),
            report::bytes(result.sketch_bytes_per_token as u64),
            100.0 * result.sketch_bytes_per_token as f64 / result.cache_bytes_per_token as f64,
        )),
    }
}

fn profile(args: &Args, view: &ProfileView<'_>, bytes: usize) -> Result<()> {
    if args.format == Format::Json {
        return report::json(&view.export());
    }
    let model = view.model();
    let mut out = String::new();
    writeln!(
        out,
        "profile       {} (format {}, {})",
        args.path.display(),
        view.version(),
        report::bytes(bytes as u64)
    )?;
    writeln!(
        out,
        "model         {}, {} layers, {} query and {} key-value heads of {} dimensions, weights {:016x}",
        model.architecture, model.layers, model.query_heads, model.kv_heads, model.head_dim, model.weights
    )?;
    let k = match view.agreement_k() {
        0 => String::new(),
        k => format!(" (K = {k})"),
    };
    writeln!(out, "criterion     {}{k} per {}", view.criterion().name(), view.scope().name())?;
    writeln!(out, "calibrated    on {} steps; text: {}", report::count(view.steps() as usize), view.text())?;
    writeln!(out, "\nlayer head  chunks, best first (score)")?;
    for layer in 0..model.layers as usize {
        for row in 0..view.rows() {
            write!(out, "{layer:>5} {row:>4} ")?;
            for (chunk, score) in view.ranking(layer, row).zip(view.scores(layer, row)).take(args.chunks) {
                write!(out, " {chunk} ({score:.2})")?;
            }
            writeln!(out)?;
        }
    }
    report::text(out.trim_end())
}
