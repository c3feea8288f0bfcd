//! The profile that a method needs: named with it, given for all, shipped with the model, or calibrated now.

use super::spec::{Ranking, Settings};
use crate::calibration_text;
use crate::commands::calibrate::{Judge, encode};
use crate::methods;
use crate::model::LanguageModel;
use crate::settings::Preset;
use crate::terminal;
use crate::{builtin, tasks};
use anyhow::{Context, Result, bail};
use fasa_burn::calibrate::{Calibration, Sample};
use fasa_burn::generate::Cancel;
use fasa_core::profile::{Profile, ProfileView};
use fasa_core::{FasaConfig, Pairing, Scope};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// K of an agreement that is calibrated here.
const AGREEMENT_K: usize = 256;
/// Samples and their tokens, as `fasa calibrate` takes them.
const SAMPLES: (usize, usize) = (8, 2048);

/// Profiles of one model.
pub struct Profiles<'a> {
    model: &'a LanguageModel,
    cancel: &'a Cancel,
    given: Vec<(PathBuf, Arc<[u8]>)>,
    made: HashMap<(Ranking, &'static str, u64), Arc<[u8]>>,
    samples: Option<Vec<Sample>>,
}

impl<'a> Profiles<'a> {
    /// Reads the profiles that are given for all methods.
    ///
    /// # Errors
    /// If one cannot be read or belongs to another model.
    pub fn new(model: &'a LanguageModel, given: &[PathBuf], cancel: &'a Cancel) -> Result<Self> {
        let given = given.iter().map(|path| Ok((path.clone(), checked(model, path)?))).collect::<Result<_>>()?;
        Ok(Self { model, cancel, given, made: HashMap::new(), samples: None })
    }

    /// The bytes of the profile for these settings.
    ///
    /// # Errors
    /// If the profile named with the method does not fit, or none of those given does, or calibration fails.
    pub fn find(&mut self, settings: &Settings, preset: Preset) -> Result<Arc<[u8]>> {
        let (ranking, scope) = (settings.ranking, settings.config.chunk_scope);
        if let Some(path) = &settings.profile {
            let bytes = checked(self.model, path)?;
            return if fits(&bytes, &settings.config)? { Ok(bytes) } else { Err(unfit(path, &settings.config)) };
        }
        if let Some(bytes) = self.made.get(&(ranking, scope.name(), settings.seed)) {
            return Ok(bytes.clone());
        }
        let bytes = match ranking {
            Ranking::Random => shuffled(&self.any(settings, preset)?, settings.seed)?,
            Ranking::Neighbours => self.calibrate(ranking, scope)?,
            _ => self.ranked(settings, preset)?,
        };
        self.made.insert((ranking, scope.name(), settings.seed), bytes.clone());
        Ok(bytes)
    }

    /// A profile of the settings' criterion and scope.
    fn ranked(&mut self, settings: &Settings, preset: Preset) -> Result<Arc<[u8]>> {
        for (_, bytes) in &self.given {
            if fits(bytes, &settings.config)? {
                return Ok(bytes.clone());
            }
        }
        if let Some((path, _)) = self.given.first() {
            return Err(unfit(path, &settings.config));
        }
        let own = match &self.model.folder {
            None => builtin::profile(&settings.config).map(Arc::from),
            Some(_) => {
                let path = methods::profile_path(self.model, preset);
                if path.exists() { Some(checked(self.model, &path)?) } else { None }
            }
        };
        match own {
            Some(bytes) if fits(&bytes, &settings.config)? => Ok(bytes),
            _ => self.calibrate(settings.ranking, settings.config.chunk_scope),
        }
    }

    /// A profile whose order is about to be drawn: its key tables are all that counts.
    fn any(&mut self, settings: &Settings, preset: Preset) -> Result<Arc<[u8]>> {
        if let Some((_, bytes)) = self.given.iter().find(|(_, b)| fits(b, &settings.config).unwrap_or(false)) {
            return Ok(bytes.clone());
        }
        let given = std::mem::take(&mut self.given);
        let found = self.ranked(settings, preset);
        self.given = given;
        found
    }

    fn calibrate(&mut self, ranking: Ranking, scope: Scope) -> Result<Arc<[u8]>> {
        terminal::note(format_args!("no profile ranks by {} per {}: calibrating", ranking.name(), scope.name()));
        let (count, tokens) = SAMPLES;
        let tokens = tokens.min(self.model.decoder.config().max_position_embeddings);
        if self.samples.is_none() {
            let texts = calibration_text::samples(tokens, count, 0, &|text| self.model.count_tokens(text))?;
            let samples = texts.iter().map(|text| encode(self.model, text, Judge::Answers)).collect::<Result<_>>()?;
            self.samples = Some(samples);
        }
        let neighbours = ranking == Ranking::Neighbours;
        let calibration = Calibration {
            criterion: ranking.criterion(),
            agreement_k: AGREEMENT_K,
            scope,
            pairing: neighbours.then(|| other_pairing(self.model)),
            text: "built in, seed 0, answers judged".into(),
        };
        let bar = terminal::progress("calibrating", "samples");
        let profile = self.model.decoder.calibrate(
            self.samples.as_deref().unwrap_or_default(),
            &calibration,
            self.cancel,
            &mut |done, total| terminal::advance(&bar, done, total),
        );
        bar.finish_and_clear();
        Ok(profile?.as_bytes().into())
    }
}

/// The layout that the model does not have.
fn other_pairing(model: &LanguageModel) -> Pairing {
    match model.decoder.fingerprint().pairing {
        Pairing::HalfSplit => Pairing::Interleaved,
        _ => Pairing::HalfSplit,
    }
}

fn checked(model: &LanguageModel, path: &Path) -> Result<Arc<[u8]>> {
    let bytes = methods::read(path)?;
    model.decoder.profile(&bytes, path)?;
    Ok(bytes.into())
}

fn fits(bytes: &[u8], config: &FasaConfig) -> Result<bool> {
    let view = ProfileView::parse(bytes)?;
    Ok(view.criterion() == config.criterion && view.scope() == config.chunk_scope)
}

fn unfit(path: &Path, config: &FasaConfig) -> anyhow::Error {
    anyhow::anyhow!(
        "profile `{}` does not rank by {} per {}, as the method asks; calibrate one that does, or leave `--profile` out",
        path.display(),
        config.criterion.name(),
        config.chunk_scope.name()
    )
}

/// The same profile with the chunks of every head in a drawn order.
fn shuffled(bytes: &[u8], seed: u64) -> Result<Arc<[u8]>> {
    let mut export = ProfileView::parse(bytes)?.export();
    let mut draws = tasks::Draws::new(tasks::Purpose::Chunks, tasks::Task::Kv, seed, 0);
    for head in &mut export.heads {
        for at in (1..head.ranking.len()).rev() {
            head.ranking.swap(at, draws.between(0, at));
        }
        head.scores.fill(0.0);
    }
    export.text = format!("drawn, seed {seed}");
    match Profile::from_export(&export) {
        Ok(profile) => Ok(profile.as_bytes().into()),
        Err(error) => bail!("the drawn profile does not hold together: {error}"),
    }
}

/// What names a profile's content in results: the checksum of its file.
pub fn name_of(bytes: &[u8]) -> Result<String> {
    let crc = bytes.get(16..20).context("a profile has a checksum")?;
    Ok(crc.iter().rev().map(|b| format!("{b:02x}")).collect())
}
