//! `fasa bench`: speed, beside what the bytes allow.

mod attention;
mod crossover;
mod decode;
mod memory;
mod prefill;

use crate::settings::ModelArgs;
use crate::{terminal, threads};
use anyhow::Result;
use clap::Subcommand;
use fasa_burn::Device;
use fasa_burn::generate::Cancel;
use fasa_burn::measure::{Memory, awake, memory_on_ordinary_pages};
use fasa_burn::model::Decoder;
use fasa_burn::random;
use serde::Serialize;
use std::time::Instant;

/// Arguments of `fasa bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Decode steps of a whole model, dense and FASA, over context lengths
    Decode(decode::Args),
    /// Attention of one layer alone, dense and FASA, over context lengths
    Attention(attention::Args),
    /// Reading a prompt, stretch by stretch
    Prefill(prefill::Args),
    /// Memory, bytes moved and time of a step where keys and values lie in memory and where they lie in the second tier
    Memory(memory::Args),
    /// The context length from which FASA is faster on this machine
    Crossover(crossover::Args),
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be loaded or fails.
pub fn run(args: &Args, cancel: &Cancel) -> Result<()> {
    match &args.what {
        What::Decode(args) => decode::run(args, cancel),
        What::Attention(args) => attention::run(args, cancel),
        What::Prefill(args) => prefill::run(args, cancel),
        What::Memory(args) => memory::run(args, cancel),
        What::Crossover(args) => crossover::run(args, cancel),
    }
}

/// A decoder in the shape of the well-known model `name`, its weights noise, where `args` say.
fn random_decoder(name: &str, args: &ModelArgs) -> Result<Decoder> {
    threads::start(args.threads)?;
    let device = args.open_device()?;
    let bar = terminal::progress("making weights", "layers");
    let mut progress = |done, total| terminal::advance(&bar, done, total);
    let dtype = args.dtype.dtype(true, &device);
    let mut decoder = random::decoder(&random::shape(name)?, &device, dtype, &mut progress)?;
    decoder.set_placement(crate::model::placement(args)?)?;
    bar.finish_and_clear();
    Ok(decoder)
}

/// Lengths of contexts on the command line: `2048,8192` or `2k,8k`.
fn parse_length(text: &str) -> Result<usize, String> {
    let (digits, factor) = match text.strip_suffix(['k', 'K']) {
        Some(thousands) => (thousands, 1024),
        None => (text, 1),
    };
    let length = digits.parse::<usize>().ok().and_then(|n| n.checked_mul(factor));
    length.filter(|n| (2..=1 << 24).contains(n)).ok_or_else(|| format!("`{text}` is not a length from 2 to 16384k"))
}

/// What several things took, in turns, so that what else the machine does hits them alike.
struct Turns<const N: usize> {
    /// Medians of all rounds but the first, which is not counted.
    seconds: [f64; N],
    /// What the memory gave meanwhile: a bound measured at another time may be one of another machine, since virtual ones
    /// share their memory with others. The median of one reading in every [`ROUNDS_PER_READING`] rounds.
    bytes_per_second: f64,
}

/// Reading the memory empties the caches: most rounds find them as the round before left them.
const ROUNDS_PER_READING: usize = 4;

/// Does several things by turns, `rounds` times and once before.
fn in_turns<const N: usize>(
    rounds: usize,
    memory: &Memory,
    cancel: &Cancel,
    mut thing: impl FnMut(usize) -> Result<()>,
) -> Result<Turns<N>> {
    let mut seconds: [Vec<f64>; N] = std::array::from_fn(|_| Vec::with_capacity(rounds));
    let mut speeds = vec![];
    for round in 0..=rounds {
        if round % ROUNDS_PER_READING == 0 {
            speeds.push(memory.read());
        }
        for (i, seconds) in seconds.iter_mut().enumerate() {
            anyhow::ensure!(!cancel.is_cancelled(), "stopped");
            let start = Instant::now();
            thing(i)?;
            if round > 0 {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
    }
    Ok(Turns { seconds: seconds.map(median), bytes_per_second: median(speeds) })
}

/// What a loop that does nothing else reads from the host's memory.
#[derive(Debug, Clone, Copy, Serialize)]
struct HostMemory {
    /// From ordinary pages.
    ordinary_pages_bytes_per_second: f64,
    /// From huge ones, on which weights and caches lie where the system gives them: what bounds are taken from.
    huge_pages_bytes_per_second: f64,
}

impl HostMemory {
    /// Both by turns; `None` for a GPU.
    fn of(device: &Device, huge: &Memory) -> Option<Self> {
        const ROUNDS: usize = 7;
        let ordinary = memory_on_ordinary_pages(device)?;
        let (mut ordinary_speeds, mut huge_speeds) = (vec![], vec![]);
        awake(|| {
            for _ in 0..ROUNDS {
                ordinary_speeds.push(ordinary.read());
                huge_speeds.push(huge.read());
            }
        });
        Some(Self {
            ordinary_pages_bytes_per_second: median(ordinary_speeds),
            huge_pages_bytes_per_second: median(huge_speeds),
        })
    }

    /// For people.
    fn note(self) -> String {
        format!(
            "A loop that asks ahead reads {:.1} GB/s from huge pages, which bounds are taken from, and {:.1} GB/s from ordinary ones.",
            self.huge_pages_bytes_per_second / 1e9,
            self.ordinary_pages_bytes_per_second / 1e9
        )
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        assert_eq!(parse_length("2048"), Ok(2048));
        assert_eq!(parse_length("32k"), Ok(32 << 10));
        for bad in ["", "k", "0", "1", "-4", "4m", "99999999k", "99999999999999999999"] {
            assert!(parse_length(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn turns_are_taken() {
        let mut order = vec![];
        let turns = in_turns::<2>(2, &Memory::new(1 << 20), &Cancel::default(), |i| {
            order.push(i);
            Ok(())
        });
        let turns = turns.expect("not cancelled");
        assert_eq!(order, [0, 1, 0, 1, 0, 1]);
        assert!(turns.seconds.iter().all(|t| *t >= 0.0) && turns.bytes_per_second > 0.0);
        assert!(median(vec![]).is_nan());
    }
}
