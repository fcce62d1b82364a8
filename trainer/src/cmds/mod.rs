//! The subcommands, one file each.

#[cfg(feature = "train")]
mod ablate;
mod average;
#[cfg(feature = "train")]
mod bench;
mod card;
mod data;
mod data_check;
mod data_convert;
mod data_sheet;
mod data_stats;
#[cfg(feature = "train")]
mod eval;
mod export;
#[cfg(feature = "train")]
mod fit;
mod import;
#[cfg(feature = "train")]
mod plot;
mod pseudo_label;
mod quantize;
#[cfg(feature = "train")]
mod tune;

#[cfg(feature = "train")]
use crate::request::Request;
use anyhow::Result;
use clap::{Parser, Subcommand};
use std::ffi::OsStr;
use std::path::PathBuf;

/// Train, evaluate, quantise and export RetinaNet models for fovea.
#[derive(Debug, Parser)]
#[command(name = "fovea-train", version, about, max_term_width = 110)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a network.
    #[cfg(feature = "train")]
    Fit(Box<fit::Args>),
    /// Measure the speed of a training step and of the batches.
    #[cfg(feature = "train")]
    Bench(bench::Args),
    /// Measure a run's averaged weights on a labelled data set.
    #[cfg(feature = "train")]
    Eval(eval::Args),
    /// Compare variants of a recipe, over seeds, as the paper's Table 1 does.
    #[cfg(feature = "train")]
    Ablate(Box<ablate::Args>),
    /// Average the weights of several runs of one network.
    Average(average::Args),
    /// Draw the paper's figures and those of a run.
    #[cfg(feature = "train")]
    Plot(plot::Args),
    /// Write a run's averaged weights as a float ONNX model.
    Export(export::Args),
    /// Write a run's averaged weights as an int8 model, measured against float.
    Quantize(quantize::Args),
    /// Label pictures with trained models.
    PseudoLabel(pseudo_label::Args),
    /// Bring weights of another program under this one's names.
    Import(import::Args),
    /// Measure model folders: the figures of their cards.
    Card(card::Args),
    /// Search for the learning rate, augmentation and input size that suit a data set.
    #[cfg(feature = "train")]
    Tune(tune::Args),
    /// Check, convert and look at data sets.
    Data(data::Args),
}

impl Command {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<()> {
        match self {
            #[cfg(feature = "train")]
            Self::Fit(args) => args.run(),
            #[cfg(feature = "train")]
            Self::Eval(args) => args.run(),
            #[cfg(feature = "train")]
            Self::Ablate(args) => args.run(),
            #[cfg(feature = "train")]
            Self::Bench(args) => args.run(),
            Self::Average(args) => args.run(),
            #[cfg(feature = "train")]
            Self::Plot(args) => args.run(),
            Self::Export(args) => args.run(),
            Self::Quantize(args) => args.run(),
            Self::PseudoLabel(args) => args.run(),
            Self::Import(args) => args.run(),
            Self::Card(args) => args.run(),
            #[cfg(feature = "train")]
            Self::Tune(args) => args.run(),
            Self::Data(args) => args.run(),
        }
    }
}

/// Where a network computes.
#[cfg(feature = "train")]
#[derive(Debug, clap::Args)]
pub(crate) struct DeviceArgs {
    /// auto, cpu or cuda.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads of the arithmetic on a CPU.
    #[arg(long)]
    threads: Option<usize>,
}

#[cfg(feature = "train")]
impl DeviceArgs {
    /// The device, with its threads set.
    pub(crate) fn open(&self) -> Result<tch::Device> {
        device(&self.device, self.threads)
    }
}

/// The file of weights that an option names, by itself or by the folder that it is in.
fn weights_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let path = if path.is_dir() { path.join("weights.safetensors") } else { path };
    if !path.is_file() {
        return Err(format!(
            "there is no file {}; name weights (.safetensors), or the folder of a run or a model",
            path.display()
        ));
    }
    match path.extension().and_then(OsStr::to_str) {
        Some("onnx") => Err("a network has no weights to go on from; name the weights.safetensors beside it".to_owned()),
        _ => Ok(path),
    }
}

/// The device that `--device` names.
#[cfg(feature = "train")]
pub(crate) fn device(name: &str, threads: Option<usize>) -> Result<tch::Device> {
    let has_cuda = crate::cuda::load_backend() && tch::Cuda::is_available();
    if let Some(threads) = threads {
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    }
    match name {
        "auto" if has_cuda => Ok(tch::Device::Cuda(crate::peers::local_rank()?)),
        "auto" | "cpu" => Ok(tch::Device::Cpu),
        "cuda" if has_cuda => Ok(tch::Device::Cuda(crate::peers::local_rank()?)),
        "cuda" => Err(Request(
            "--device cuda: no CUDA device; put the folder lib/ of a CUDA build of PyTorch 2.11 on LD_LIBRARY_PATH, or use --device cpu".into(),
        )
        .into()),
        other => Err(Request(format!("--device {other}: expected auto, cpu or cuda")).into()),
    }
}
