//! `fasa demo`, and `fasa` alone: the whole point in one run.

use crate::methods;
use crate::model::LanguageModel;
use crate::report::{self, Format};
use crate::settings::{CacheArgs, DtypeName, FasaArgs, MethodName, ModelArgs, Preset};
use crate::tasks::{self, Depth, Request, Task};
use crate::terminal;
use crate::writing::StopText;
use anyhow::{Context, Result};
use console::style;
use fasa_burn::cache::KvCache;
use fasa_burn::generate::{Cancel, Event, Options};
use fasa_burn::method::Method;
use fasa_burn::model::{Decoder, Logits, to_host};
use fasa_burn::sampling::Sampling;
use fasa_burn::{DeviceName, Dtype};
use fasa_core::Budget;
use serde::Serialize;
use std::time::Instant;

/// Arguments of `fasa demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tokens of the text
    #[arg(long, value_name = "N", default_value_t = 7000)]
    tokens: usize,

    /// Tokens that each step attends to
    #[arg(long, value_name = "N", default_value_t = 128)]
    budget: u32,

    /// Another text and question
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Where it runs: see `fasa devices`
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceName,

    /// Number format of weights and cache
    #[arg(long, value_enum, default_value_t)]
    dtype: DtypeName,

    #[command(flatten)]
    cache: CacheArgs,

    /// Steps that are timed
    #[arg(long, value_name = "N", default_value_t = 64)]
    timed_steps: usize,

    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Default for Args {
    fn default() -> Self {
        let (device, dtype) = (DeviceName::Cpu, DtypeName::Auto);
        let (cache, format) = (CacheArgs::default(), Format::Text);
        Self { tokens: 7000, budget: 128, seed: 0, device, dtype, cache, timed_steps: 64, format }
    }
}

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Report {
    question: String,
    expected: String,
    answer: String,
    answer_dense: String,
    right: bool,
    /// Where the fact lies in the text, 0 to 1.
    depth: f64,
    tokens_seen: usize,
    tokens_kept: usize,
    dtype: Dtype,
    cache_bytes_per_step_dense: u64,
    cache_bytes_per_step_fasa: u64,
    tokens_per_second_dense: f64,
    tokens_per_second_fasa: f64,
    prefill_seconds: f64,
}

/// Runs the command.
///
/// # Errors
/// If the text cannot be made or the model fails.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    anyhow::ensure!(args.budget > 0, "`--budget` is 0; use at least 1");
    anyhow::ensure!(args.timed_steps > 0, "`--timed-steps` is 0; use at least 1");
    let text_mode = args.format == Format::Text;
    let model = crate::builtin::NAME.into();
    let model_args = ModelArgs {
        model,
        device: args.device,
        dtype: args.dtype,
        threads: None,
        cache: args.cache.clone(),
        device_memory: None,
    };
    let model = LanguageModel::load(&model_args)?;
    let room = model.decoder.config().max_position_embeddings - args.timed_steps.min(1024);
    anyhow::ensure!(args.tokens <= room, "`--tokens` is {}; nano has room for {room} here", args.tokens);
    let config = FasaArgs::default().apply(Preset::Default);
    let budget = Budget::Tokens(args.budget);
    let fasa = methods::build(&model, MethodName::Fasa, &config, Preset::Default, None, budget)?;

    let request = Request { seed: args.seed, depth: Depth::FIRST_HALF, ..Request::new(Task::Needle, args.tokens) };
    let instance = tasks::generate(&request, &|text| model.count_tokens(text))?;
    let prompt = model.encode_prompt(&instance.prompt())?;
    if text_mode {
        report::text(format_args!(
            "{} is a 5.8 million parameter model. It reads {} tokens:",
            style(&model.name).bold(),
            report::count(prompt.len())
        ))?;
        report::text(style(excerpt(&instance.context)).dim())?;
    }
    let mut cache = model.decoder.new_cache(prompt.len() + args.timed_steps);
    let (before, last) = prompt.split_at(prompt.len() - 1);
    let started = Instant::now();
    prefill(&model.decoder, before, &mut cache, cancel)?;
    let prefill_seconds = started.elapsed().as_secs_f64();

    if text_mode {
        terminal::stream(&format!("\n{}", style(instance.question.trim()).bold())).context("cannot write to stdout")?;
    }
    let mut answer = |method: &Method, streaming: bool| -> Result<String> {
        cache.truncate(before.len());
        write_answer(&model, last, &mut cache, method, streaming, cancel)
    };
    let sparse_answer = answer(&fasa, text_mode)?;
    let dense_answer = answer(&Method::Dense, false)?;
    let mut speed = |method: &Method| -> Result<f64> {
        cache.truncate(prompt.len());
        steps_per_second(&model.decoder, &mut cache, method, args.timed_steps, cancel)
    };
    let (dense_speed, fasa_speed) = (speed(&Method::Dense)?, speed(&fasa)?);

    let numbers = model.decoder.config();
    let seen = prompt.len() + 1;
    let result = Report {
        right: sparse_answer.trim() == instance.answer.trim(),
        question: instance.question.trim().to_owned(),
        expected: instance.answer.trim().to_owned(),
        answer: sparse_answer.trim().to_owned(),
        answer_dense: dense_answer.trim().to_owned(),
        depth: instance.depth,
        tokens_seen: seen,
        tokens_kept: fasa.kept(seen),
        dtype: model.decoder.dtype(),
        cache_bytes_per_step_dense: Method::Dense.bytes_per_step(numbers, seen, model.decoder.dtype()),
        cache_bytes_per_step_fasa: fasa.bytes_per_step(numbers, seen, model.decoder.dtype()),
        tokens_per_second_dense: dense_speed,
        tokens_per_second_fasa: fasa_speed,
        prefill_seconds,
    };
    if !text_mode {
        return report::json(&result);
    }
    summarize(&result, fasa.dense_layers(numbers.num_hidden_layers), numbers.num_hidden_layers)
}

fn summarize(result: &Report, dense_layers: usize, layers: usize) -> Result<()> {
    let verdict = match result.right {
        true => style("right").green(),
        false => style("wrong").red(),
    };
    let ratio = result.cache_bytes_per_step_dense as f64 / result.cache_bytes_per_step_fasa as f64;
    report::text(format_args!(
        "\n{verdict}: the text says {}, {:.0} % of the way in (dense attention answers {})\n\n\
         {:<33}{:>12}{:>12}\n\
         {:<33}{:>12}{:>12}\n\
         {:<33}{:>12}{:>12}   {:.1}x fewer\n\
         {:<33}{:>12.0}{:>12.0}   {:.1}x faster\n\n\
         {} of {} layers attend to everything in both; reading the text took {:.1} s.",
        result.expected,
        100.0 * result.depth,
        result.answer_dense,
        "",
        "dense",
        "FASA",
        "tokens attended per step",
        report::count(result.tokens_seen),
        report::count(result.tokens_kept),
        format!("cache bytes read per step ({})", result.dtype),
        report::bytes(result.cache_bytes_per_step_dense),
        report::bytes(result.cache_bytes_per_step_fasa),
        ratio,
        "decode tokens/s",
        result.tokens_per_second_dense,
        result.tokens_per_second_fasa,
        result.tokens_per_second_fasa / result.tokens_per_second_dense,
        dense_layers,
        layers,
        result.prefill_seconds,
    ))
}

/// The first sentences of the text.
fn excerpt(text: &str) -> String {
    let end = text.char_indices().map(|(i, _)| i).nth(240).unwrap_or(text.len());
    format!("  {} [...]", text[..end].trim())
}

fn prefill(decoder: &Decoder, tokens: &[u32], cache: &mut KvCache, cancel: &Cancel) -> Result<()> {
    let bar = terminal::progress("reading", "tokens");
    let mut done = 0;
    for chunk in tokens.chunks(fasa_burn::model::PREFILL_CHUNK) {
        anyhow::ensure!(!cancel.is_cancelled(), "stopped");
        terminal::advance(&bar, done, tokens.len());
        decoder.forward(chunk, cache, &Method::Dense, Logits::None)?;
        done += chunk.len();
    }
    bar.finish_and_clear();
    Ok(())
}

/// Greedy tokens up to the end of the line.
fn write_answer(
    model: &LanguageModel,
    last: &[u32],
    cache: &mut KvCache,
    method: &Method,
    streaming: bool,
    cancel: &Cancel,
) -> Result<String> {
    let options = Options {
        method: method.clone(),
        max_new_tokens: 16,
        sampling: Sampling::default(),
        stop_ids: model.decoder.config().eos_token_ids.clone(),
        cancel: cancel.clone(),
    };
    let mut decoder = model.tokenizer.stream();
    let stops = ["\n".to_owned()];
    let mut text = StopText::new(&stops);
    model.decoder.generate(last, cache, &options, &mut |event| match event {
        Event::Prefill(..) => true,
        Event::Token(token) => {
            let ready = text.push(&decoder.push(token).unwrap_or_default());
            (!streaming || terminal::stream(&ready).is_ok()) && !text.stopped
        }
    })?;
    let rest = text.finish(&decoder.flush());
    if streaming {
        terminal::stream(&format!("{rest}\n")).context("cannot write to stdout")?;
    }
    Ok(text.all)
}

/// Greedy decode steps per second from where the cache stands, after one step to warm up. The tokens do not matter to the
/// time of a step.
fn steps_per_second(
    decoder: &Decoder,
    cache: &mut KvCache,
    method: &Method,
    steps: usize,
    cancel: &Cancel,
) -> Result<f64> {
    let from = cache.len();
    let step = |cache: &mut KvCache| -> Result<Vec<f32>> {
        let logits = decoder.forward(&[1], cache, method, Logits::Last)?;
        Ok(to_host(logits.context("no logits")?)?)
    };
    step(cache)?;
    cache.truncate(from);
    let started = Instant::now();
    for _ in 0..steps {
        anyhow::ensure!(!cancel.is_cancelled(), "stopped");
        step(cache)?;
    }
    Ok(steps as f64 / started.elapsed().as_secs_f64())
}
