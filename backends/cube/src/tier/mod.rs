//! Keys and values in the host's memory: the device holds the sketch, and of the rows those that steps choose again and again.
//!
//! [`HostRows`] keeps every row, in memory that the device copies from by itself where the runtime offers such (CUDA: pinned
//! pages). [`Slots`] says which rows of a head lie on the device, and [`place()`] puts the ones that were missing there, out of
//! the one buffer that travels per layer and step.

mod book;
mod host;
mod link;
mod mapped;
mod place;
mod slots;

pub use book::{Assigned, Book};
pub use host::{BLOCK, HostRows, HostShape};
pub use link::{reserved, to_device};
pub use mapped::Mapped;
pub use place::{Packet, place};
pub use slots::Slots;
