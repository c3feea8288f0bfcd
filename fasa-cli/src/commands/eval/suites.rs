//! The tasks on the command line, as suites of questions.

use super::Args;
use crate::eval::suite::{Answers, Collection, Generated, LongBench, Perplexity, Problems, Study, Suite};
use crate::model::LanguageModel;
use crate::scoring::overlap::Segmenter;
use crate::tasks::Task;
use anyhow::{Context, Result, bail, ensure};
use fasa_burn::sampling::Sampling;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Tokens of a prompt, unless told otherwise.
const TOKENS: usize = 2048;

/// A task on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Generated(Task),
    Perplexity,
    Agreement,
    LongBench,
    Problems(Collection),
}

impl FromStr for Asked {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        if let Some(collection) = Collection::ALL.into_iter().find(|c| c.name() == name) {
            return Ok(Self::Problems(collection));
        }
        match name {
            "ppl" => Ok(Self::Perplexity),
            "agreement" => Ok(Self::Agreement),
            "longbench" => Ok(Self::LongBench),
            _ => match name.parse() {
                Ok(task) => Ok(Self::Generated(task)),
                Err(error) => bail!("{error}, ppl, agreement, longbench, gsm8k, math500, aime24"),
            },
        }
    }
}

/// All suites of a command.
pub(super) fn all(args: &Args, model: &LanguageModel) -> Result<Vec<Box<dyn Suite>>> {
    let haystack = match &args.haystack {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| {
                format!("cannot read the haystack `{}`; check the path, and that it is UTF-8 text", path.display())
            })?;
            Some((path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()), text))
        }
    };
    let generated = |task: Task| -> Box<dyn Suite> {
        Box::new(Generated {
            task,
            tokens: args.tokens.unwrap_or(TOKENS),
            instances: args.instances,
            seed: args.seed,
            depth: args.depth,
            protocol: args.protocol,
            haystack: haystack.clone(),
        })
    };
    let text = |path: &Path| -> Result<Box<dyn Suite>> {
        let tokens = args.tokens.unwrap_or(TOKENS);
        Ok(Box::new(Perplexity::new(model, path, tokens, args.decoded, args.instances)?))
    };
    for asked in &args.tasks {
        if let (Some(path), Asked::Generated(task @ (Task::Kv | Task::Multikey))) = (&args.haystack, asked) {
            bail!("{task} has no prose that `--haystack {}` could replace; leave one of the two out", path.display());
        }
    }
    let mut suites: Vec<Box<dyn Suite>> = Vec::new();
    for asked in &args.tasks {
        match asked {
            Asked::Generated(task) => suites.push(generated(*task)),
            Asked::Perplexity => {
                suites.push(text(args.text.as_deref().context("ppl needs a text; name it with `--text`")?)?);
            }
            Asked::Agreement => match &args.text {
                Some(path) => suites.push(Box::new(Study(text(path)?))),
                None => suites.extend(Task::SIMPLE.map(|task| Box::new(Study(generated(task))) as Box<dyn Suite>)),
            },
            Asked::LongBench => {
                let dictionary = args.published.dictionary.as_deref();
                let segmenter = dictionary.map(Segmenter::read).transpose()?.map(Arc::new);
                for file in files(&args.published.data, "longbench", &["longbench", "LongBench", ""])? {
                    suites.push(Box::new(LongBench::new(
                        model,
                        &file,
                        segmenter.clone(),
                        args.tokens,
                        args.instances,
                    )?));
                }
            }
            Asked::Problems(collection) => suites.push(Box::new(problems(args, *collection)?)),
        }
    }
    Ok(suites)
}

fn problems(args: &Args, collection: Collection) -> Result<Problems> {
    let published = &args.published;
    let folders: &[&str] = match collection {
        Collection::Gsm8k => &["gsm8k", ""],
        Collection::Math500 => &["math500", "MATH-500", ""],
        Collection::Aime24 => &["aime24", "aime2024", ""],
    };
    let found = files(&published.data, collection.name(), folders)?;
    let [file] = found.as_slice() else {
        let all = found.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ");
        bail!("{} is one file, `--data` holds several: {all}; name one of them", collection.name());
    };
    let answers = Answers {
        shots: published.shots.unwrap_or(collection.shots()),
        samples: published.samples,
        max_new_tokens: published.max_new_tokens,
        sampling: Sampling {
            temperature: published.temperature,
            top_p: published.top_p,
            seed: args.seed,
            ..Sampling::default()
        },
    };
    Problems::new(collection, file, args.instances, answers)
}

/// The files of a task: those given, or all `.jsonl` of the first of `folders` that is in a folder given.
fn files(given: &[PathBuf], task: &str, folders: &[&str]) -> Result<Vec<PathBuf>> {
    ensure!(!given.is_empty(), "{task} needs its questions; name the file or folder with `--data`");
    let mut found = Vec::new();
    for path in given {
        if !path.is_dir() {
            found.push(path.clone());
            continue;
        }
        let folder = folders.iter().map(|folder| path.join(folder)).find(|folder| folder.is_dir());
        let folder = folder.unwrap_or_else(|| path.clone());
        let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
        let mut inside: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        inside.retain(|file| file.extension().is_some_and(|e| e == "jsonl"));
        inside.sort();
        found.extend(inside);
    }
    ensure!(!found.is_empty(), "{task}: there is no `.jsonl` file in what `--data` names; give the file itself");
    Ok(found)
}
