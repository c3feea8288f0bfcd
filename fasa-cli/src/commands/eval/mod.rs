//! `fasa eval`: questions with known answers, method by method, over one shared prefill.

mod suites;
mod table;

use crate::eval::charts;
use crate::eval::contender::Contender;
use crate::eval::profiles::Profiles;
use crate::eval::record::{Results, Writer, budget_name};
use crate::eval::run::Plan;
use crate::eval::spec::Spec;
use crate::eval::suite::Protocol;
use crate::eval::summary::{self, Summary};
use crate::model::LanguageModel;
use crate::pictures::{curves, parse_path, terminal};
use crate::report::{self, Format};
use crate::settings::{FasaArgs, ModelArgs, parse_budget};
use crate::tasks::Depth;
use anyhow::{Result, ensure};
use fasa_burn::Dtype;
use fasa_burn::generate::Cancel;
use fasa_core::Budget;
use serde::Serialize;
use std::path::PathBuf;
use suites::Asked;

/// Arguments of `fasa eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tasks: needle, kv, chain, recall; multikey, multivalue, tracking (after RULER); ppl (perplexity, with --text); agreement (of choices with true attention, over
    /// the first four, or over --text); with --data longbench, gsm8k, math500, aime24
    #[arg(required = true, value_name = "TASK")]
    tasks: Vec<Asked>,

    /// Methods to compare: dense, default, paper, oracle, quest, sparq, streaming, random, snapkv, h2o, tova, rkv; with
    /// settings as in `default:criterion=agreement:chunks=8`
    #[arg(long, value_delimiter = ',', default_value = "dense,default,paper", value_name = "METHOD,...")]
    methods: Vec<Spec>,

    /// Tokens that each decode step reads: counts or shares of the context
    #[arg(long, value_name = "TOKENS,...", value_delimiter = ',', default_value = "128", value_parser = parse_budget)]
    budget: Vec<Budget>,

    /// Tokens of each prompt [default: 2048; longbench: what the model has room for]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,

    /// Instances per task, windows of a text, or first questions of a file
    #[arg(long, value_name = "N", default_value_t = 32)]
    instances: u64,

    /// Draws another set of instances, or other answers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// What is read densely
    #[arg(long, value_enum, default_value_t)]
    protocol: Protocol,

    /// Where in the context the asked fact lies, such as `0..0.5`
    #[arg(long, value_name = "LOW..HIGH", default_value = "0..1")]
    depth: Depth,

    /// Hide the facts in this text instead of generated prose (kv and multikey have none)
    #[arg(long, value_name = "FILE")]
    haystack: Option<PathBuf>,

    /// The text of ppl and agreement
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,

    /// Tokens that are decoded after each window of --tokens of the text
    #[arg(long, value_name = "N", default_value_t = 256)]
    decoded: usize,

    #[command(flatten)]
    published: Published,

    /// Appends results to this file of JSON lines; what it already holds is not asked again
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,

    /// Draws scores over budgets, bytes and chunks into this file, .svg or .png; without a file, on the terminal
    #[arg(long, value_name = "FILE", num_args = 0..=1, value_parser = parse_path)]
    plot: Option<Option<PathBuf>>,

    #[command(flatten)]
    model: ModelArgs,

    /// Profiles of the FASA methods, instead of the ones beside the model
    #[arg(long, value_name = "FILE")]
    profile: Vec<PathBuf>,

    #[command(flatten)]
    fasa: FasaArgs,

    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Where published questions are, and how they are answered.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Published questions")]
struct Published {
    /// Files of JSON lines, or a folder that holds them, such as `longbench/*.jsonl` and `gsm8k/test.jsonl`
    #[arg(long, value_name = "PATH")]
    data: Vec<PathBuf>,

    /// jieba's `dict.txt`, for the tasks of longbench that count Chinese words: multifieldqa_zh, dureader, vcsum
    #[arg(long, value_name = "FILE")]
    dictionary: Option<PathBuf>,

    /// Worked examples in front of a problem [default: 8 for gsm8k, else 0]
    #[arg(long, value_name = "N")]
    shots: Option<usize>,

    /// Answers to each problem; the score is the share that is right
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples: usize,

    /// Tokens of the answer to a problem, at most
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_new_tokens: usize,

    /// Draws the answers to problems; 0 takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,

    /// Draws from the most likely tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
}

/// What the command found.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    tokens: Option<usize>,
    instances: u64,
    seed: u64,
    budgets: Vec<String>,
    protocol: &'static str,
    dtype: Dtype,
    results: Vec<Summary>,
}

/// Runs the command.
///
/// # Errors
/// If the model, a profile or the arguments are at fault.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    ensure!(args.instances > 0, "`--instances` is 0; use at least 1");
    let model = LanguageModel::load(&args.model)?;
    let suites = suites::all(args, &model)?;
    let mut profiles = Profiles::new(&model, &args.profile, cancel)?;
    let contenders: Vec<Contender> =
        args.methods.iter().map(|spec| Contender::new(spec, &args.fasa, &mut profiles)).collect::<Result<_>>()?;
    for (i, contender) in contenders.iter().enumerate() {
        let again = contenders[..i].iter().any(|c| c.label == contender.label);
        ensure!(!again, "`--methods` names {} twice; name it once", contender.label);
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let plan = Plan {
        model: &model,
        suites: &suites,
        contenders: &contenders,
        budgets: &args.budget,
        threads: args.model.threads.unwrap_or(cores),
        command: std::env::args().collect(),
    };
    let mut writer = Writer::open(args.results.as_deref())?;
    plan.run(&mut writer, cancel)?;
    let result = Report {
        model: model.name.clone(),
        tokens: args.tokens,
        instances: args.instances,
        seed: args.seed,
        budgets: args.budget.iter().map(|budget| budget_name(*budget)).collect(),
        protocol: args.protocol.name(),
        dtype: model.decoder.dtype(),
        results: of_this_run(&plan, &writer.results),
    };
    match args.format {
        Format::Json => report::json(&result)?,
        Format::Text => report::text(table::of(&result)?)?,
    }
    let charts = || charts::of(&result.results, &|_, task| task.to_owned());
    match &args.plot {
        None => Ok(()),
        Some(Some(path)) => {
            let charts: Vec<_> = charts().into_iter().flatten().collect();
            let columns = if charts.len() > 2 { 3 } else { 2 };
            curves::draw(&format!("fasa eval, {}", result.model), &charts, columns).save(path)
        }
        Some(None) => {
            let drawn: Vec<String> =
                charts().iter().filter_map(|of_task| of_task.first()).map(terminal::chart).collect();
            report::text(drawn.join("\n").trim_end())
        }
    }
}

/// Summaries of what was asked now, in the order of the arguments; other runs in the same file are left out.
fn of_this_run(plan: &Plan<'_>, results: &Results) -> Vec<Summary> {
    let settings: Vec<(String, String, u64)> =
        plan.suites.iter().map(|s| (plan.setting(s.as_ref()).id(), s.task(), s.len())).collect();
    let budgets: Vec<String> = plan.budgets.iter().map(|budget| budget_name(*budget)).collect();
    let task_at = |setting: &str, task: &str| settings.iter().position(|(id, t, _)| id == setting && t == task);
    let method_at = |method: &str| plan.contenders.iter().position(|c| c.label == method);
    let budget_at = |budget: &str| budgets.iter().position(|b| b == budget);
    let mut all = summary::summarize(results, |cell| {
        let asked = task_at(&cell.setting, &cell.task).is_some_and(|at| cell.index < settings[at].2);
        let compared = plan.contenders.iter().any(|c| c.label == cell.method && c.profile == cell.profile);
        asked && compared && (cell.budget.is_empty() || budget_at(&cell.budget).is_some())
    });
    all.sort_by_key(|s| (task_at(&s.setting, &s.task), method_at(&s.method), budget_at(&s.budget)));
    all
}
