//! Labelled pictures: annotations, partial and scored labels, decoded pictures in memory.

use crate::formats::{Format, Labelled};
#[cfg(feature = "train")]
use crate::peers::on_this_machine;
use crate::spec::ModelSpec;
use anyhow::{Context, Result, bail};
use fovea::detection::BBox;
use fovea::eval::{CocoDataset, CocoImage};
use fovea::images::{self, RgbPicture};
use fovea::pipeline::evaluate::EvaluateError;
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
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

/// A data set: labels and where their pictures are.
pub(crate) struct Folder {
    /// What the user named.
    pub(crate) dir: PathBuf,
    /// Folder of the pictures.
    images: PathBuf,
    /// Its labels.
    pub(crate) coco: CocoDataset,
}

impl Folder {
    /// Reads the labels of a data set in any format that is known.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        Self::open_as(dir, Format::detect(dir)?)
    }

    /// Reads the labels of a data set.
    pub(crate) fn open_as(dir: &Path, format: Format) -> Result<Self> {
        let Labelled { coco, images } = format.read(dir)?;
        Ok(Self { dir: dir.to_owned(), images, coco })
    }

    /// Folder of the pictures.
    pub(crate) fn images_dir(&self) -> &Path {
        &self.images
    }

    /// A picture, which has to be of the size that its labels are for.
    pub(crate) fn picture(&self, image: &CocoImage) -> Result<RgbPicture> {
        let path = self.image_path(&image.file_name);
        let picture = images::open(&path)?;
        let (found, labelled) = ((picture.width, picture.height), (image.width as usize, image.height as usize));
        if labelled != (0, 0) && found != labelled {
            return Err(EvaluateError::Size { path, found, labelled }.into());
        }
        Ok(picture)
    }

    /// Path of a picture.
    pub(crate) fn image_path(&self, file_name: &str) -> PathBuf {
        self.images.join(file_name)
    }
}

/// Class index by category id, for the model's class names.
pub(crate) fn class_by_category(coco: &CocoDataset, classes: &[String]) -> HashMap<u32, usize> {
    let index = |name: &str| classes.iter().position(|class| class == name);
    coco.categories.iter().filter_map(|category| Some((category.id, index(&category.name)?))).collect()
}

/// Reads and decodes a whole data set; pictures of more than four times the network's input are shrunk by whole numbers, to no less
/// than twice of it. `pseudo` completes classes that a picture's own labels leave out: those of its
/// categories count as known, all of them if it names none, in the pictures that it lists, all of them if it lists none.
pub(crate) fn load(folder: &Folder, spec: &ModelSpec, pseudo: Option<&Path>, bands: ScoreBands) -> Result<Vec<Example>> {
    let classes = &*spec.classes;
    let parts_of = |width: u32, height: u32| parts((width as usize, height as usize), (spec.width, spec.height));
    let class_of = class_by_category(&folder.coco, classes);
    if let Some(missing) = classes.iter().find(|class| !folder.coco.categories.iter().any(|c| &c.name == *class))
        && pseudo.is_none()
    {
        bail!("{}: no category is called {missing:?}", folder.dir.display());
    }
    let mut labels: HashMap<u64, Vec<Label>> = HashMap::new();
    let mut add = |coco: &CocoDataset, class_of: &HashMap<u32, usize>| {
        for annotation in &coco.annotations {
            let Some(&class) = class_of.get(&annotation.category_id) else { continue };
            let [x, y, w, h] = annotation.bbox.map(|v| v as f32);
            let is_object = annotation.iscrowd == 0 && annotation.score.is_none_or(|score| score >= bands.positive);
            let is_box = [x, y, w, h].iter().all(|v| v.is_finite()) && w >= 1.0 && h >= 1.0;
            if !is_box || annotation.score.is_some_and(|score| score < bands.ignore) {
                continue;
            }
            let kind = if is_object { LabelKind::Object } else { LabelKind::Ignore };
            labels.entry(annotation.image_id).or_default().push(Label { bbox: BBox::new(x, y, x + w, y + h), class, kind });
        }
    };
    add(&folder.coco, &class_of);
    let mut is_completed = vec![false; classes.len()];
    let mut completed_images = HashSet::new();
    if let Some(path) = pseudo {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut scored: CocoDataset = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        check_pictures(folder, &scored).with_context(|| path.display().to_string())?;
        if scored.categories.is_empty() {
            scored.categories.clone_from(&folder.coco.categories);
        }
        let scored_classes = class_by_category(&scored, classes);
        let is_named = |class: usize| class_of.values().chain(scored_classes.values()).any(|&named| named == class);
        if let Some(class) = (0..classes.len()).find(|&class| !is_named(class)) {
            bail!("neither {} nor {} has a category {:?}", folder.dir.display(), path.display(), classes[class]);
        }
        scored_classes.values().for_each(|&class| is_completed[class] = true);
        let others = scored.categories.iter().filter(|category| !scored_classes.contains_key(&category.id));
        let others: Vec<&str> = others.map(|category| category.name.as_str()).collect();
        if !others.is_empty() {
            say!(
                "{}: not used are its boxes of {}, which are no classes of the network (--classes)",
                path.display(),
                others.join(", ")
            );
        }
        let listed = if scored.images.is_empty() { &folder.coco.images } else { &scored.images };
        completed_images.extend(listed.iter().map(|image| image.id));
        add(&scored, &scored_classes);
    }
    let mut category_of: Vec<Option<u32>> = vec![None; classes.len()];
    for (&category, &class) in &class_of {
        category_of[class] = Some(category);
    }
    let images = &folder.coco.images;
    check_memory(folder, on_this_machine()?, |image| parts_of(image.width, image.height))?;
    let bar = progress(images.len(), "decoding");
    let examples: Result<Vec<Example>> = images
        .par_iter()
        .map(|image| {
            let picture = folder.picture(image)?;
            bar.inc(1);
            let n = parts((picture.width, picture.height), (spec.width, spec.height));
            let picture = shrunk(picture, n);
            let mut labels = labels.get(&image.id).cloned().unwrap_or_default();
            for label in &mut labels {
                let [x1, y1, x2, y2] = label.bbox.to_array().map(|edge| edge / n as f32);
                label.bbox = BBox::new(x1, y1, x2, y2);
            }
            let is_drawn = |id: &Option<u32>| id.is_some_and(|id| image.is_exhaustive(id));
            let is_listed = completed_images.contains(&image.id);
            let is_known = category_of.iter().zip(&is_completed);
            let is_known = is_known.map(|(id, completed)| is_listed && *completed || is_drawn(id)).collect();
            Ok(Example { picture, labels, is_known })
        })
        .collect();
    bar.finish_and_clear();
    examples
}

/// By how much both sides of a picture are divided while it is read: it stays at least twice the size that the network sees.
fn parts((width, height): (usize, usize), (net_width, net_height): (usize, usize)) -> usize {
    (width / (2 * net_width)).max(height / (2 * net_height)).max(1)
}

/// Means of `n` x `n` pixels; what is left over at the right and at the bottom is cut off.
fn shrunk(picture: RgbPicture, n: usize) -> RgbPicture {
    if n < 2 {
        return picture;
    }
    let (width, height) = (picture.width / n, picture.height / n);
    let mut data = vec![0; width * height * 3];
    for (y, row) in data.chunks_exact_mut(3 * width).enumerate() {
        let rows = &picture.data[3 * picture.width * y * n..][..3 * picture.width * n];
        for (i, value) in row.iter_mut().enumerate() {
            let (x, channel) = (i / 3, i % 3);
            let block = rows.chunks_exact(3 * picture.width).map(|row| &row[3 * x * n..3 * (x + 1) * n]);
            let sum: usize = block.flat_map(|row| row.iter().skip(channel).step_by(3)).map(|&value| usize::from(value)).sum();
            *value = ((sum + n * n / 2) / (n * n)) as u8;
        }
    }
    RgbPicture { width, height, data }
}

/// Nothing trains in this build.
#[cfg(not(feature = "train"))]
fn on_this_machine() -> Result<u64> {
    Ok(1)
}

/// All pictures lie decoded in memory while a network trains: said before an hour of decoding, not by the kernel after it.
fn check_memory(folder: &Folder, n_processes: u64, parts_of: impl Fn(&CocoImage) -> usize) -> Result<()> {
    let bytes = |image: &CocoImage| 3 * u64::from(image.width) * u64::from(image.height) / (parts_of(image) as u64).pow(2);
    // Of every process on this machine.
    let needed: u64 = n_processes * folder.coco.images.iter().map(bytes).sum::<u64>();
    let Some(free) = free_memory(Path::new("/proc/meminfo"), Path::new("/sys/fs/cgroup")) else { return Ok(()) };
    if needed > free {
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        bail!(
            "{}: its {} pictures take {:.1} GB decoded{}, and {:.1} GB of memory are free; take fewer, or scale \
             them down to twice the network's input (four times of it and more is done while reading)",
            folder.dir.display(),
            folder.coco.images.len(),
            gigabytes(needed),
            if n_processes > 1 { format!(" in {n_processes} processes") } else { String::new() },
            gigabytes(free)
        );
    }
    Ok(())
}

/// Bytes of memory that are free, by the system's `meminfo` and by the limit of the container whose folder is `cgroup`.
fn free_memory(meminfo: &Path, cgroup: &Path) -> Option<u64> {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let value = |text: &str, key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        number(line.trim().trim_end_matches(" kB"))
    };
    let meminfo = std::fs::read_to_string(meminfo).ok()?;
    let free = 1024 * (value(&meminfo, "MemAvailable:")? + value(&meminfo, "SwapFree:").unwrap_or(0));
    let read = |name: &str| std::fs::read_to_string(cgroup.join(name)).ok();
    let in_container = || {
        let (limit, used) = (number(&read("memory.max")?)?, number(&read("memory.current")?)?);
        // Files that were read count as used, and go when there is need.
        let cached = read("memory.stat").and_then(|stat| value(&stat, "inactive_file ")).unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(cached)))
    };
    Some(in_container().map_or(free, |limit| free.min(limit)))
}

/// Scored labels must be of these pictures: ids alone would put boxes on others.
fn check_pictures(folder: &Folder, scored: &CocoDataset) -> Result<()> {
    let name_of: HashMap<u64, &str> = folder.coco.images.iter().map(|image| (image.id, &*image.file_name)).collect();
    let other = scored.images.iter().find(|image| name_of.get(&image.id).is_some_and(|name| *name != image.file_name));
    if let Some(image) = other {
        bail!(
            "its picture {} is {:?}, that of {} is {:?}: it was made for other data; make it anew with `pseudo-label --annotations`",
            image.id,
            image.file_name,
            folder.dir.display(),
            name_of[&image.id]
        );
    }
    let lost = scored.annotations.iter().filter(|annotation| !name_of.contains_key(&annotation.image_id)).count();
    if lost == scored.annotations.len() && lost > 0 {
        bail!("none of its {lost} boxes is of a picture of {}", folder.dir.display());
    }
    Ok(())
}

/// A progress bar on stderr; plain where stderr is no terminal.
pub(crate) fn progress(len: usize, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(len as u64);
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {per_sec} {eta} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(what.to_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_a_container_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let free = || free_memory(&dir.path().join("meminfo"), dir.path());
        assert_eq!(free(), None);
        write("meminfo", "MemTotal:  9 kB\nMemAvailable:     8 kB\nSwapFree:  1 kB\n");
        assert_eq!(free(), Some(9 * 1024));
        write("memory.max", "max\n");
        write("memory.current", "5000\n");
        assert_eq!(free(), Some(9 * 1024), "no limit");
        write("memory.max", "6000\n");
        assert_eq!(free(), Some(1000));
        write("memory.stat", "anon 4000\ninactive_file 500\n");
        assert_eq!(free(), Some(1500));
    }
    use crate::spec::Backbone;
    use fovea::images::save;

    fn spec(classes: &[&str]) -> ModelSpec {
        let classes = classes.iter().map(|&class| class.to_owned()).collect();
        ModelSpec::edge(Backbone::ShuffleNetV2, 64, 2, (416, 256), classes)
    }

    /// Two pictures; in the second only class `a` is completely labelled.
    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("images")).unwrap();
        for name in ["0.png", "1.png"] {
            save(&dir.path().join("images").join(name), &RgbPicture { width: 40, height: 30, data: vec![9; 3600] }).unwrap();
        }
        let annotation = |image: u64, category: u32, more: serde_json::Value| {
            let mut value = serde_json::json!({"image_id": image, "category_id": category, "bbox": [1, 2, 10, 20]});
            value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            value
        };
        let coco = serde_json::json!({
            "images": [
                {"id": 0, "file_name": "0.png", "width": 40, "height": 30},
                {"id": 1, "file_name": "1.png", "width": 40, "height": 30, "exhaustive_category_ids": [7]},
            ],
            "categories": [{"id": 9, "name": "b"}, {"id": 7, "name": "a"}],
            "annotations": [
                annotation(0, 7, serde_json::json!({})),
                annotation(0, 9, serde_json::json!({"iscrowd": 1})),
                annotation(0, 7, serde_json::json!({"score": 0.1})),
                annotation(0, 7, serde_json::json!({"score": 0.3})),
                annotation(0, 9, serde_json::json!({"score": 0.45})),
            ],
        });
        std::fs::write(dir.path().join("annotations.json"), coco.to_string()).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder)
    }

    #[test]
    fn scored_labels_of_other_pictures_are_refused() {
        let (dir, folder) = folder();
        let path = dir.path().join("pseudo.json");
        let load_with = |scored: serde_json::Value| {
            std::fs::write(&path, scored.to_string()).unwrap();
            load(&folder, &spec(&["a"]), Some(&path), ScoreBands { positive: 0.45, ignore: 0.2 }).map(|examples| examples.len())
        };
        let of = |image: u64| serde_json::json!([{"image_id": image, "category_id": 7, "bbox": [1, 2, 10, 20], "score": 0.9}]);
        let swapped = serde_json::json!({"images": [{"id": 1, "file_name": "0.png", "width": 40, "height": 30}], "categories": [], "annotations": of(1)});
        assert!(format!("{:#}", load_with(swapped).unwrap_err()).contains("made for other data"));
        let strange = serde_json::json!({"categories": [], "annotations": of(77)});
        assert!(format!("{:#}", load_with(strange).unwrap_err()).contains("none of its 1 boxes"));
        assert_eq!(load_with(serde_json::json!({"categories": [], "annotations": of(1)})).unwrap(), 2);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn data_that_no_memory_holds_is_refused_before_it_is_decoded() {
        let (_dir, mut folder) = folder();
        folder.coco.images[1].width = 1_000_000;
        folder.coco.images[1].height = 1_000_000;
        let large = ModelSpec { width: 640_000, height: 640_000, ..spec(&["a"]) };
        let refused = load(&folder, &large, None, ScoreBands { positive: 0.45, ignore: 0.2 }).err().unwrap();
        let text = format!("{refused:#}");
        assert!(text.contains("its 2 pictures take 3000.0 GB decoded") && text.contains("scale them down"), "{text}");
    }

    #[test]
    fn pictures_of_another_size_than_their_labels_are_refused() {
        let (_dir, mut folder) = folder();
        let (width, height) = (folder.coco.images[1].width, folder.coco.images[1].height);
        (folder.coco.images[1].width, folder.coco.images[1].height) = (height, width);
        let refused = load(&folder, &spec(&["a"]), None, ScoreBands { positive: 0.45, ignore: 0.2 }).err().unwrap();
        let text = format!("{refused:#}");
        assert!(text.contains(&format!("has {width}x{height} pixels, its labels are for {height}x{width}")), "{text}");
    }

    #[test]
    fn labels_by_score_crowd_and_completeness() {
        let (dir, folder) = folder();
        let spec_ab = spec(&["a", "b"]);
        let bands = ScoreBands { positive: 0.45, ignore: 0.2 };
        let examples = load(&folder, &spec_ab, None, bands).unwrap();
        let got: Vec<(usize, LabelKind)> = examples[0].labels.iter().map(|label| (label.class, label.kind)).collect();
        use LabelKind::{Ignore, Object};
        assert_eq!(got, [(0, Object), (1, Ignore), (0, Ignore), (1, Object)]);
        assert_eq!(examples[0].labels[0].bbox, BBox::new(1.0, 2.0, 11.0, 22.0));
        assert_eq!((&examples[0].is_known[..], &examples[1].is_known[..]), (&[true, true][..], &[true, false][..]));

        // Scored annotations of a second file complete the classes that it names; without names, every class.
        let path = dir.path().join("pseudo.json");
        for (id, name, is_known) in [(7, "a", [true, false]), (9, "b", [true, true])] {
            let named = serde_json::json!({"annotations": [], "categories": [{"id": id, "name": name}]});
            std::fs::write(&path, named.to_string()).unwrap();
            assert_eq!(load(&folder, &spec_ab, Some(&path), bands).unwrap()[1].is_known, is_known);
        }
        let strange = load(&folder, &spec(&["a", "c"]), Some(&path), bands).unwrap_err();
        assert!(strange.to_string().contains("has a category \"c\""), "{strange}");
        let scored = serde_json::json!({"annotations": [{"image_id": 1, "category_id": 9, "bbox": [0, 0, 9, 9], "score": 0.9}], "categories": []});
        std::fs::write(&path, scored.to_string()).unwrap();
        let examples = load(&folder, &spec_ab, Some(&path), bands).unwrap();
        assert_eq!(examples[1].is_known, [true, true]);
        assert_eq!((examples[1].labels[0].class, examples[1].labels[0].kind), (1, Object));
    }

    #[test]
    fn photographs_are_shrunk_to_what_a_network_needs() {
        for (size, net, n) in [
            ((416, 256), (416, 256), 1),
            ((1919, 1080), (576, 320), 1),
            ((4000, 3000), (576, 320), 4),
            ((9000, 64), (576, 320), 7),
        ] {
            assert_eq!(parts(size, net), n, "{size:?} for {net:?}");
        }
        // Pixels that are alike in blocks of 2 x 2; the last column and row are cut off.
        let value = |x: usize, y: usize, c: usize| (10 * (x / 2) + 50 * (y / 2) + c) as u8;
        let data = (0..5 * 7).flat_map(|i| [0, 1, 2].map(|c| value(i % 7, i / 7, c))).collect();
        let small = shrunk(RgbPicture { width: 7, height: 5, data }, 2);
        let wanted: Vec<u8> = (0..2 * 3).flat_map(|i| [0, 1, 2].map(|c| value(2 * (i % 3), 2 * (i / 3), c))).collect();
        assert_eq!((small.width, small.height, small.data), (3, 2, wanted));

        let (_dir, folder) = folder();
        let tiny = ModelSpec { width: 8, height: 8, ..spec(&["a"]) };
        let examples = load(&folder, &tiny, None, ScoreBands { positive: 0.45, ignore: 0.2 }).unwrap();
        assert_eq!((examples[0].picture.width, examples[0].picture.height), (20, 15));
        assert_eq!(examples[0].labels[0].bbox, BBox::new(0.5, 1.0, 5.5, 11.0));
    }
}
