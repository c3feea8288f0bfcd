//! What can go wrong, said so that the reader can mend it.
//!
//! Every message names the place (file, tensor, field), the problem and the way out. `problem` continues the sentence
//! that the place begins, `mend` is an imperative; both start in lower case and end without a full stop.

use std::path::{Path, PathBuf};

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to open or read a file. Its reason is the error's source.
    #[error("cannot read `{}`: check that it exists and that you may read it", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// A field of `config.json` is missing, of the wrong type, or contradicts another.
    #[error("`{}`: field `{field}` {problem}; {mend}", .path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// The field, dotted when nested: `rope_parameters.rope_type`.
        field: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        mend: String,
    },

    /// The file is well formed but asks for something that this crate does not do.
    #[error("`{}`: {what} is not supported; {mend}", .path.display())]
    Unsupported {
        /// The file that asks for it.
        path: PathBuf,
        /// What it asks for.
        what: String,
        /// What is supported instead.
        mend: String,
    },

    /// The weights are damaged, incomplete, or those of another model.
    #[error("`{}`: {}{problem}; {mend}", .path.display(), tensor_place(.tensor))]
    Checkpoint {
        /// The safetensors file, its index or the folder.
        path: PathBuf,
        /// The tensor, where one is to blame.
        tensor: Option<String>,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        mend: String,
    },

    /// A weight is too large for half precision.
    #[error("`{}`: tensor `{tensor}` holds {value:e}, more than f16 can; load it with `--dtype f32`, on a GPU `--dtype bf16`", .path.display())]
    Overflow {
        /// The safetensors file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first weight that does not fit.
        value: f32,
    },

    /// The tokenizer cannot be read, or belongs to another model.
    #[error("`{}`: {problem}; {mend}", .path.display())]
    Tokenizer {
        /// The tokenizer file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        mend: String,
    },

    /// A chat template is damaged, does not end, or refuses the messages.
    #[error("`{}`: {problem}; {mend}", .path.display())]
    Template {
        /// The template, or the file that holds it.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        mend: String,
    },

    /// A saved session is damaged, or does not belong to the model, its number format or the profile.
    #[error("the session `{}` {problem}; {mend}", .path.display())]
    Session {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        mend: String,
    },

    /// The prompt cannot be processed: it is empty, or longer than the model's positions.
    #[error("the prompt {problem}; {mend}")]
    Prompt {
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        mend: String,
    },

    /// A parameter of the request is out of range: a budget of zero, a negative temperature.
    #[error("`{field}` {problem}; {mend}")]
    Request {
        /// The parameter.
        field: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        mend: String,
    },

    /// The profile is damaged, or belongs to another model.
    #[error("`{}`: {problem}", .path.display())]
    Profile {
        /// The profile file.
        path: PathBuf,
        /// What is wrong with it.
        problem: fasa_core::profile::ProfileError,
    },

    /// The policy refused a decode step: shapes or settings that do not fit the model.
    #[error("attention failed: {0}")]
    Core(#[from] fasa_core::Error),

    /// The device failed to run the work or to return its result.
    #[error("the device {problem}; {mend}")]
    Device {
        /// What it could not do.
        problem: String,
        /// What to do about it.
        mend: String,
    },

    /// The file of a tiered cache failed.
    #[error(transparent)]
    Tier(fasa_cpu::tier::Error),

    /// The caller asked for the work to stop before it was done.
    #[error("cancelled before the work was done")]
    Cancelled,
}

fn tensor_place(tensor: &Option<String>) -> String {
    match tensor {
        Some(name) => format!("tensor `{name}` "),
        None => String::new(),
    }
}

impl From<fasa_cpu::tier::Error> for Error {
    fn from(error: fasa_cpu::tier::Error) -> Self {
        match error {
            fasa_cpu::tier::Error::Core(error) => Self::Core(error),
            error => Self::Tier(error),
        }
    }
}

/// Constructors, so that the places that find an error stay readable.
impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn config(
        path: &Path,
        field: impl Into<String>,
        problem: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self::Config { path: path.to_owned(), field: field.into(), problem: problem.into(), mend: mend.into() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), what: what.into(), mend: mend.into() }
    }

    /// An error of the whole checkpoint file or folder.
    pub(crate) fn checkpoint(path: &Path, problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.to_owned(), tensor: None, problem: problem.into(), mend: mend.into() }
    }

    /// An error of one tensor of the checkpoint.
    pub(crate) fn tensor(path: &Path, tensor: &str, problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Checkpoint {
            path: path.to_owned(),
            tensor: Some(tensor.to_owned()),
            problem: problem.into(),
            mend: mend.into(),
        }
    }

    pub(crate) fn tokenizer(path: &Path, problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Tokenizer { path: path.to_owned(), problem: problem.into(), mend: mend.into() }
    }

    pub(crate) fn template(path: &Path, problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Template { path: path.to_owned(), problem: problem.into(), mend: mend.into() }
    }

    pub(crate) fn session(path: &Path, problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Session { path: path.to_owned(), problem: problem.into(), mend: mend.into() }
    }

    pub(crate) fn request(field: &str, problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Request { field: field.to_owned(), problem: problem.into(), mend: mend.into() }
    }
}

#[cfg(feature = "cube")]
impl From<fasa_cube::tape::Refused> for Error {
    fn from(refused: fasa_cube::tape::Refused) -> Self {
        crate::device::failure(&refused.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn messages_name_the_place_the_problem_and_the_mend() {
        let path = Path::new("m/config.json");
        let cases = [
            (
                Error::config(path, "head_dim", "is 63", "use an even number"),
                "`m/config.json`: field `head_dim` is 63; use an even number",
            ),
            (
                Error::unsupported(path, "`hidden_act` gelu", "use silu"),
                "`m/config.json`: `hidden_act` gelu is not supported; use silu",
            ),
            (
                Error::checkpoint(path, "is truncated", "download it again"),
                "`m/config.json`: is truncated; download it again",
            ),
            (
                Error::tensor(path, "lm_head.weight", "is missing", "download it again"),
                "`m/config.json`: tensor `lm_head.weight` is missing; download it again",
            ),
            (Error::request("budget", "is 0", "use at least 1"), "`budget` is 0; use at least 1"),
        ];
        for (error, message) in cases {
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn io_keeps_the_reason_as_source() {
        let error = Error::io(Path::new("x"), std::io::Error::from(std::io::ErrorKind::NotFound));
        assert!(error.to_string().contains("`x`"));
        assert!(error.source().is_some());
    }
}
