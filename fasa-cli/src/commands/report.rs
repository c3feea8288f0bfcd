//! `fasa report`: results as one page.

use crate::eval::record::Results;
use crate::page::{self, Profiled};
use crate::pictures::heatmap::Heatmap;
use crate::report;
use anyhow::{Context, Result, ensure};
use fasa_core::profile::ProfileView;
use std::path::PathBuf;

/// Arguments of `fasa report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files that `fasa eval --results` wrote
    #[arg(required = true, value_name = "RESULTS")]
    results: Vec<PathBuf>,

    /// Draws this profile's scores too
    #[arg(long, value_name = "FILE")]
    profile: Vec<PathBuf>,

    /// The page's title
    #[arg(long, value_name = "TEXT", default_value = "Sparse attention, compared")]
    title: String,

    /// Where the page goes; a name that ends in .md asks for its tables in Markdown alone
    #[arg(long, short, value_name = "FILE", default_value = "fasa-report.html")]
    output: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// If a file cannot be read or holds no result, or the page cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let mut results = Results::default();
    for path in &args.results {
        let read = Results::read(path)?;
        ensure!(!read.cells.is_empty(), "`{}` holds no result; name a file of `fasa eval --results`", path.display());
        results.headers.extend(read.headers);
        results.cells.extend(read.cells);
    }
    let profiles = args.profile.iter().map(profiled).collect::<Result<Vec<_>>>()?;
    let page = match args.output.extension().is_some_and(|extension| extension == "md") {
        true => {
            ensure!(profiles.is_empty(), "Markdown has no heat maps; leave `--profile` out, or name a `.html` page");
            page::markdown::render(&results)
        }
        false => page::render(&args.title, &results, &profiles),
    };
    std::fs::write(&args.output, &page).with_context(|| {
        format!("cannot write the page `{}`; choose another place with `--output`", args.output.display())
    })?;
    report::text(format_args!(
        "{}: {} results of {} runs, {}",
        args.output.display(),
        report::count(results.cells.len()),
        results.headers.len(),
        report::bytes(page.len() as u64)
    ))
}

fn profiled(path: &PathBuf) -> Result<Profiled> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read the profile `{}`", path.display()))?;
    let view = ProfileView::parse(&bytes).with_context(|| format!("`{}`", path.display()))?;
    let steps = report::count(view.steps() as usize);
    Ok(Profiled {
        name: path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into()),
        about: format!("calibrated on {steps} steps; text: {}; weights {:016x}", view.text(), view.model().weights),
        map: Heatmap::of(&view),
    })
}
