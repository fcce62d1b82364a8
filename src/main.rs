//! The command line: parses, runs one command, maps errors to exit codes (0 done, 1 failed, 2 wrong request).

mod cmds;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    cmds::init_logging();
    let cli = cmds::Cli::parse();
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::debug!(?failure.error, "command failed");
            eprintln!("error: {:#}", failure.error);
            ExitCode::from(failure.code)
        }
    }
}
