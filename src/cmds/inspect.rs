//! `fovea inspect`.

use super::Failure;

/// Arguments of `fovea inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        Err(Failure::failed(anyhow::anyhow!("not built yet")))
    }
}
