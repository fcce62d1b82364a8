//! `fovea-train data`.

use super::{data_check, data_convert, data_sheet, data_stats};
use anyhow::Result;

/// Looks at data sets.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  fovea-train data check --data mydata/train --data mydata/val --init models/street/weights.safetensors

Each of them reads COCO, YOLO, Pascal VOC, Open Images and CVAT: name the folder, the format is found.")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

/// What can be done with them.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Decode every picture and check every box; exit code 1 if something would break training.
    Check(data_check::Args),
    /// Write a data set in another format.
    Convert(data_convert::Args),
    /// Draw classes, sizes, shapes and numbers of boxes.
    Stats(data_stats::Args),
    /// Put pictures with their boxes on one sheet.
    Sheet(data_sheet::Args),
}

impl Args {
    /// Looks.
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            Command::Check(args) => args.run(),
            Command::Convert(args) => args.run(),
            Command::Stats(args) => args.run(),
            Command::Sheet(args) => args.run(),
        }
    }
}
