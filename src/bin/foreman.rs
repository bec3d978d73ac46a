//! `foreman`: the operator's command. Everything lies in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    factoryline::foreman::main()
}
