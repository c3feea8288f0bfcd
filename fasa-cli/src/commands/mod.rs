//! One file per command.

mod batch;
pub mod bench;
pub mod calibrate;
pub mod chat;
pub mod demo;
pub mod devices;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod overlap;
pub mod report;

use anyhow::Result;
use clap::{Parser, Subcommand};
use fasa_burn::generate::Cancel;

/// Frequency-aware sparse attention: a language model that reads a few percent of its cache per token.
///
/// Without a command, the built-in model answers a question about a long text and shows what that saved.
#[derive(Debug, Parser)]
#[command(name = "fasa", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer a question about a long text with the built-in model, and show what that saved
    Demo(demo::Args),
    /// Continue a prompt
    Generate(generate::Args),
    /// Talk with a model, turn by turn
    Chat(chat::Args),
    /// Find the dominant chunks of a model and write its profile
    Calibrate(calibrate::Args),
    /// Show what is in a profile or a model
    Inspect(inspect::Args),
    /// Ask questions with known answers and count the right ones, method by method
    Eval(eval::Args),
    /// Make one page of results: tables, curves, heat maps
    Report(report::Args),
    /// Compare the chunks that different calibrations choose
    Overlap(overlap::Args),
    /// Measure speed, beside what the memory allows
    Bench(bench::Args),
    /// List the devices that this build and this machine offer
    Devices(devices::Args),
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong, said so that it can be mended.
    pub fn run(self, cancel: &Cancel) -> Result<()> {
        match self.command.unwrap_or_else(|| Command::Demo(demo::Args::default())) {
            Command::Demo(args) => demo::run(&args, cancel),
            Command::Generate(args) => generate::run(&args, cancel),
            Command::Chat(args) => chat::run(&args, cancel),
            Command::Calibrate(args) => calibrate::run(&args, cancel),
            Command::Inspect(args) => inspect::run(&args),
            Command::Eval(args) => eval::run(&args, cancel),
            Command::Report(args) => report::run(&args),
            Command::Overlap(args) => overlap::run(&args, cancel),
            Command::Bench(args) => bench::run(&args, cancel),
            Command::Devices(args) => devices::run(&args),
        }
    }
}
