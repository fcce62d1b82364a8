//! `fovea-train data convert`.

use crate::data::{Folder, progress};
use crate::formats::Format;
use crate::request::Request;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Arguments of `fovea-train data convert`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  fovea-train data convert --data VOC2012 --to coco --out voc-as-coco

Pictures are copied, unless --out is --data itself and they are in their place already.")]
pub(crate) struct Args {
    /// The data set.
    #[arg(long)]
    data: PathBuf,
    /// Its format. [default: by what there is]
    #[arg(long, value_enum)]
    from: Option<Format>,
    /// Format to write.
    #[arg(long, value_enum)]
    to: Format,
    /// Folder to write.
    #[arg(long)]
    out: PathBuf,
}

impl Args {
    /// Converts.
    pub(crate) fn run(self) -> Result<()> {
        let format = self.from.map_or_else(|| Format::detect(&self.data), Ok)?;
        if format == self.to && self.data == self.out {
            return Err(Request("--out is --data and --to is its format: there is nothing to do".into()).into());
        }
        if self.to.is_here(&self.out) {
            let out = self.out.display();
            return Err(Request(format!(
                "--out {out} holds labels in this format already, which would be replaced; name another folder"
            ))
            .into());
        }
        let folder = Folder::open_as(&self.data, format)?;
        self.check_names(&folder)?;
        if let Some(image) = folder.coco.images.iter().find(|image| image.width == 0 || image.height == 0) {
            let (data, name) = (self.data.display(), &image.file_name);
            return Err(Request(format!("{data}: {name} has {}x{} pixels, as its labels say", image.width, image.height)).into());
        }
        let images = self.to.images_dir(&self.out);
        std::fs::create_dir_all(&images).with_context(|| format!("cannot make the folder {}", images.display()))?;
        if images.canonicalize()? != folder.images_dir().canonicalize()? {
            let bar = progress(folder.coco.images.len(), "copying");
            for image in &folder.coco.images {
                let (from, to) = (folder.image_path(&image.file_name), images.join(&image.file_name));
                if let Some(dir) = to.parent() {
                    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
                }
                if let (Ok(there), Ok(picture)) = (to.metadata(), from.metadata()) {
                    // A link to the picture itself, which a copy would empty, or an earlier copy.
                    let is_same = (there.dev(), there.ino()) == (picture.dev(), picture.ino());
                    if is_same || there.len() == picture.len() {
                        continue;
                    }
                    return Err(Request(format!("{} is there and is another picture; name another --out", to.display())).into());
                }
                std::fs::copy(&from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
                bar.inc(1);
            }
            bar.finish_and_clear();
        }
        self.to.write(&self.out, &folder.coco)?;
        for lost in self.to.losses(&folder.coco) {
            say!("warning: {:?} cannot say {lost}", self.to);
        }
        println!("{}: {} pictures, {} boxes", self.out.display(), folder.coco.images.len(), folder.coco.annotations.len());
        Ok(())
    }

    /// Names that a copy of the data set can have: within its folder, and each with labels of its own.
    fn check_names(&self, folder: &Folder) -> Result<()> {
        let is_inside =
            |name: &str| Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let mut by_stem: HashMap<PathBuf, &str> = HashMap::new();
        for name in folder.coco.images.iter().map(|image| image.file_name.as_str()) {
            let data = self.data.display();
            if !is_inside(name) {
                return Err(Request(format!(
                    "{data}: the picture {name:?} is outside of {}; move it there and name it from there",
                    folder.images_dir().display()
                ))
                .into());
            }
            let is_named_by_stem = !matches!(self.to, Format::Coco | Format::Cvat);
            if let Some(other) = by_stem.insert(Path::new(name).with_extension(""), name)
                && is_named_by_stem
                && other != name
            {
                return Err(Request(format!(
                    "{data}: {other:?} and {name:?} would share one file of labels in this format; rename one of them"
                ))
                .into());
            }
        }
        Ok(())
    }
}
