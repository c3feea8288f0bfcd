//! Numbers of bytes on the command line.

use anyhow::{Result, bail};

/// `40GiB`, `500MB` or a number of bytes.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "" | "B" => Some(1),
        "kB" | "KB" => Some(1000),
        "MB" => Some(1_000_000),
        "GB" | "G" => Some(1_000_000_000),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let number = number.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    match number.zip(unit) {
        Some((number, unit)) => Ok((number * unit as f64) as u64),
        None => bail!("`{text}` is no number of bytes; write for example `40GiB` or `500MB`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_bytes() {
        for (text, want) in [
            ("40GiB", Some(40 << 30)),
            ("1.5GB", Some(1_500_000_000)),
            ("512MiB", Some(512 << 20)),
            ("4096", Some(4096)),
            ("4096B", Some(4096)),
            ("", None),
            ("-1GB", None),
            ("0", None),
            ("12 parsecs", None),
            ("GiB", None),
        ] {
            assert_eq!(parse_bytes(text).ok(), want, "{text}");
        }
    }
}
