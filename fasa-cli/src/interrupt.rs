//! Ctrl-C: the first one lets the running step finish and prints what there is, the second one ends the process.

use anyhow::{Context, Result};
use fasa_burn::generate::Cancel;

/// The exit status after Ctrl-C, as shells expect it (128 + SIGINT).
pub const STATUS: u8 = 130;

/// Starts listening. The returned flag is set by Ctrl-C.
pub fn install() -> Result<Cancel> {
    let cancel = Cancel::default();
    let flag = cancel.clone();
    ctrlc::set_handler(move || {
        if flag.is_cancelled() {
            std::process::exit(i32::from(STATUS));
        }
        flag.cancel();
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(cancel)
}
