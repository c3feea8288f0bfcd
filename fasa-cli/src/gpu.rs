//! Failures of GPUs, which come as panics where the libraries below have no way to return an error.

use anyhow::Result;
use fasa_burn::device::{failure, gpu_in_use};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::{Mutex, PoisonError};

/// What the first panic said.
static SAID: Mutex<Option<String>> = Mutex::new(None);

/// Runs `body`; once a GPU is in use, a panic on any thread is an error of the device. Without one it is a mistake in this
/// program and stays a panic.
///
/// # Errors
/// Those of `body`, and the device's.
pub fn guard(body: impl FnOnce() -> Result<()>) -> Result<()> {
    let usual = take_hook();
    set_hook(Box::new(move |info| {
        if !gpu_in_use() {
            return usual(info);
        }
        let payload = info.payload();
        let said = payload.downcast_ref::<String>().cloned();
        let said = said.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        SAID.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(said.unwrap_or_default());
    }));
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result,
        Err(panic) if !gpu_in_use() => resume_unwind(panic),
        Err(_) => {
            let said = SAID.lock().unwrap_or_else(PoisonError::into_inner).take();
            Err(failure(&said.unwrap_or_default()).into())
        }
    }
}
