//! What can go wrong, as values.

/// Errors of this crate. Each message says what was wrong with which argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice has another length than the shapes demand.
    #[error("`{what}` has length {got}, the shapes ask for {want}")]
    Length {
        /// Which argument.
        what: &'static str,
        /// Elements needed.
        want: usize,
        /// Elements given.
        got: usize,
    },
    /// Caller-provided memory is too small.
    #[error("`{what}` holds {got} entries, this call needs {want}")]
    Capacity {
        /// Which buffer.
        what: &'static str,
        /// Entries needed.
        want: usize,
        /// Entries given.
        got: usize,
    },
    /// A number outside its meaning.
    #[error("`{what}` is out of range: {problem}")]
    Range {
        /// Which argument.
        what: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The method needs something the step does not carry.
    #[error("this step carries no `{what}`, which the method needs")]
    Missing {
        /// What is missing.
        what: &'static str,
    },
}

/// Results of this crate.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// `Ok` if `got == want`, else [`Error::Length`].
pub(crate) fn expect_length(what: &'static str, got: usize, want: usize) -> Result<()> {
    if got == want { Ok(()) } else { Err(Error::Length { what, want, got }) }
}

/// `Ok` if `got >= want`, else [`Error::Capacity`].
pub(crate) fn expect_capacity(what: &'static str, got: usize, want: usize) -> Result<()> {
    if got >= want { Ok(()) } else { Err(Error::Capacity { what, want, got }) }
}
