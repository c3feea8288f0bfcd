//! Where a text ends before the model says so.

/// Cuts a streamed text before the first stop text, which may come in pieces.
pub struct StopText<'a> {
    stops: &'a [String],
    /// Everything that was let through.
    pub all: String,
    held: String,
    /// Whether a stop text came.
    pub stopped: bool,
}

impl<'a> StopText<'a> {
    /// The start of a text.
    pub fn new(stops: &'a [String]) -> Self {
        Self { stops, all: String::new(), held: String::new(), stopped: false }
    }

    /// Adds a piece; returns what is certain not to be part of a stop text.
    pub fn push(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(piece);
        let first = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s.as_str())).min();
        if let Some(at) = first {
            self.stopped = true;
            self.held.truncate(at);
            return self.release(at);
        }
        // Hold back the longest end of the text that could begin a stop text.
        let could_begin = |at: &usize| self.stops.iter().any(|s| s.starts_with(&self.held[*at..]));
        let at = self.held.char_indices().map(|(at, _)| at).find(could_begin).unwrap_or(self.held.len());
        self.release(at)
    }

    /// The end of the text: nothing is held back any longer.
    pub fn finish(&mut self, piece: &str) -> String {
        let mut ready = self.push(piece);
        let rest = self.held.len();
        ready.push_str(&self.release(rest));
        ready
    }

    fn release(&mut self, at: usize) -> String {
        let ready: String = self.held.drain(..at).collect();
        self.all.push_str(&ready);
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_texts_may_come_in_pieces() {
        let stops = ["\nQ:".to_owned(), "END".to_owned()];
        let cases: [(&[&str], &str, bool); 5] = [
            (&["a", "b\n", "c"], "ab\nc", false),
            (&["a\n", "Q", ":x"], "a", true),
            (&["aE", "N", "x"], "aENx", false),
            (&["xEND", "y"], "x", true),
            (&["x\n", "Q"], "x\nQ", false),
        ];
        for (pieces, want, stopped) in cases {
            let mut text = StopText::new(&stops);
            let mut shown: String = pieces.iter().map(|p| text.push(p)).collect();
            shown += &text.finish("");
            assert_eq!((shown.as_str(), text.all.as_str(), text.stopped), (want, want, stopped), "{pieces:?}");
        }
    }
}
