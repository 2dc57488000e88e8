//! The `lamina` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    lamina::cli::main()
}
