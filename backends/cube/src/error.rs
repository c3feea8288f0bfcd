//! What a launch refuses.

/// Why a kernel was not launched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A shape that the kernels cannot run.
    #[error("{what}: {problem}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A device that lacks what the kernels need.
    #[error("the device {0}")]
    Device(&'static str),
}

/// Results of launches.
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn ensure(holds: bool, what: &'static str, problem: &'static str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Shape { what, problem }) }
}
