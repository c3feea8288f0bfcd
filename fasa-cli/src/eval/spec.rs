//! A method with its settings, as it is written on the command line: `default:criterion=agreement:chunks=8`.

use crate::settings::{FasaArgs, Preset};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use fasa_core::config::ChunkCount;
use fasa_core::criterion::CriterionKind;
use fasa_core::sketch::Precision;
use fasa_core::{FasaConfig, Scope};
use std::fmt::Write;
use std::path::PathBuf;
use std::str::FromStr;

/// Methods that can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Every token
    Dense,
    /// FASA, default preset
    Default,
    /// FASA, as published
    Paper,
    /// The best tokens by their true attention
    Oracle,
    /// Pages of tokens, by the most that any of their keys could score
    Quest,
    /// Tokens by the largest components of the query
    Sparq,
    /// StreamingLLM: the first and the last tokens
    Streaming,
    /// Any tokens
    Random,
    /// What the end of the prompt looks at; evicts the rest of the prompt
    Snapkv,
    /// Heavy hitters and the recent half; evicts
    H2o,
    /// Evicts what the newest token looks at least
    Tova,
    /// Evicts what matters little or is said twice
    Rkv,
}

impl Name {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Name::Dense => "dense",
            Name::Default => "default",
            Name::Paper => "paper",
            Name::Oracle => "oracle",
            Name::Quest => "quest",
            Name::Sparq => "sparq",
            Name::Streaming => "streaming",
            Name::Random => "random",
            Name::Snapkv => "snapkv",
            Name::H2o => "h2o",
            Name::Tova => "tova",
            Name::Rkv => "rkv",
        }
    }

    /// FASA's preset, if it is one.
    pub fn preset(self) -> Option<Preset> {
        match self {
            Name::Default => Some(Preset::Default),
            Name::Paper => Some(Preset::Paper),
            _ => None,
        }
    }

    /// Settings that mean something to it.
    fn options(self) -> &'static [&'static str] {
        match self {
            Name::Dense => &[],
            Name::Default | Name::Paper => &[
                "criterion",
                "chunks",
                "sketch",
                "chunks-per",
                "tokens-per",
                "sinks",
                "recent",
                "profile",
                "top-p",
                "pyramid",
                "seed",
            ],
            Name::Streaming => &["sinks"],
            Name::Oracle | Name::Quest => &["tokens-per", "sinks", "recent"],
            Name::Sparq => &["tokens-per", "sinks", "recent", "components"],
            Name::Random => &["tokens-per", "sinks", "recent", "seed"],
            Name::Snapkv | Name::H2o | Name::Tova | Name::Rkv => &["tokens-per", "sinks", "recent"],
        }
    }

    /// Whether published code chooses rows for each query head.
    fn published_scope(self) -> Scope {
        match self {
            Name::Tova | Name::Rkv => Scope::KvHead,
            _ => Scope::QueryHead,
        }
    }
}

/// What ranked the chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Ranking {
    /// Attention margin
    Margin,
    /// Contextual agreement, the paper's
    Agreement,
    /// Greedy compound agreement
    Greedy,
    /// Contextual agreement of neighbouring dimensions, which no rotation pairs in a half-split model
    Neighbours,
    /// A drawn order
    Random,
}

impl Ranking {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Ranking::Margin => "margin",
            Ranking::Agreement => "agreement",
            Ranking::Greedy => "greedy",
            Ranking::Neighbours => "neighbours",
            Ranking::Random => "random",
        }
    }

    /// The criterion that a profile of this ranking names.
    pub fn criterion(self) -> CriterionKind {
        match self {
            Ranking::Margin | Ranking::Random => CriterionKind::Margin,
            Ranking::Agreement | Ranking::Neighbours => CriterionKind::Agreement,
            Ranking::Greedy => CriterionKind::Greedy,
        }
    }
}

impl From<CriterionKind> for Ranking {
    fn from(kind: CriterionKind) -> Self {
        match kind {
            CriterionKind::Agreement => Ranking::Agreement,
            CriterionKind::Greedy => Ranking::Greedy,
            _ => Ranking::Margin,
        }
    }
}

/// A method with its settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// The method.
    pub name: Name,
    options: Vec<(String, String)>,
}

impl FromStr for Spec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(':');
        let word = parts.next().unwrap_or_default();
        let Ok(name) = Name::from_str(word, true) else {
            let all = Name::value_variants().iter().map(|n| n.name()).collect::<Vec<_>>();
            bail!("there is no method `{word}`; choose from {}", all.join(", "));
        };
        let mut options: Vec<(String, String)> = Vec::new();
        for part in parts {
            let (key, value) = part
                .split_once('=')
                .with_context(|| format!("`{part}` of method `{text}` is no setting; write for example `chunks=8`"))?;
            ensure!(
                name.options().contains(&key),
                "method `{word}` has no setting `{key}`; it has: {}",
                if name.options().is_empty() { "none".into() } else { name.options().join(", ") }
            );
            ensure!(options.iter().all(|(k, _)| k != key), "method `{text}` sets `{key}` twice");
            options.push((key.into(), value.into()));
        }
        let spec = Self { name, options };
        spec.settings(&FasaArgs::default())?; // refuses bad values at once
        Ok(spec)
    }
}

/// The settings of a method, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// FASA's; of other methods the guarantees and the dense layers count.
    pub config: FasaConfig,
    /// What ranks FASA's chunks.
    pub ranking: Ranking,
    /// Whether the query heads of a group share their tokens, for methods other than FASA.
    pub scope: Scope,
    /// FASA's profile, if one is named.
    pub profile: Option<PathBuf>,
    /// Attention that is enough.
    pub top_p: Option<f32>,
    /// PyramidKV's beta.
    pub pyramid: Option<u32>,
    /// Of random tokens or random chunks.
    pub seed: u64,
    /// SparQ's components of the query.
    pub components: ChunkCount,
}

impl Spec {
    /// Settings given with the method come before those of `args`, and these before the preset's.
    ///
    /// # Errors
    /// For a value that cannot be read.
    pub fn settings(&self, args: &FasaArgs) -> Result<Settings> {
        let preset = self.name.preset().unwrap_or_default();
        let mut config = args.apply(preset);
        let mut ranking = Ranking::from(config.criterion);
        let mut settings = Settings {
            config,
            ranking,
            scope: args.tokens_per.map_or(self.name.published_scope(), crate::settings::ScopeName::scope),
            profile: None,
            top_p: None,
            pyramid: None,
            seed: 0,
            components: ChunkCount::Share(4),
        };
        let mut sinks_given = args.sinks.is_some();
        for (key, value) in &self.options {
            let wrong = || format!("`{key}={value}` of method `{}` makes no sense", self.name.name());
            match key.as_str() {
                "criterion" => ranking = choice(value).with_context(wrong)?,
                "chunks" => config.chunks = ChunkCount::Count(value.parse().with_context(wrong)?),
                "sketch" => {
                    config.precision = choice::<crate::settings::SketchFormat>(value).with_context(wrong)?.precision()
                }
                "chunks-per" => {
                    config.chunk_scope = choice::<crate::settings::ScopeName>(value).with_context(wrong)?.scope()
                }
                "tokens-per" => {
                    config.token_scope = choice::<crate::settings::ScopeName>(value).with_context(wrong)?.scope();
                    settings.scope = config.token_scope;
                }
                "sinks" => {
                    config.guarantees.sinks = value.parse().with_context(wrong)?;
                    sinks_given = true;
                }
                "recent" => config.guarantees.recent = value.parse().with_context(wrong)?,
                "profile" => settings.profile = Some(value.into()),
                "top-p" => {
                    let p: f32 = value.parse().with_context(wrong)?;
                    ensure!(p > 0.0 && p <= 1.0, "`top-p` is {p}; it lies above 0 and at most at 1");
                    settings.top_p = Some(p);
                }
                "pyramid" => {
                    let beta: u32 = value.parse().with_context(wrong)?;
                    ensure!(beta > 0, "`pyramid` is 0; it divides the budget");
                    settings.pyramid = Some(beta);
                }
                "seed" => settings.seed = value.parse().with_context(wrong)?,
                "components" => settings.components = ChunkCount::Count(value.parse().with_context(wrong)?),
                other => bail!("method `{}` has no setting `{other}`", self.name.name()),
            }
        }
        if self.name == Name::Streaming && !sinks_given {
            config.guarantees.sinks = 8; // as published
        }
        config.criterion = ranking.criterion();
        Ok(Settings { config, ranking, ..settings })
    }

    /// What the method is called in reports: its name and whatever differs from how it comes.
    ///
    /// # Errors
    /// As [`settings`](Self::settings).
    pub fn label(&self, args: &FasaArgs) -> Result<String> {
        self.named(&self.settings(args)?)
    }

    /// The same whatever the number of chunks: methods of one family differ in nothing else.
    ///
    /// # Errors
    /// As [`settings`](Self::settings).
    pub fn family(&self, args: &FasaArgs) -> Result<String> {
        let mut settings = self.settings(args)?;
        settings.config.chunks = self.name.preset().unwrap_or_default().config().chunks;
        self.named(&settings)
    }

    fn named(&self, settings: &Settings) -> Result<String> {
        let mut plain = Spec { name: self.name, options: Vec::new() }.settings(&FasaArgs::default())?;
        plain.profile = settings.profile.clone();
        let mut out = String::new();
        for (name, value) in differences(settings, &plain, self.name.preset().is_some()) {
            write!(out, ", {name} {value}")?;
        }
        if let Some(path) = &settings.profile {
            let file = path.file_stem().map_or_else(|| path.to_string_lossy(), |stem| stem.to_string_lossy());
            write!(out, ", profile {file}")?;
        }
        Ok(match self.name.preset() {
            Some(preset) => format!("fasa ({}{out})", preset.name()),
            None if out.is_empty() => self.name.name().into(),
            None => format!("{} ({})", self.name.name(), out.trim_start_matches(", ")),
        })
    }
}

/// Names and values of settings that are not those of `plain`.
fn differences(now: &Settings, plain: &Settings, fasa: bool) -> Vec<(&'static str, String)> {
    let (config, other) = (&now.config, &plain.config);
    let mut out = Vec::new();
    let mut note = |differs: bool, name, value: String| {
        if differs {
            out.push((name, value));
        }
    };
    let count = |chunks: ChunkCount| match chunks {
        ChunkCount::Count(n) => n.to_string(),
        ChunkCount::Share(n) => format!("1/{n}"),
    };
    if fasa {
        note(config.precision != other.precision, "sketch", precision(config.precision).into());
        note(config.chunks != other.chunks, "chunks", count(config.chunks));
        note(now.ranking != plain.ranking, "criterion", now.ranking.name().into());
        note(config.chunk_scope != other.chunk_scope, "chunks per", config.chunk_scope.name().into());
        note(config.token_scope != other.token_scope, "tokens per", config.token_scope.name().into());
    } else {
        note(now.scope != plain.scope, "tokens per", now.scope.name().into());
    }
    note(config.guarantees.sinks != other.guarantees.sinks, "sinks", config.guarantees.sinks.to_string());
    note(config.guarantees.recent != other.guarantees.recent, "recent", config.guarantees.recent.to_string());
    note(config.dense_layers != other.dense_layers, "dense layers", config.dense_layers.to_string());
    note(now.components != plain.components, "components", count(now.components));
    note(now.top_p != plain.top_p, "top-p", now.top_p.unwrap_or_default().to_string());
    note(now.pyramid != plain.pyramid, "pyramid", now.pyramid.unwrap_or_default().to_string());
    note(now.seed != plain.seed, "seed", now.seed.to_string());
    out
}

fn precision(precision: Precision) -> &'static str {
    precision.name()
}

fn choice<T: ValueEnum>(value: &str) -> Result<T> {
    T::from_str(value, true).map_err(|_| {
        let all: Vec<String> =
            T::value_variants().iter().filter_map(|v| v.to_possible_value()).map(|v| v.get_name().to_owned()).collect();
        anyhow::anyhow!("choose from {}", all.join(", "))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn labels_say_what_differs() {
        for (text, label) in [
            ("dense", "dense"),
            ("default", "fasa (default)"),
            ("paper", "fasa (paper)"),
            ("default:chunks=8:criterion=agreement", "fasa (default, chunks 8, criterion agreement)"),
            ("paper:sinks=4:recent=16", "fasa (paper, sinks 4, recent 16)"),
            ("default:sketch=int4", "fasa (default)"),
            ("default:profile=a/prose.profile", "fasa (default, profile prose)"),
            ("oracle:tokens-per=kv-head", "oracle (tokens per KV head)"),
            ("streaming:sinks=4", "streaming (sinks 4)"),
            ("streaming:sinks=8", "streaming"),
            ("default:top-p=0.9:pyramid=20", "fasa (default, top-p 0.9, pyramid 20)"),
        ] {
            assert_eq!(text.parse::<Spec>().unwrap().label(&FasaArgs::default()).unwrap(), label, "{text}");
        }
        let family = |text: &str| text.parse::<Spec>().unwrap().family(&FasaArgs::default()).unwrap();
        assert_eq!(family("default:chunks=8:criterion=agreement"), family("default:criterion=agreement:chunks=4"));
        let args = FasaArgs { chunks: Some(4), ..FasaArgs::default() };
        assert_eq!("default".parse::<Spec>().unwrap().label(&args).unwrap(), "fasa (default, chunks 4)");
        assert_eq!(
            "default:chunks=8".parse::<Spec>().unwrap().settings(&args).unwrap().config.chunks,
            ChunkCount::Count(8)
        );
    }

    #[test]
    fn what_a_method_does_not_have_is_refused() {
        for (text, part) in [
            ("magic", "there is no method `magic`"),
            ("dense:chunks=8", "has no setting `chunks`"),
            ("quest:chunks=8", "has no setting `chunks`"),
            ("default:chunks", "is no setting"),
            ("default:chunks=many", "chunks=many"),
            ("default:criterion=taste", "criterion=taste"),
            ("default:top-p=1.5", "top-p"),
            ("default:pyramid=0", "pyramid"),
            ("default:chunks=8:chunks=4", "twice"),
        ] {
            let error = format!("{:#}", text.parse::<Spec>().unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
