//! The subcommands, one file each: arguments and what they do.

/// Prints a line to stderr. A terminal that is gone, or a pipe that nobody reads, is no reason to lose a run.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($argument)*);
    }};
}
pub(crate) use say;

#[cfg(feature = "opencv")]
mod annotated;
#[cfg(not(feature = "opencv"))]
#[path = "annotated_off.rs"]
mod annotated;
mod bench;
mod bench_model;
mod check;
mod detect;
mod eval;
mod inspect;
mod layers;
mod media;
mod model_file;
mod output;
mod postprocess_args;
mod run;
mod view_args;

use anyhow::Error;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use fovea::kernels::{Isa, Kernels};
use std::io::IsTerminal;

/// Real-time object detection on video, on small computers.
#[derive(Debug, Parser)]
#[command(name = "fovea", version, about, max_term_width = 110)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Reads the command line. A negative number is a value, if a wrong one, and no option.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        let mut command = Self::command().mut_subcommands(|command| command.allow_negative_numbers(true));
        Self::from_arg_matches(&command.try_get_matches_from_mut(std::env::args_os())?)
            .map_err(|error| error.format(&mut command))
    }
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Detect objects in a live stream or a video, draw them, write them down.
    Run(run::Args),
    /// Detect objects in pictures.
    Detect(detect::Args),
    /// Measure a model on a labelled data set (COCO metrics).
    Eval(eval::Args),
    /// Measure the speed of the pipeline, or of a network alone.
    Bench(bench::Args),
    /// Show what a model consists of: inputs, outputs, operators, memory.
    Inspect(inspect::Args),
    /// Check a pipeline file and what it names, without running it.
    Check(check::Args),
}

/// A command that failed: why, and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    /// 1: the work failed; 2: the request is wrong.
    pub(crate) code: u8,
    /// What is printed.
    pub(crate) error: Error,
}

impl Failure {
    /// The work failed.
    pub(crate) fn failed(error: impl Into<Error>) -> Self {
        Self { code: 1, error: error.into() }
    }

    /// The request is wrong: usage, configuration, a missing file.
    pub(crate) fn request(error: impl Into<Error>) -> Self {
        Self { code: 2, error: error.into() }
    }
}

/// The message and the causes that it does not quote already.
pub(crate) fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Instruction set of the kernels in use.
pub(crate) fn effective_isa() -> Isa {
    Kernels::default().isa()
}

/// Chooses the kernels of the process: the best that this CPU has, or those that `FOVEA_ISA` names.
fn choose_kernels() -> Result<Kernels, Failure> {
    #[expect(clippy::disallowed_methods, reason = "the registry of knobs: FOVEA_ISA here, FOVEA_LOG below")]
    let forced = std::env::var("FOVEA_ISA").unwrap_or_default();
    let available = Isa::available();
    if forced.is_empty() {
        return Ok(Kernels::best().choose());
    }
    let named = available.iter().copied().find(|isa| isa.name() == forced).and_then(Kernels::new);
    named.map(Kernels::choose).ok_or_else(|| {
        let names: Vec<&str> = available.iter().map(|isa| isa.name()).collect();
        Failure::request(anyhow::anyhow!(
            "FOVEA_ISA={forced}: there are no such kernels in this build or on this CPU; unset it, or take one of: {}",
            names.join(", ")
        ))
    })
}

impl Command {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let kernels = choose_kernels()?;
        tracing::info!(isa = kernels.isa().name(), "kernels chosen");
        match self {
            Self::Run(args) => args.run(),
            Self::Detect(args) => args.run(),
            Self::Eval(args) => args.run(),
            Self::Bench(args) => args.run(),
            Self::Inspect(args) => args.run(),
            Self::Check(args) => args.run(),
        }
    }
}

/// Log to stderr; `FOVEA_LOG` sets the level (`error` … `trace`), default `warn`.
pub(crate) fn init_logging() {
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("FOVEA_LOG").unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Its own complaint about a log that cannot be written would be a panic where stderr is gone.
    log.log_internal_errors(false).with_ansi(std::io::stderr().is_terminal()).without_time().init();
}
