//! The threads that everything runs on.

use anyhow::{Context, Result};

/// Starts as many as `--threads` asks for; one per core without it.
///
/// # Errors
/// For 0, or if they cannot be started.
pub fn start(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    anyhow::ensure!(threads > 0, "`--threads` is 0; use at least 1");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global().context("cannot start the threads that `--threads` asks for")
}
