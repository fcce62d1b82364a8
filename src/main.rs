//! The command line: parses, runs one command, maps errors to exit codes (0 done, 1 failed, 2 wrong request).

mod cmds;

use fovea::pipeline::secret::{hide_credentials, hide_in_word};
use std::process::ExitCode;

fn main() -> ExitCode {
    cmds::init_logging();
    let cli = match cmds::Cli::read() {
        Ok(cli) => cli,
        Err(usage) if usage.use_stderr() => {
            // It quotes arguments, and the place of a URL is easily mistaken.
            cmds::say!("{}", without_secrets(usage.render().to_string().trim_end()));
            return ExitCode::from(2);
        }
        Err(help) => help.exit(),
    };
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            cmds::say!("error: {}", without_secrets(&cmds::explain(&failure.error)));
            ExitCode::from(failure.code)
        }
    }
}

/// A message without what may be passwords in it: an argument as a whole first, as a password may hold spaces and quotes.
fn without_secrets(message: &str) -> String {
    let arguments = std::env::args_os().skip(1).filter_map(|argument| argument.into_string().ok());
    let hidden = arguments.filter(|argument| argument.contains('@')).fold(message.to_owned(), |message, argument| {
        let value = argument.split_once('=').filter(|_| argument.starts_with('-')).map_or(&*argument, |(_, value)| value);
        message.replace(value, &hide_in_word(value))
    });
    hide_credentials(&hidden)
}
