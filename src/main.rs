//! The command line: parses, runs one command, maps errors to exit codes (0 done, 1 failed, 2 wrong request).

mod cmds;

use clap::Parser;
use fovea::pipeline::secret::hide_credentials;
use std::process::ExitCode;

fn main() -> ExitCode {
    cmds::init_logging();
    let cli = match cmds::Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) if usage.use_stderr() => {
            // It quotes arguments, and the place of a URL is easily mistaken.
            cmds::say!("{}", hide_credentials(usage.render().to_string().trim_end()));
            return ExitCode::from(2);
        }
        Err(help) => help.exit(),
    };
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            cmds::say!("error: {}", hide_credentials(&explain(&failure.error)));
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
