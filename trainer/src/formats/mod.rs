//! Labelled pictures in the formats that annotation tools write. In memory all of them are COCO.
//!
//! What a format cannot say is lost when it is written: [`Format::losses`].

mod csv;
mod cvat;
mod open_images;
mod voc;
mod yolo;

use crate::files::write_atomic;
use crate::request::Request;
use anyhow::{Context, Result, bail};
use fovea::eval::{CocoAnnotation, CocoCategory, CocoDataset, CocoImage};
use fovea::images;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A way to write down which object is where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// annotations.json and images/.
    Coco,
    /// Annotations/*.xml and JPEGImages/, or XML files beside the pictures (Pascal VOC, labelImg).
    Voc,
    /// images/ and labels/*.txt, names in data.yaml or classes.txt (Ultralytics, Darknet).
    Yolo,
    /// A CSV of boxes and a CSV of class descriptions (Open Images).
    OpenImages,
    /// annotations.xml ("CVAT for images 1.1") and images/.
    Cvat,
}

/// Labels, and the folder that their pictures are in.
#[derive(Debug)]
pub(crate) struct Labelled {
    /// The labels.
    pub(crate) coco: CocoDataset,
    /// Where pictures are.
    pub(crate) images: PathBuf,
}

impl Format {
    /// The format of a data set, by what there is.
    pub(crate) fn detect(dir: &Path) -> Result<Self> {
        let known = [Self::Coco, Self::Cvat, Self::Yolo, Self::Voc, Self::OpenImages];
        if let Some(format) = known.into_iter().find(|format| format.is_here(dir)) {
            return Ok(format);
        }
        Err(Request(format!(
            "{}: no labels found; a data set is a folder with annotations.json and images/ (COCO), images/ and labels/ (YOLO), \
             Annotations/ and JPEGImages/ (VOC), annotations.xml and images/ (CVAT), or a CSV with the columns ImageID and LabelName \
             (Open Images)",
            dir.display()
        ))
        .into())
    }

    /// Whether there are labels of this format, whatever else there is.
    pub(crate) fn is_here(self, dir: &Path) -> bool {
        match self {
            Self::Coco => dir.join("annotations.json").is_file(),
            Self::Cvat => dir.join("annotations.xml").is_file(),
            Self::Yolo => yolo::labels_of(dir).is_some(),
            Self::Voc => voc::is_here(dir),
            Self::OpenImages => open_images::boxes_of(dir).is_some(),
        }
    }

    /// Reads a data set of this format.
    pub(crate) fn read(self, dir: &Path) -> Result<Labelled> {
        match self {
            Self::Coco => Ok(Labelled { coco: read_coco(&dir.join("annotations.json"))?, images: dir.join("images") }),
            Self::Voc => voc::read(dir),
            Self::Yolo => yolo::read(dir),
            Self::OpenImages => open_images::read(dir),
            Self::Cvat => cvat::read(dir),
        }
    }

    /// Writes labels in this format; pictures are taken to be in [`Self::images_dir`].
    pub(crate) fn write(self, dir: &Path, coco: &CocoDataset) -> Result<()> {
        match self {
            Self::Coco => write(&dir.join("annotations.json"), &serde_json::to_string(coco)?),
            Self::Voc => voc::write(dir, coco),
            Self::Yolo => yolo::write(dir, coco),
            Self::OpenImages => open_images::write(dir, coco),
            Self::Cvat => cvat::write(dir, coco),
        }
    }

    /// Where pictures are in a data set that [`Self::write`] makes.
    pub(crate) fn images_dir(self, dir: &Path) -> PathBuf {
        dir.join(if self == Self::Voc { "JPEGImages" } else { "images" })
    }

    /// What of these labels this format cannot say.
    pub(crate) fn losses(self, coco: &CocoDataset) -> Vec<&'static str> {
        let has_partial = coco.images.iter().any(|image| image.exhaustive_category_ids.is_some());
        let has_crowds = coco.annotations.iter().any(|annotation| annotation.iscrowd != 0);
        let has_scores = coco.annotations.iter().any(|annotation| annotation.score.is_some());
        let of = |is_lost: bool, what: &'static str| is_lost.then_some(what);
        [
            of(
                has_partial && !matches!(self, Self::Coco | Self::OpenImages),
                "which classes are completely labelled in a picture",
            ),
            of(
                self == Self::OpenImages
                    && coco.images.iter().any(|image| image.exhaustive_category_ids.as_ref().is_some_and(Vec::is_empty)),
                "pictures without boxes of which nothing is known: these are left out",
            ),
            of(has_crowds && matches!(self, Self::Yolo | Self::Cvat), "regions to ignore: these boxes are left out"),
            of(has_scores && !matches!(self, Self::Coco | Self::OpenImages), "scores: the boxes become drawn ones"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Labels as they are read, class by class and picture by picture.
#[derive(Debug, Default)]
struct Reader {
    coco: CocoDataset,
    category_of: HashMap<String, u32>,
}

impl Reader {
    /// Id of a class, new or known.
    fn category(&mut self, name: &str) -> u32 {
        if let Some(&id) = self.category_of.get(name) {
            return id;
        }
        let id = self.coco.categories.len() as u32 + 1;
        self.coco.categories.push(CocoCategory { id, name: name.to_owned() });
        self.category_of.insert(name.to_owned(), id);
        id
    }

    /// Adds a picture.
    fn image(&mut self, file_name: String, (width, height): (usize, usize)) -> u64 {
        let id = self.coco.images.len() as u64 + 1;
        let (width, height) = (width as u32, height as u32);
        self.coco.images.push(CocoImage { id, file_name, width, height, exhaustive_category_ids: None });
        id
    }

    /// Adds a box `[x1, y1, x2, y2]`.
    fn add(&mut self, image_id: u64, category_id: u32, [x1, y1, x2, y2]: [f64; 4]) -> &mut CocoAnnotation {
        let id = self.coco.annotations.len() as u64 + 1;
        let (w, h) = (x2 - x1, y2 - y1);
        self.coco.annotations.push(CocoAnnotation {
            id,
            image_id,
            category_id,
            bbox: [x1, y1, w, h],
            area: w * h,
            ..CocoAnnotation::default()
        });
        let last = self.coco.annotations.len() - 1;
        &mut self.coco.annotations[last]
    }

    /// The labels, with classes in alphabetical order where the format has no order of its own.
    fn finish(mut self, images: PathBuf, is_ordered: bool) -> Labelled {
        if !is_ordered {
            self.coco.categories.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Labelled { coco: self.coco, images }
    }
}

/// Boxes of every picture and names of every class, for a format that is written picture by picture.
struct Writer<'a> {
    boxes: HashMap<u64, Vec<&'a CocoAnnotation>>,
    names: HashMap<u32, &'a str>,
}

impl<'a> Writer<'a> {
    fn new(coco: &'a CocoDataset) -> Self {
        let mut boxes: HashMap<u64, Vec<&CocoAnnotation>> = HashMap::new();
        for annotation in &coco.annotations {
            boxes.entry(annotation.image_id).or_default().push(annotation);
        }
        Self { boxes, names: coco.categories.iter().map(|category| (category.id, category.name.as_str())).collect() }
    }

    fn boxes(&self, image: &CocoImage) -> &[&'a CocoAnnotation] {
        self.boxes.get(&image.id).map_or(&[], Vec::as_slice)
    }

    fn name(&self, category_id: u32) -> &'a str {
        self.names.get(&category_id).copied().unwrap_or_default()
    }
}

/// `[x1, y1, x2, y2]` of a box.
fn edges(annotation: &CocoAnnotation) -> [f64; 4] {
    let [x, y, w, h] = annotation.bbox;
    [x, y, x + w, y + h]
}

fn read_coco(path: &Path) -> Result<CocoDataset> {
    CocoDataset::parse(&read(path)?).with_context(|| path.display().to_string())
}

fn read(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // Editors of another system begin a text with a mark of its encoding.
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// Writes a file, with the folders it is in.
fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    }
    write_atomic(path, text.as_bytes())
}

/// Text as it may stand in XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Pictures of a folder by name without extension, which is how most formats name them.
fn by_stem(dir: &Path) -> Result<HashMap<String, String>> {
    let mut names = HashMap::new();
    for name in crate::files::list_pictures(dir)? {
        if let Some(other) = names.insert(stem(&name), name.clone()) {
            bail!(
                "{}: {other:?} and {name:?} differ in their extension only, and labels name neither; rename one",
                dir.display()
            );
        }
    }
    Ok(names)
}

/// A name within a folder, without its extension.
fn stem(name: &str) -> String {
    Path::new(name).with_extension("").to_string_lossy().into_owned()
}

/// Width and height of a picture.
fn size_of(path: &Path) -> Result<(usize, usize)> {
    Ok(images::size(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea::images::{RgbPicture, save};

    /// Three pictures, one without boxes, one in a folder of its own; a name that XML and CSV have to escape.
    fn example() -> CocoDataset {
        let mut reader = Reader::default();
        let (cat, dog) = (reader.category("cat, \"big\" & <odd>"), reader.category("dog"));
        let first = reader.image("a.png".into(), (64, 48));
        reader.image("empty.png".into(), (32, 32));
        let last = reader.image("more/b.png".into(), (40, 80));
        reader.add(first, dog, [4.0, 6.0, 20.0, 30.0]);
        reader.add(first, cat, [32.0, 12.0, 64.0, 48.0]);
        reader.add(last, dog, [10.0, 20.0, 30.0, 60.0]);
        reader.coco
    }

    fn write_pictures(dir: &Path, coco: &CocoDataset) {
        for image in &coco.images {
            let path = dir.join(&image.file_name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let (width, height) = (image.width as usize, image.height as usize);
            save(&path, &RgbPicture { width, height, data: vec![7; width * height * 3] }).unwrap();
        }
    }

    /// File name, size, and boxes by class name, in order.
    type Summary = Vec<(String, (u32, u32), Vec<(String, Vec<i64>)>)>;

    fn summary(coco: &CocoDataset) -> Summary {
        let writer = Writer::new(coco);
        let mut all: Summary = coco
            .images
            .iter()
            .map(|image| {
                let boxes = writer.boxes(image).iter();
                let mut boxes: Vec<_> = boxes
                    .map(|a| (writer.name(a.category_id).to_owned(), a.bbox.iter().map(|v| (v * 100.0).round() as i64).collect()))
                    .collect();
                boxes.sort();
                (image.file_name.clone(), (image.width, image.height), boxes)
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn every_format_gives_back_what_was_written() {
        use clap::ValueEnum;
        for format in Format::value_variants() {
            let dir = tempfile::tempdir().unwrap();
            let coco = example();
            format.write(dir.path(), &coco).unwrap();
            write_pictures(&format.images_dir(dir.path()), &coco);
            assert_eq!(Format::detect(dir.path()).unwrap(), *format);
            let read = format.read(dir.path()).unwrap_or_else(|error| panic!("{format:?}: {error:#}"));
            assert_eq!(summary(&read.coco), summary(&coco), "{format:?}");
            for image in &read.coco.images {
                assert!(read.images.join(&image.file_name).is_file(), "{format:?}: {}", image.file_name);
            }
        }
    }

    #[test]
    fn nothing_to_read_says_what_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let error = Format::detect(dir.path()).unwrap_err().to_string();
        assert!(error.contains("annotations.json") && error.contains("YOLO"), "{error}");
    }
}
