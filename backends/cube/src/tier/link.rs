//! How fast the link between the host's memory and the device's is.

use super::host::Block;
use crate::error::{Error, Result};
use cubecl::MemoryScope;
use cubecl::client::Client;
use cubecl::future::block_on;
use std::sync::Arc;
use std::time::Instant;

/// Bytes per second from the host's memory, pinned where the runtime has such, to the device: the best of some copies of 64 MiB.
///
/// # Errors
/// [`Error::Device`] if there is no memory, or the device fails.
pub fn to_device(client: &Client) -> Result<f64> {
    const BYTES: usize = 64 << 20;
    let failed = Error::Device("failed to copy");
    let block = Arc::new(Block::new(client, BYTES)?);
    let mut best = 0.0f64;
    for _ in 0..6 {
        block_on(client.sync()).map_err(|_| failed.clone())?;
        let start = Instant::now();
        drop(Block::upload(&block, client, BYTES));
        block_on(client.sync()).map_err(|_| failed.clone())?;
        best = best.max(BYTES as f64 / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Bytes of the device's memory that its pools have taken.
pub fn reserved(client: &Client) -> u64 {
    client.memory_report(MemoryScope::Device).usage().bytes_reserved
}
