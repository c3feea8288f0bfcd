//! `fasa eval`: questions with known answers, method by method, over one shared prefill.

use crate::methods;
use crate::model::LanguageModel;
use crate::report::{self, Format};
use crate::settings::{FasaArgs, MethodName, ModelArgs, Preset, parse_budget};
use crate::tasks::{self, Instance, Request, Task};
use crate::terminal;
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use fasa_burn::Dtype;
use fasa_burn::generate::Cancel;
use fasa_burn::method::Method;
use fasa_burn::model::{Logits, to_host};
use fasa_core::Budget;
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

/// Arguments of `fasa eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tasks: needle, kv, chain, recall
    #[arg(required = true, value_name = "TASK")]
    tasks: Vec<Task>,

    /// Methods to compare
    #[arg(long, value_enum, value_delimiter = ',', default_value = "dense,default,paper", value_name = "METHOD,...")]
    methods: Vec<Contender>,

    /// Tokens that each decode step reads: a count or a share of the context
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = parse_budget)]
    budget: Budget,

    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value_t = 2048)]
    tokens: usize,

    /// Instances per task
    #[arg(long, value_name = "N", default_value_t = 32)]
    instances: u64,

    /// Draws another set of instances
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    #[command(flatten)]
    model: ModelArgs,

    /// Profile of the FASA methods, instead of the ones beside the model; it serves one preset, so name one in --methods
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,

    #[command(flatten)]
    fasa: FasaArgs,

    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Methods that can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Contender {
    /// Every token
    Dense,
    /// FASA, default preset
    Default,
    /// FASA, as published
    Paper,
    /// The best tokens by their true attention
    Oracle,
    /// StreamingLLM
    Streaming,
}

impl Contender {
    fn parts(self) -> (MethodName, Preset) {
        match self {
            Contender::Dense => (MethodName::Dense, Preset::Default),
            Contender::Default => (MethodName::Fasa, Preset::Default),
            Contender::Paper => (MethodName::Fasa, Preset::Paper),
            Contender::Oracle => (MethodName::Oracle, Preset::Default),
            Contender::Streaming => (MethodName::Streaming, Preset::Default),
        }
    }
}

/// What the command found.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    tokens: usize,
    instances: u64,
    seed: u64,
    budget: Budget,
    protocol: &'static str,
    dtype: Dtype,
    results: Vec<Cell>,
}

/// One method on one task.
#[derive(Debug, Serialize)]
struct Cell {
    task: Task,
    method: String,
    /// Answers of which every token was the most likely one.
    right: usize,
    /// Those among them that dense attention got right too; without dense among the methods, all.
    right_of_dense: usize,
    instances: usize,
    cache_bytes_per_step: u64,
    /// Per instance, in order.
    outcomes: Vec<bool>,
}

/// Runs the command.
///
/// # Errors
/// If the model, a profile or the arguments are at fault.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    ensure!(args.instances > 0, "`--instances` is 0; use at least 1");
    let model = LanguageModel::load(&args.model)?;
    let contenders: Vec<(String, Method)> = args
        .methods
        .iter()
        .map(|contender| {
            let (name, preset) = contender.parts();
            let config = args.fasa.apply(preset);
            let method = methods::build(&model, name, &config, preset, args.profile.as_deref(), args.budget)?;
            Ok((methods::label(name, preset, &args.fasa), method))
        })
        .collect::<Result<_>>()?;
    let mut cells = Vec::new();
    for task in &args.tasks {
        cells.extend(run_task(args, &model, *task, &contenders, cancel)?);
    }
    let result = Report {
        model: model.name.clone(),
        tokens: args.tokens,
        instances: args.instances,
        seed: args.seed,
        budget: args.budget,
        protocol: "answer decode",
        dtype: model.decoder.dtype(),
        results: cells,
    };
    match args.format {
        Format::Json => report::json(&result),
        Format::Text => report::text(table(&result)?),
    }
}

fn run_task(
    args: &Args,
    model: &LanguageModel,
    task: Task,
    contenders: &[(String, Method)],
    cancel: &Cancel,
) -> Result<Vec<Cell>> {
    let bar = terminal::progress(task.name(), "questions");
    let mut outcomes = vec![Vec::new(); contenders.len()];
    for index in 0..args.instances {
        terminal::advance(&bar, index as usize, args.instances as usize);
        ensure!(!cancel.is_cancelled(), "stopped");
        let request = Request { seed: args.seed, index, ..Request::new(task, args.tokens) };
        let instance = tasks::generate(&request, &|text| model.count_tokens(text))?;
        for (right, row) in answer(model, &instance, contenders)?.into_iter().zip(&mut outcomes) {
            row.push(right);
        }
    }
    bar.finish_and_clear();
    let dense = contenders.iter().position(|(_, method)| matches!(method, Method::Dense));
    let reference = dense.map_or_else(|| vec![true; args.instances as usize], |d| outcomes[d].clone());
    let cells = contenders.iter().zip(outcomes).map(|((label, method), outcomes)| Cell {
        task,
        method: label.clone(),
        right: outcomes.iter().filter(|o| **o).count(),
        right_of_dense: outcomes.iter().zip(&reference).filter(|(o, d)| **o && **d).count(),
        instances: outcomes.len(),
        cache_bytes_per_step: bytes_read(model, label, method, args.tokens),
        outcomes,
    });
    Ok(cells.collect())
}

/// Cache bytes that a step reads. The oracle reads all keys and values to know which it would have needed.
fn bytes_read(model: &LanguageModel, label: &str, method: &Method, seen: usize) -> u64 {
    let method = if label == "oracle" { &Method::Dense } else { method };
    method.bytes_per_step(model.decoder.config(), seen, model.decoder.dtype())
}

/// Whether each method gets the answer right: context and question are read densely once, then every answer token must be
/// the most likely one, the tokens before it being given.
fn answer(model: &LanguageModel, instance: &Instance, contenders: &[(String, Method)]) -> Result<Vec<bool>> {
    let decoder = &model.decoder;
    let prompt = model.encode_prompt(&instance.prompt())?;
    let answer = model.tokenizer.encode(&instance.answer)?;
    let mut cache = decoder.new_cache(prompt.len() + answer.len());
    let logits = decoder.forward(&prompt, &mut cache, &Method::Dense, Logits::Last)?;
    let first = most_likely(&to_host(logits.context("no logits")?)?);
    contenders
        .iter()
        .map(|(_, method)| {
            cache.truncate(prompt.len());
            let mut next = first;
            for (i, token) in answer.iter().enumerate() {
                if next != *token {
                    return Ok(false);
                }
                if i + 1 < answer.len() {
                    let logits = decoder.forward(&[*token], &mut cache, method, Logits::Last)?;
                    next = most_likely(&to_host(logits.context("no logits")?)?);
                }
            }
            Ok(true)
        })
        .collect()
}

fn most_likely(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

fn table(result: &Report) -> Result<String> {
    let mut out = String::new();
    let bytes = format!("{} bytes per step", result.dtype);
    writeln!(out, "{:<10} {:<22} {:>7}  {:>9}  {bytes:>18}", "task", "method", "right", "of dense")?;
    for cell in &result.results {
        let dense_right = result
            .results
            .iter()
            .find(|c| c.task == cell.task && c.method == "dense")
            .map_or(cell.instances, |c| c.right);
        writeln!(
            out,
            "{:<10} {:<22} {:>3}/{:<3}  {:>8.0}%  {:>18}",
            cell.task,
            cell.method,
            cell.right,
            cell.instances,
            100.0 * cell.right_of_dense as f64 / dense_right.max(1) as f64,
            report::bytes(cell.cache_bytes_per_step)
        )?;
    }
    Ok(out.trim_end().to_owned())
}
