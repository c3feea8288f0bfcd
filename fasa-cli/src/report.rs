//! Results on stdout, for people or as JSON.

use anyhow::{Context, Result};
use fasa_burn::cache::{KvCache, TierPlace};
use serde::Serialize;
use std::io::Write;

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Prints a result as JSON.
///
/// # Errors
/// If stdout is gone.
pub fn json(result: &impl Serialize) -> Result<()> {
    text(serde_json::to_string_pretty(result).context("cannot write the result as JSON")?)
}

/// Prints lines for people.
///
/// # Errors
/// If stdout is gone.
pub fn text(lines: impl std::fmt::Display) -> Result<()> {
    match writeln!(std::io::stdout().lock(), "{lines}") {
        // The reader of a pipe has seen enough; that is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to stdout"),
    }
}

/// A cache's second tier.
#[derive(Debug, Serialize)]
pub struct TierReport {
    /// Where its file lay; none where it is the host's memory.
    folder: Option<String>,
    /// Bytes of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    file_bytes: Option<u64>,
    /// Bytes of the host's memory, for a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    host_bytes: Option<u64>,
    /// Whether the GPU copies from that by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    host_pinned: Option<bool>,
    /// Sketches and recently chosen rows, in the device's memory.
    memory_bytes: u64,
    bytes_read: u64,
    bytes_written: u64,
    /// The share of chosen rows that were in memory; none: no step chose any.
    hit_rate: Option<f64>,
}

impl TierReport {
    /// That of `cache`, if it has one.
    pub fn of(cache: &KvCache) -> Option<Self> {
        let used = cache.tier()?;
        let (folder, pinned) = match used.place {
            TierPlace::File(folder) => (Some(folder.display().to_string()), None),
            TierPlace::Host { pinned } => (None, Some(pinned)),
        };
        Some(Self {
            file_bytes: folder.is_some().then_some(used.bytes),
            host_bytes: folder.is_none().then_some(used.bytes),
            host_pinned: pinned,
            folder,
            memory_bytes: cache.device_bytes(),
            bytes_read: used.traffic.bytes_read,
            bytes_written: used.traffic.bytes_written,
            hit_rate: used.traffic.hit_rate(),
        })
    }

    /// What follows a sentence about a text.
    pub fn sentence(&self) -> String {
        let hits = match self.hit_rate {
            Some(share) => format!(", {:.0}% of the chosen rows were at hand", 100.0 * share),
            None => String::new(),
        };
        let (tier, memory) = (bytes(self.file_bytes.or(self.host_bytes).unwrap_or(0)), bytes(self.memory_bytes));
        match &self.folder {
            Some(folder) => format!("; keys and values in a file of {tier} in `{folder}`, {memory} in memory{hits}"),
            None => format!("; keys and values in {tier} of the host's memory, {memory} in the device's{hits}"),
        }
    }
}

/// A number of bytes as people read it: `37.5 MB`.
pub fn bytes(bytes: u64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.into_iter().find(|(size, _)| bytes as f64 >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", bytes as f64 / size),
        None => format!("{bytes} B"),
    }
}

/// A count with thousands separated: `6,512`.
pub fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_read_them() {
        for (n, want) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), want);
        }
        for (n, want) in [(12, "12 B"), (37_500, "37.5 kB"), (1_000_000, "1.0 MB"), (7_240_000_000, "7.2 GB")] {
            assert_eq!(bytes(n), want);
        }
    }
}
