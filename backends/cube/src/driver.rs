//! What CUDA needs from a machine, asked before the runtime panics for lack of it.

use std::path::PathBuf;

/// Something that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The driver's library.
    Driver,
    /// NVRTC, which compiles kernels while the program runs.
    Compiler,
    /// The headers that NVRTC includes.
    Headers,
}

/// The first thing that is missing on this machine, if any.
pub fn missing() -> Option<Missing> {
    // SAFETY: both only try to open libraries by name, as the runtime does later; they run no code but the libraries' own
    // start.
    let (driver, compiler) =
        unsafe { (cudarc::driver::sys::is_culib_present(), cudarc::nvrtc::sys::is_culib_present()) };
    if !driver {
        return Some(Missing::Driver);
    }
    if !compiler {
        return Some(Missing::Compiler);
    }
    headers().is_none().then_some(Missing::Headers)
}

/// The folder of CUDA's headers, looked for where the runtime looks.
fn headers() -> Option<PathBuf> {
    let include = cubecl_cuda::install::cuda_path()?.join("include");
    include.join("cuda_fp16.h").is_file().then_some(include)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the machine: the answer agrees with what the machine shows.
    #[test]
    fn a_machine_without_a_driver_is_told_so() {
        let has_driver = std::path::Path::new("/dev/nvidiactl").exists();
        if !has_driver {
            assert_eq!(missing(), Some(Missing::Driver));
        }
    }
}
