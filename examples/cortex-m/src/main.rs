//! The same program for a microcontroller and for the machine that builds it.
#![cfg_attr(target_os = "none", no_std, no_main)]

/// On the microcontroller: memory in a static, lines to the debugger.
#[cfg(target_os = "none")]
mod board {
    use cortex_m_rt::entry;
    use cortex_m_semihosting::{debug, hio};
    use fasa_example_cortex_m::{Memory, run};
    use panic_semihosting as _;

    #[entry]
    fn main() -> ! {
        static mut MEMORY: Memory = Memory::new();
        let done = match hio::hstdout() {
            Ok(mut out) => run(MEMORY, &mut out).is_ok(),
            Err(()) => false,
        };
        debug::exit(if done { debug::EXIT_SUCCESS } else { debug::EXIT_FAILURE });
        unreachable!("the debugger ends the program")
    }
}

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    let mut lines = String::new();
    let result = fasa_example_cortex_m::run(&mut fasa_example_cortex_m::Memory::new(), &mut lines);
    print!("{lines}");
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem:?}");
            std::process::ExitCode::FAILURE
        }
    }
}
