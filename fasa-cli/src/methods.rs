//! From arguments to a method: which profile, which settings.

use crate::builtin;
use crate::model::LanguageModel;
use crate::report;
use crate::settings::{FasaArgs, MethodArgs, MethodName, Preset};
use crate::terminal;
use anyhow::{Context, Result, bail};
use fasa_burn::cache::Placement;
use fasa_burn::method::Method;
use fasa_core::policy::{Oracle, Ranked, Streaming};
use fasa_core::{Budget, FasaConfig, Guarantees, Scope};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

impl MethodArgs {
    /// The method that the arguments ask for.
    ///
    /// # Errors
    /// If a profile is missing, damaged, of another model, or does not fit the settings.
    pub fn method(&self, model: &LanguageModel) -> Result<Method> {
        let config = self.fasa.apply(self.preset);
        build(model, self.method, &config, self.preset, self.profile.as_deref(), self.budget)
    }

    /// Settings that FASA would run with.
    pub fn config(&self) -> FasaConfig {
        self.fasa.apply(self.preset)
    }
}

/// The method called `name` with a budget.
///
/// # Errors
/// As [`MethodArgs::method`].
pub fn build(
    model: &LanguageModel,
    name: MethodName,
    config: &FasaConfig,
    preset: Preset,
    profile: Option<&Path>,
    budget: Budget,
) -> Result<Method> {
    let reads_all = matches!(name, MethodName::Oracle | MethodName::Streaming);
    if reads_all && matches!(model.decoder.placement(), Placement::Tiered(_)) {
        bail!(
            "`--cache tiered` serves the methods fasa and dense; this one looks at every token to decide: use `--cache device`"
        );
    }
    Ok(match name {
        MethodName::Dense => Method::Dense,
        MethodName::Fasa => {
            let numbers = model.decoder.config();
            if (0..numbers.num_hidden_layers).all(|layer| numbers.window(layer).is_some()) {
                let window = report::count(numbers.sliding_window.unwrap_or_default());
                terminal::note(format!(
                    "all layers of this model attend to their last {window} tokens and stay dense; FASA changes nothing"
                ));
            }
            let (bytes, path) = find_profile(model, config, preset, profile)?;
            let view = model.decoder.profile(&bytes, &path)?;
            Method::fasa(&view, *config, budget).with_context(|| format!("profile `{}`", path.display()))?
        }
        MethodName::Oracle => {
            let policy = Ranked::new("oracle", Oracle { scope: Scope::QueryHead }, config.guarantees);
            Method::policy(policy, budget, config.dense_layers)?
        }
        MethodName::Streaming => Method::policy(Streaming::default(), budget, config.dense_layers)?,
    })
}

/// Where `fasa calibrate` puts the profile of a preset.
pub fn profile_path(model: &LanguageModel, preset: Preset) -> PathBuf {
    let file = format!("fasa-{}.profile", preset.name());
    model.beside(&file).unwrap_or_else(|| file.into())
}

/// The profile's bytes, and what to call it.
fn find_profile(
    model: &LanguageModel,
    config: &FasaConfig,
    preset: Preset,
    given: Option<&Path>,
) -> Result<(Cow<'static, [u8]>, PathBuf)> {
    if let Some(path) = given {
        return Ok((read(path)?.into(), path.to_owned()));
    }
    if model.folder.is_none() {
        return match builtin::profile(config) {
            Some(bytes) => Ok((bytes.into(), "nano (built in)".into())),
            None => {
                bail!("no built-in profile serves these settings; make one with `fasa calibrate` and pass `--profile`")
            }
        };
    }
    let path = profile_path(model, preset);
    if !path.exists() {
        bail!(
            "there is no profile `{}`; make it with `fasa calibrate --model {} --preset {}`, or decode with `--method dense`",
            path.display(),
            model.file.as_deref().or(model.folder.as_deref()).unwrap_or(Path::new(".")).display(),
            preset.name()
        );
    }
    Ok((read(&path)?.into(), path))
}

/// The bytes of a profile.
///
/// # Errors
/// If it cannot be read, or is too long to be one.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    // A profile of the largest models is a few megabytes; nothing a profile can be needs more than this.
    const LARGEST: u64 = 1 << 30;
    let size = std::fs::metadata(path)
        .with_context(|| format!("cannot read the profile `{}`; check the path", path.display()))?
        .len();
    if size > LARGEST {
        bail!("`{}` is {size} bytes long, no profile is; check the path", path.display());
    }
    std::fs::read(path).with_context(|| format!("cannot read the profile `{}`; check the path", path.display()))
}

/// What a method is called in reports.
pub fn label(name: MethodName, preset: Preset, changed: &FasaArgs) -> String {
    match name {
        MethodName::Fasa if changed.apply(preset) == preset.config() => format!("fasa ({})", preset.name()),
        MethodName::Fasa => format!("fasa ({}, changed)", preset.name()),
        MethodName::Dense => "dense".into(),
        MethodName::Oracle => "oracle".into(),
        MethodName::Streaming => "streaming".into(),
    }
}

/// Guarantees in words.
pub fn guarantees(guarantees: Guarantees) -> String {
    format!("{} sinks, {} recent", guarantees.sinks, guarantees.recent)
}
