//! Launches that are recorded once and run again: starting each of hundreds takes the host longer than running them takes the
//! device.

use cubecl::client::{Client, Graph};
use cubecl::server::Handle;

/// Launches that were recorded.
#[derive(Debug, Clone)]
pub struct Tape {
    graph: Graph,
}

/// Why launches could not be recorded or run again, in the runtime's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the launches of a step could not be recorded: {0}")]
pub struct Refused(String);

impl Tape {
    /// Runs `launches` twice: once so that all memory it takes is there, then again to record it. What changes from one run
    /// of the tape to the next must come from buffers that [`overwrite`] fills; `launches` may neither upload nor read, once
    /// everything that it uploads only the first time is there. `between` is called before the second run, whose result
    /// is returned: the tape writes it each time.
    ///
    /// # Errors
    /// That of a call, or [`Refused`] by the runtime.
    pub fn record<R, E: From<Refused>>(
        client: &Client,
        mut launches: impl FnMut() -> Result<R, E>,
        between: impl FnOnce(R) -> Result<(), E>,
    ) -> Result<(Self, R), E> {
        let refused = |error: &dyn std::fmt::Display| E::from(Refused(error.to_string()));
        client.graph_prepare().map_err(|e| refused(&e))?;
        between(launches()?)?;
        client.start_capture().map_err(|e| refused(&e))?;
        let result = launches();
        let graph = client.stop_capture().map_err(|e| refused(&e))?;
        Ok((Self { graph }, result?))
    }

    /// Runs the launches again, in the order of the stream they were recorded on: that of the thread that recorded them, which
    /// must be the one that calls.
    ///
    /// # Errors
    /// [`Refused`] by the runtime.
    pub fn run(&self) -> Result<(), Refused> {
        // SAFETY: the runtime keeps the pages of a recording from other use as long as the graph lives, and the launches came
        // from kernels whose bounds hold for every length up to the one they were recorded for.
        unsafe { self.graph.replay() }.map_err(|error| Refused(error.to_string()))
    }
}

/// Writes `numbers` over the start of a buffer.
pub fn overwrite(client: &Client, handle: &Handle, numbers: Vec<u32>) {
    client.write(handle, cubecl::bytes::Bytes::from_elems(numbers));
}
