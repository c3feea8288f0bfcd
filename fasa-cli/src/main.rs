//! `fasa`: long contexts at a fraction of the reads.

use clap::Parser;
use fasa_cli::commands::Cli;
use fasa_cli::{gpu, interrupt, terminal};
use std::process::ExitCode;

/// Weights and caches are read whole at every step: on huge pages that is up to a fifth faster.
#[global_allocator]
static ALLOCATOR: fasa_burn::HugePages = fasa_burn::HugePages;

fn main() -> ExitCode {
    let cli = Cli::parse(); // bad usage ends here, with status 2
    let cancel = match interrupt::install() {
        Ok(cancel) => cancel,
        Err(error) => return terminal::fail(&error),
    };
    let result = gpu::guard(|| cli.run(&cancel));
    match result {
        _ if cancel.is_cancelled() => {
            terminal::note("stopped");
            ExitCode::from(interrupt::STATUS)
        }
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => terminal::fail(&error),
    }
}
