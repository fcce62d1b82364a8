//! Without the feature `opencv` nothing can be drawn: the request is refused.

use super::Failure;
use fovea::images::RgbPicture;
use fovea::pipeline::detections::Objects;
use std::path::{Path, PathBuf};

/// There is none.
#[derive(Debug)]
pub(crate) enum Annotated {}

impl Annotated {
    /// Always refuses.
    pub(crate) fn open(_: PathBuf, _: &[PathBuf]) -> Result<Self, Failure> {
        Err(Failure::request(anyhow::anyhow!("--out needs a build with the feature opencv; this one cannot draw")))
    }

    /// Where in `folder` the annotated `picture` would be written.
    pub(crate) fn path(folder: &Path, picture: &Path) -> PathBuf {
        folder.join(picture.file_name().unwrap_or_default())
    }

    /// Cannot be called.
    pub(crate) fn write(&mut self, _: &Path, _: &mut RgbPicture, _: Objects<'_>) -> Result<(), Failure> {
        match *self {}
    }
}
