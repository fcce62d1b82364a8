//! `fovea-train`: trains, evaluates, exports and quantises RetinaNet models for `fovea`.
//!
//! Built on the library `fovea`, never the other way round: anchors, box coder, preprocessing, NMS and metrics exist
//! once. What needs gradients is behind the feature `train` (libtorch); the rest is plain Rust.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "sizes of tensors and pictures go between usize, i64 and floats everywhere; all are far below 2^31"
)]
#![cfg_attr(not(feature = "train"), allow(dead_code, reason = "what only training uses is tested without libtorch too"))]
#![allow(clippy::print_stdout, reason = "a command line program: results go to stdout")]

/// Prints a line to stderr. A terminal that is gone is no reason to lose a run.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($argument)*);
    }};
}

mod anchor_fit;
mod augment;
#[cfg(feature = "train")]
mod batches;
mod calibrate;
#[cfg(feature = "train")]
mod checkpoint;
mod cmds;
#[cfg(feature = "train")]
mod config;
#[cfg(feature = "train")]
mod cuda;
#[cfg(feature = "train")]
mod curve;
mod data;
mod degrade;
#[cfg(feature = "train")]
mod distill;
mod duplicates;
mod equalize;
#[cfg(feature = "train")]
mod evaluate;
mod export;
mod figure;
mod files;
#[cfg(feature = "train")]
mod fit;
mod fold;
mod formats;
mod fusion;
mod gate;
mod graph;
mod import;
#[cfg(feature = "train")]
mod loss;
#[cfg(feature = "train")]
mod model;
mod noise;
#[cfg(feature = "train")]
mod optim;
mod package;
#[cfg(feature = "train")]
mod peers;
mod pickle;
#[cfg(feature = "train")]
mod progress;
#[cfg(feature = "train")]
mod qat;
mod quantize;
mod request;
mod run_dir;
mod spec;
mod targets;
#[cfg(feature = "train")]
mod tensorboard;
mod torch_file;
mod weights;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cmds::Cli::parse();
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Exit code of a training that diverged.
#[cfg(feature = "train")]
const DIVERGED: u8 = 3;

/// 2: the request is wrong (usage, settings, a file that is not there); 3: the training diverged; 1: the work failed.
fn exit_code(error: &anyhow::Error) -> u8 {
    #[cfg(feature = "train")]
    if error.is::<fit::Diverged>() {
        return DIVERGED;
    }
    let is_missing = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    };
    let is_settings = |cause: &(dyn std::error::Error + 'static)| cause.is::<toml::de::Error>() || cause.is::<request::Request>();
    let is_request = error.is::<request::Request>() || error.chain().any(|cause| is_missing(cause) || is_settings(cause));
    if is_request { 2 } else { 1 }
}
