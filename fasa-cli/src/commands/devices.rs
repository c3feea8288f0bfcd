//! `fasa devices`: where models can run.

use crate::report::{self, Format};
use anyhow::Result;
use fasa_burn::device::{Found, Interface, found};
use serde::Serialize;

/// Arguments of `fasa devices`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Report {
    devices: Vec<Device>,
    /// Kinds of devices that this build cannot reach.
    not_built: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Device {
    /// For `--device`.
    name: String,
    description: Option<String>,
    memory_bytes: Option<u64>,
    /// Why it cannot be used.
    problem: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// If stdout is gone.
pub fn run(args: &Args) -> Result<()> {
    let devices: Vec<Device> = found().into_iter().map(Device::from).collect();
    let not_built = Interface::ALL.into_iter().filter(|i| !i.is_built()).map(Interface::name).collect();
    let report = Report { devices, not_built };
    if args.format == Format::Json {
        return report::json(&report);
    }
    for device in &report.devices {
        let memory = device.memory_bytes.map_or_else(String::new, |bytes| format!(", {}", report::bytes(bytes)));
        let what = match (&device.description, &device.problem) {
            (_, Some(problem)) => format!("cannot be used: {problem}"),
            (description, None) => format!("{}{memory}", description.as_deref().unwrap_or_default()),
        };
        report::text(format_args!("{:<10} {what}", device.name))?;
    }
    if !report.not_built.is_empty() {
        report::text(format_args!(
            "\nnot in this build: {}; add one: `cargo install --path fasa-cli --features {}`",
            report.not_built.join(", "),
            report.not_built[0]
        ))?;
    }
    Ok(())
}

impl From<Found> for Device {
    fn from(found: Found) -> Self {
        let (description, problem) = match found.description {
            Ok(description) => (Some(description), None),
            Err(problem) => (None, Some(problem)),
        };
        Self { name: found.name.to_string(), description, memory_bytes: found.memory, problem }
    }
}
