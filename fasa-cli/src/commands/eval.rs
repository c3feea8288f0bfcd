//! `fasa eval`: questions with known answers, method by method, over one shared prefill.

use crate::eval::contender::Contender;
use crate::eval::profiles::Profiles;
use crate::eval::record::{Results, Writer, budget_name};
use crate::eval::run::Plan;
use crate::eval::spec::Spec;
use crate::eval::suite::{Generated, Perplexity, Protocol, Suite};
use crate::eval::summary::{self, Summary, is_likelihood};
use crate::model::LanguageModel;
use crate::report::{self, Format};
use crate::settings::{FasaArgs, ModelArgs, parse_budget};
use crate::tasks::{Depth, Task};
use anyhow::{Context, Result, bail, ensure};
use fasa_burn::Dtype;
use fasa_burn::generate::Cancel;
use fasa_core::Budget;
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;
use std::str::FromStr;

/// Arguments of `fasa eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tasks: needle, kv, chain, recall; ppl (perplexity, with --text)
    #[arg(required = true, value_name = "TASK")]
    tasks: Vec<Asked>,

    /// Methods to compare: dense, default, paper, oracle, quest, sparq, streaming, random, snapkv, h2o, tova, rkv; with
    /// settings as in `default:criterion=agreement:chunks=8`
    #[arg(long, value_delimiter = ',', default_value = "dense,default,paper", value_name = "METHOD,...")]
    methods: Vec<Spec>,

    /// Tokens that each decode step reads: counts or shares of the context
    #[arg(long, value_name = "TOKENS,...", value_delimiter = ',', default_value = "128", value_parser = parse_budget)]
    budget: Vec<Budget>,

    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value_t = 2048)]
    tokens: usize,

    /// Instances per task, or windows of a text
    #[arg(long, value_name = "N", default_value_t = 32)]
    instances: u64,

    /// Draws another set of instances
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// What is read densely
    #[arg(long, value_enum, default_value_t)]
    protocol: Protocol,

    /// Where in the context the asked fact lies, such as `0..0.5`
    #[arg(long, value_name = "LOW..HIGH", default_value = "0..1")]
    depth: Depth,

    /// Hide the facts in this text instead of generated prose (not in kv, which has none)
    #[arg(long, value_name = "FILE")]
    haystack: Option<PathBuf>,

    /// The text of ppl
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,

    /// Tokens that ppl decodes after each window of --tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    decoded: usize,

    /// Appends results to this file of JSON lines; what it already holds is not asked again
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,

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

/// A task on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Generated(Task),
    Perplexity,
}

impl FromStr for Asked {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "ppl" => Ok(Self::Perplexity),
            _ => match name.parse() {
                Ok(task) => Ok(Self::Generated(task)),
                Err(error) => bail!("{error}, ppl"),
            },
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
    let suites = suites(args, &model)?;
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
        Format::Json => report::json(&result),
        Format::Text => report::text(table(&result)?),
    }
}

fn suites(args: &Args, model: &LanguageModel) -> Result<Vec<Box<dyn Suite>>> {
    let haystack = match &args.haystack {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| {
                format!("cannot read the haystack `{}`; check the path, and that it is UTF-8 text", path.display())
            })?;
            Some((path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()), text))
        }
    };
    let suite = |asked: &Asked| -> Result<Box<dyn Suite>> {
        match asked {
            Asked::Generated(task) => Ok(Box::new(Generated {
                task: *task,
                tokens: args.tokens,
                instances: args.instances,
                seed: args.seed,
                depth: args.depth,
                protocol: args.protocol,
                haystack: haystack.clone(),
            })),
            Asked::Perplexity => {
                let path = args.text.as_ref().context("ppl needs a text; name it with `--text`")?;
                Ok(Box::new(Perplexity::new(model, path, args.tokens, args.decoded, args.instances)?))
            }
        }
    };
    args.tasks.iter().map(suite).collect()
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

fn table(result: &Report) -> Result<String> {
    let mut out = String::new();
    let width = result.results.iter().map(|s| s.method.chars().count()).max().unwrap_or(0).max(14);
    let bytes = format!("{} bytes per step", result.dtype);
    writeln!(
        out,
        "{:<8} {:<width$} {:>6} {:>9} {:>13}  {:>8}  {bytes:>18}",
        "task", "method", "budget", "right", "score", "of dense"
    )?;
    for cell in &result.results {
        let bytes = report::bytes(cell.cache_bytes_per_step);
        let (right, score, of_dense) = if is_likelihood(&cell.task) {
            (String::new(), format!("{:.2} ± {:.2}", cell.score, cell.standard_error), String::new())
        } else {
            let dense =
                result.results.iter().find(|c| c.task == cell.task && c.setting == cell.setting && c.method == "dense");
            let dense_right = dense.map_or(cell.instances, |c| c.right);
            (
                format!("{}/{}", cell.right, cell.instances),
                format!("{:.0} ± {:.0} %", 100.0 * cell.score, 100.0 * cell.standard_error),
                format!("{:.0} %", 100.0 * cell.right_of_dense as f64 / dense_right.max(1) as f64),
            )
        };
        writeln!(
            out,
            "{:<8} {:<width$} {:>6} {right:>9} {score:>13}  {of_dense:>8}  {bytes:>18}",
            cell.task, cell.method, cell.budget
        )?;
    }
    Ok(out.trim_end().to_owned())
}
