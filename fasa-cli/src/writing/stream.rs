//! A text while it comes: progress of reading, then pieces on stdout.

use super::StopText;
use crate::model::LanguageModel;
use crate::terminal;
use anyhow::Result;
use fasa_burn::generate::{Event, Outcome};
use fasa_burn::text::TextStream;
use indicatif::ProgressBar;

/// Listens to a generation.
pub struct Stream<'a> {
    decoder: TextStream<'a>,
    text: StopText<'a>,
    bar: ProgressBar,
    streaming: bool,
    failure: Option<fasa_burn::Error>,
}

impl<'a> Stream<'a> {
    /// For a text that ends before the first of `stops`, and is shown as it comes if `streaming`.
    pub fn new(model: &'a LanguageModel, stops: &'a [String], streaming: bool) -> Self {
        Self {
            decoder: model.tokenizer.stream(),
            text: StopText::new(stops),
            bar: terminal::progress("reading", "tokens"),
            streaming,
            failure: None,
        }
    }

    /// Takes an event; `false` ends the text.
    pub fn hear(&mut self, event: Event) -> bool {
        match event {
            Event::Prefill(done, total) => {
                terminal::advance(&self.bar, done, total);
                true
            }
            Event::Token(token) => match self.decoder.push(token) {
                Ok(piece) => {
                    let ready = self.text.push(&piece);
                    let shown = !self.streaming || terminal::stream(&ready).is_ok();
                    shown && !self.text.stopped
                }
                Err(error) => {
                    self.failure = Some(error);
                    false
                }
            },
        }
    }

    /// The whole text, at its end.
    ///
    /// # Errors
    /// What went wrong while it was written.
    pub fn finish(mut self, outcome: fasa_burn::Result<Outcome>) -> Result<(String, Outcome)> {
        self.bar.finish_and_clear();
        if let Some(error) = self.failure {
            return Err(error.into());
        }
        let outcome = outcome?;
        let rest = self.text.finish(&self.decoder.flush());
        if self.streaming {
            // A closed pipe ends the text, it is no failure of this program.
            let _ = terminal::stream(&rest).and_then(|()| terminal::stream("\n"));
        }
        Ok((self.text.all, outcome))
    }
}
