//! `fovea check`.

use super::Failure;

/// Arguments of `fovea check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        Err(Failure::failed(anyhow::anyhow!("not built yet")))
    }
}
