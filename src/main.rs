//! The program: arguments in, exit code out.

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    ExitCode::from(lean_proxy::run(env::args_os().skip(1)))
}
