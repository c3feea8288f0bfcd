//! How the next token is drawn: arguments over what the model's author asks for.

use clap::Args;
use fasa_burn::config::GenerationConfig;
use fasa_burn::sampling::Sampling;

/// How the next token is drawn. Without an argument, as `generation_config.json` says.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Sampling (each overrides generation_config.json)")]
pub struct SamplingArgs {
    /// 0 takes the most likely token [default without generation_config.json: 0]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,

    /// Draw from this many of the most likely tokens (0: all)
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,

    /// Draw from the most likely tokens that together reach this probability (1: all)
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,

    /// Draw from tokens at least this likely, relative to the most likely one (0: all)
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,

    /// Make tokens that were already there less likely (1: off)
    #[arg(long, value_name = "R")]
    pub repetition_penalty: Option<f32>,

    /// The same seed draws the same tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

impl SamplingArgs {
    /// The sampler's parameters: these arguments over what the file says.
    pub fn sampling(&self, file: &GenerationConfig) -> Sampling {
        let of_file = file.sampling();
        let mut sampling = match self.temperature {
            // The file's filters mean nothing to the most likely token.
            Some(0.0) => Sampling { repetition_penalty: of_file.repetition_penalty, ..Sampling::default() },
            // A file that decodes greedily may name filters for those who do not.
            Some(_) if of_file.is_greedy() => Sampling {
                top_k: file.top_k.unwrap_or(0),
                top_p: file.top_p.unwrap_or(1.0),
                min_p: file.min_p.unwrap_or(0.0),
                ..of_file
            },
            _ => of_file,
        };
        sampling.temperature = self.temperature.unwrap_or(sampling.temperature);
        sampling.top_k = self.top_k.unwrap_or(sampling.top_k);
        sampling.top_p = self.top_p.unwrap_or(sampling.top_p);
        sampling.min_p = self.min_p.unwrap_or(sampling.min_p);
        sampling.repetition_penalty = self.repetition_penalty.unwrap_or(sampling.repetition_penalty);
        Sampling { seed: self.seed, ..sampling }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn arguments_go_before_the_file() {
        let drawn = r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}"#;
        let quiet = r#"{"top_p": 0.8}"#;
        let none = SamplingArgs::default();
        let with = |temperature| SamplingArgs { temperature: Some(temperature), ..none.clone() };
        let want = |temperature, top_k, top_p, repetition_penalty| Sampling {
            temperature,
            top_k,
            top_p,
            repetition_penalty,
            ..Sampling::default()
        };
        for (file, args, sampling) in [
            ("{}", none.clone(), Sampling::default()),
            ("{}", with(0.7), want(0.7, 0, 1.0, 1.0)),
            (drawn, none.clone(), want(0.6, 20, 0.9, 1.1)),
            (drawn, with(0.0), want(0.0, 0, 1.0, 1.1)),
            (drawn, with(1.2), want(1.2, 20, 0.9, 1.1)),
            (drawn, SamplingArgs { top_k: Some(0), top_p: Some(1.0), ..none.clone() }, want(0.6, 0, 1.0, 1.1)),
            (quiet, none.clone(), Sampling::default()),
            (quiet, with(0.7), want(0.7, 0, 0.8, 1.0)),
            (drawn, SamplingArgs { seed: 7, ..none }, Sampling { seed: 7, ..want(0.6, 20, 0.9, 1.1) }),
        ] {
            let file = GenerationConfig::from_json(file.as_bytes(), Path::new("g.json")).expect("valid");
            assert_eq!(args.sampling(&file), sampling, "{args:?}");
        }
    }
}
