//! What people see: progress, colours and errors, on stderr. Results go to stdout.

use console::style;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::Write;
use std::process::ExitCode;

/// Prints an error with its causes, and returns the status of a failed run.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{} {error:#}", style("error:").for_stderr().red().bold());
    ExitCode::from(2)
}

/// A line for people.
pub fn note(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{}", style(text).for_stderr().dim());
}

/// A progress bar that shows on a terminal only, and only for work that takes long enough to be noticed.
pub fn progress(what: &'static str, unit: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let template = format!("{what:<12} {{bar:30.cyan/dim}} {{pos}}/{{len}} {unit}  {{elapsed}} (about {{eta}} left)");
    if let Ok(look) = ProgressStyle::with_template(&template) {
        bar.set_style(look.progress_chars("━━─"));
    }
    bar
}

/// Moves a bar to `done` of `total`.
pub fn advance(bar: &ProgressBar, done: usize, total: usize) {
    bar.set_length(total as u64);
    bar.set_position(done as u64);
    if done >= total {
        bar.finish_and_clear();
    }
}

/// Writes a piece of a text to stdout at once.
///
/// # Errors
/// If stdout is gone, for instance because the reader of a pipe closed it.
pub fn stream(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
