//! Labelled pictures: COCO annotations, partial and scored labels, decoded pictures in memory.

use anyhow::{Context, Result, bail};
use fovea::detection::BBox;
use fovea::eval::CocoDataset;
use fovea::images::{self, RgbPicture};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What a box is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LabelKind {
    /// An object to find.
    Object,
    /// Neither object nor background: a crowd, a doubtful scored label, a mostly hidden object.
    Ignore,
}

/// A box with its class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Label {
    /// Where, in pixels of the picture.
    pub(crate) bbox: BBox,
    /// Index into the model's classes.
    pub(crate) class: usize,
    /// What it is good for.
    pub(crate) kind: LabelKind,
}

/// A picture with its labels.
#[derive(Debug)]
pub(crate) struct Example {
    /// Pixels.
    pub(crate) picture: RgbPicture,
    /// Boxes.
    pub(crate) labels: Vec<Label>,
    /// For each class whether what has no box is background.
    pub(crate) is_known: Vec<bool>,
}

/// How scored labels are used.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScoreBands {
    /// From here an object.
    pub(crate) positive: f64,
    /// From here to `positive` ignored.
    pub(crate) ignore: f64,
}

/// A folder with `annotations.json` and `images/`.
pub(crate) struct Folder {
    /// The folder.
    pub(crate) dir: PathBuf,
    /// Its annotations.
    pub(crate) coco: CocoDataset,
}

impl Folder {
    /// Reads the annotations of a folder.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        Ok(Self { dir: dir.to_owned(), coco: read_coco(&dir.join("annotations.json"))? })
    }

    /// Path of a picture.
    pub(crate) fn image_path(&self, file_name: &str) -> PathBuf {
        self.dir.join("images").join(file_name)
    }
}

fn read_coco(path: &Path) -> Result<CocoDataset> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("cannot read {}; a data set is a folder with annotations.json (COCO) and images/", path.display())
    })?;
    CocoDataset::parse(&text).with_context(|| path.display().to_string())
}

/// Class index by category id, for the model's class names.
pub(crate) fn class_by_category(coco: &CocoDataset, classes: &[String]) -> HashMap<u32, usize> {
    let index = |name: &str| classes.iter().position(|class| class == name);
    coco.categories.iter().filter_map(|category| Some((category.id, index(&category.name)?))).collect()
}

/// Reads and decodes a whole data set. `pseudo` completes classes that a picture's own labels leave out: with it they
/// count as known.
pub(crate) fn load(
    folder: &Folder,
    classes: &[String],
    pseudo: Option<&Path>,
    bands: ScoreBands,
    limit: Option<usize>,
) -> Result<Vec<Example>> {
    let class_of = class_by_category(&folder.coco, classes);
    if let Some(missing) = classes.iter().find(|class| !folder.coco.categories.iter().any(|c| &c.name == *class)) {
        if pseudo.is_none() {
            bail!("{}: no category is called {missing:?}", folder.dir.join("annotations.json").display());
        }
    }
    let mut labels: HashMap<u64, Vec<Label>> = HashMap::new();
    let mut add = |coco: &CocoDataset, class_of: &HashMap<u32, usize>| {
        for annotation in &coco.annotations {
            let Some(&class) = class_of.get(&annotation.category_id) else { continue };
            let [x, y, w, h] = annotation.bbox.map(|v| v as f32);
            let is_object = annotation.iscrowd == 0 && annotation.score.is_none_or(|score| score >= bands.positive);
            if w < 1.0 || h < 1.0 || annotation.score.is_some_and(|score| score < bands.ignore) {
                continue;
            }
            let kind = if is_object { LabelKind::Object } else { LabelKind::Ignore };
            labels.entry(annotation.image_id).or_default().push(Label { bbox: BBox::new(x, y, x + w, y + h), class, kind });
        }
    };
    add(&folder.coco, &class_of);
    if let Some(path) = pseudo {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut scored: CocoDataset = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        if scored.categories.is_empty() {
            scored.categories.clone_from(&folder.coco.categories);
        }
        add(&scored, &class_by_category(&scored, classes));
    }
    let mut category_of: Vec<Option<u32>> = vec![None; classes.len()];
    for (&category, &class) in &class_of {
        category_of[class] = Some(category);
    }
    let images = &folder.coco.images[..limit.unwrap_or(usize::MAX).min(folder.coco.images.len())];
    let bar = progress(images.len(), "decoding");
    let examples: Result<Vec<Example>> = images
        .par_iter()
        .map(|image| {
            let picture = images::open(&folder.image_path(&image.file_name))?;
            bar.inc(1);
            let is_known =
                category_of.iter().map(|id| pseudo.is_some() || id.is_some_and(|id| image.is_exhaustive(id))).collect();
            Ok(Example { picture, labels: labels.get(&image.id).cloned().unwrap_or_default(), is_known })
        })
        .collect();
    bar.finish_and_clear();
    examples
}

/// A progress bar on stderr; plain where stderr is no terminal.
pub(crate) fn progress(len: usize, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(len as u64);
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {per_sec} {eta} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(what.to_owned());
    bar
}
