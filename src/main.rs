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
            cmds::say!("error: {}", explain(&failure.error));
            ExitCode::from(failure.code)
        }
    }
}

/// The message and the causes that it does not quote already.
fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
