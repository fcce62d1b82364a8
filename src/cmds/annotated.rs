//! Pictures with boxes drawn on them, written into a folder.

use super::Failure;
use fovea::frame::{ColorInfo, PictureMut, PixelFormat, PlaneMut};
use fovea::images::{self, RgbPicture};
use fovea::overlay::Overlay;
use fovea::pipeline::detections::{Objects, probe_writable};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Where annotated pictures go.
#[derive(Debug)]
pub(crate) struct Annotated {
    folder: PathBuf,
    overlay: Overlay,
}

impl Annotated {
    /// Makes the folder and checks that it can be written.
    pub(crate) fn open(folder: PathBuf, pictures: &[PathBuf]) -> Result<Self, Failure> {
        let names: HashSet<_> = pictures.iter().map(|path| Self::name(path)).collect();
        if names.len() < pictures.len() {
            return Err(Failure::request(anyhow::anyhow!("--out: two pictures have the same name; give them in two runs")));
        }
        let hint = "choose a folder that can be written";
        let cannot = |what: String| Failure::request(anyhow::anyhow!("cannot write into {}: {what}; {hint}", folder.display()));
        std::fs::create_dir_all(&folder).map_err(|error| cannot(error.to_string()))?;
        probe_writable(&folder.join(".fovea-probe")).map_err(|error| cannot(error.to_string()))?;
        if let Some(same) = pictures.iter().find(|path| is_same_file(path, &Self::path(&folder, path))) {
            return Err(Failure::request(anyhow::anyhow!(
                "--out {} would overwrite {}; {hint} and that does not hold the pictures",
                folder.display(),
                same.display()
            )));
        }
        Ok(Self { folder, overlay: Overlay::new() })
    }

    /// Name of the annotated picture: the picture's own, as PNG where it is neither PNG nor JPEG.
    fn name(picture: &Path) -> PathBuf {
        let name = PathBuf::from(picture.file_name().unwrap_or_default());
        let extension = name.extension().unwrap_or_default().to_ascii_lowercase();
        if extension == "png" || extension == "jpg" || extension == "jpeg" { name } else { name.with_extension("png") }
    }

    /// Where in `folder` the annotated `picture` is written.
    pub(crate) fn path(folder: &Path, picture: &Path) -> PathBuf {
        folder.join(Self::name(picture))
    }

    /// Draws on the picture and writes it.
    pub(crate) fn write(&mut self, path: &Path, picture: &mut RgbPicture, objects: Objects<'_>) -> Result<(), Failure> {
        let (width, height) = (picture.width, picture.height);
        let plane = PlaneMut { data: &mut picture.data, stride_bytes: 3 * width };
        let planes = [plane, PlaneMut::default(), PlaneMut::default()];
        let mut canvas =
            PictureMut::new(PixelFormat::Rgb, width, height, ColorInfo::default(), planes).map_err(Failure::failed)?;
        self.overlay.draw(&mut canvas, objects.detections, objects.labels, None).map_err(Failure::failed)?;
        images::save(&Self::path(&self.folder, path), picture).map_err(Failure::failed)
    }
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
