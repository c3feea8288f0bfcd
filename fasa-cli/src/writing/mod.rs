//! What commands that write text share: their arguments, and the text as it comes.

mod args;
mod sampling;
mod stop;
mod stream;

pub use args::{ChatArgs, SessionArgs, Setup, WritingArgs};
pub use sampling::SamplingArgs;
pub use stop::StopText;
pub use stream::Stream;
