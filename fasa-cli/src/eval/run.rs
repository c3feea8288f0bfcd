//! All questions to all methods, over threads: each question by one thread, many questions at a time.

use super::contender::Contender;
use super::question::put;
use super::record::{Cell, Header, Setting, Writer, budget_name};
use super::suite::Suite;
use crate::model::LanguageModel;
use crate::terminal;
use anyhow::{Context, Result, ensure};
use fasa_burn::generate::Cancel;
use fasa_core::Budget;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What is compared.
pub struct Plan<'a> {
    /// The model.
    pub model: &'a LanguageModel,
    /// The tasks.
    pub suites: &'a [Box<dyn Suite>],
    /// The methods.
    pub contenders: &'a [Contender],
    /// The budgets.
    pub budgets: &'a [Budget],
    /// Questions that are worked on at a time.
    pub threads: usize,
    /// The command, for the results.
    pub command: Vec<String>,
}

/// One question, and which method at which budget it is still to be put to.
struct Job<'a> {
    suite: &'a dyn Suite,
    setting: String,
    index: u64,
    wanted: Vec<(usize, usize)>,
}

impl Plan<'_> {
    /// The setting of a task.
    pub fn setting(&self, suite: &dyn Suite) -> Setting {
        let mut setting = Setting {
            model: self.model.name.clone(),
            weights: format!("{:016x}", self.model.decoder.fingerprint().weights),
            dtype: self.model.decoder.dtype().to_string(),
            tokens: 0,
            seed: 0,
            protocol: String::new(),
            data: String::new(),
        };
        suite.describe(&mut setting);
        setting
    }

    /// Puts every question that `writer` has no answer to.
    ///
    /// # Errors
    /// If the model, a method or the results file fails, or the run is stopped. What was answered by then is in the file.
    pub fn run(&self, writer: &mut Writer, cancel: &Cancel) -> Result<()> {
        let jobs = self.jobs(writer)?;
        let cells: usize = jobs.iter().map(|job| job.wanted.len()).sum();
        let bar = terminal::progress("evaluating", "answers");
        let (sender, receiver) = mpsc::channel::<Result<Vec<Cell>>>();
        let (next, stop) = (AtomicUsize::new(0), Cancel::default());
        let (mut done, started, mut told) = (0, Instant::now(), Instant::now());
        std::thread::scope(|scope| {
            for _ in 0..self.threads.clamp(1, jobs.len().max(1)) {
                let sender = sender.clone();
                let (jobs, next, stop) = (&jobs, &next, &stop);
                scope.spawn(move || {
                    // A pool of one: what a question computes stays on this thread.
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
                    let pool = match pool.context("cannot start a thread") {
                        Ok(pool) => pool,
                        Err(error) => return drop(sender.send(Err(error))),
                    };
                    while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if stop.is_cancelled() || cancel.is_cancelled() {
                            return;
                        }
                        let answer = pool.install(|| self.answer(job, cancel));
                        if sender.send(answer).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let mut write = || -> Result<()> {
                for answer in &receiver {
                    for cell in answer? {
                        writer.add(cell)?;
                        done += 1;
                    }
                    terminal::advance(&bar, done, cells);
                    if bar.is_hidden() && told.elapsed() > Duration::from_secs(20) {
                        told = Instant::now();
                        terminal::note(time_left(done, cells, started.elapsed()));
                    }
                }
                Ok(())
            };
            let written = write();
            stop.cancel();
            written
        })?;
        bar.finish_and_clear();
        ensure!(!cancel.is_cancelled(), "stopped");
        Ok(())
    }

    fn jobs(&self, writer: &mut Writer) -> Result<Vec<Job<'_>>> {
        let mut jobs = Vec::new();
        for suite in self.suites {
            let setting = self.setting(suite.as_ref());
            let id = setting.id();
            let before = jobs.len();
            for index in 0..suite.len() {
                let wanted: Vec<(usize, usize)> =
                    self.wanted().filter(|pair| !self.is_known(writer, suite.as_ref(), &id, index, *pair)).collect();
                if !wanted.is_empty() {
                    jobs.push(Job { suite: suite.as_ref(), setting: id.clone(), index, wanted });
                }
            }
            if jobs.len() > before {
                let machine = machine();
                let version = env!("CARGO_PKG_VERSION").to_owned();
                writer.begin(Header { id, setting, command: self.command.clone(), machine, version })?;
            }
        }
        Ok(jobs)
    }

    /// Every method at every budget; methods that read everything once.
    fn wanted(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.contenders.iter().enumerate().flat_map(|(c, contender)| {
            let budgets = if contender.is_dense() { 1 } else { self.budgets.len() };
            (0..budgets).map(move |b| (c, b))
        })
    }

    fn is_known(&self, writer: &Writer, suite: &dyn Suite, id: &str, index: u64, (c, b): (usize, usize)) -> bool {
        let contender = &self.contenders[c];
        let budget = if contender.is_dense() { String::new() } else { budget_name(self.budgets[b]) };
        let key = (id.to_owned(), suite.task(), index, contender.label.clone(), contender.profile.clone(), budget);
        writer.results.cells.contains_key(&key)
    }

    fn answer(&self, job: &Job<'_>, cancel: &Cancel) -> Result<Vec<Cell>> {
        let what = || format!("question {} of {}", job.index, job.suite.task());
        let question = job.suite.question(self.model, job.index).with_context(what)?;
        let cells =
            put(self.model, &question, self.contenders, self.budgets, &job.wanted, cancel).with_context(what)?;
        let named = cells.into_iter().map(|cell| Cell {
            setting: job.setting.clone(),
            task: job.suite.task(),
            index: job.index,
            ..cell
        });
        Ok(named.collect())
    }
}

/// How far a run is, for those who read a log.
fn time_left(done: usize, all: usize, elapsed: Duration) -> String {
    let left = elapsed.as_secs_f64() * (all - done.min(all)) as f64 / done.max(1) as f64;
    format!("{done} of {all} answers after {:.0} s, about {left:.0} s left", elapsed.as_secs_f64())
}

/// The machine, as far as it says what it is.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let name = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    format!("{}, {cores} cores, {}", name.unwrap_or_else(|| std::env::consts::ARCH.into()), std::env::consts::OS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_is_left() {
        assert_eq!(time_left(10, 40, Duration::from_secs(20)), "10 of 40 answers after 20 s, about 60 s left");
        assert_eq!(time_left(0, 0, Duration::from_secs(1)), "0 of 0 answers after 1 s, about 0 s left");
    }
}
