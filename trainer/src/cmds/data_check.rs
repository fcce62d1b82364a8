//! `fovea-train data check`.

use crate::anchor_fit::{self, GOOD_IOU, best_iou};
use crate::data::{Folder, progress};
use crate::duplicates;
use crate::run_dir::RunDir;
use crate::spec::ModelSpec;
use anyhow::{Result, bail};
use fovea::eval::CocoImage;
use fovea::frame::Letterbox;
use fovea::images;
use fovea::retinanet::AnchorConfig;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Boxes of a class below which it is not learned well, whatever the network.
const FEW_BOXES: usize = 100;
/// Lines of one kind that are printed.
const MOST_LINES: usize = 50;

/// Arguments of `fovea-train data check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  fovea-train data check --data mydata/train --data mydata/val

Faults end with exit code 1: pictures that cannot be read or have another size than the labels say, boxes without area or \
outside of their picture. The rest is to be judged: pictures that look the same (in two data sets, what is measured on one of \
them is not what the model does on new pictures), classes with few boxes, boxes that no anchor suits.")]
pub(crate) struct Args {
    /// A data set; give it again for its other splits.
    #[arg(long, required = true)]
    data: Vec<PathBuf>,
    /// The network whose anchors and input size are checked: what `fit --init` begins with, beside a model.toml. Without it,
    /// the anchors of the edge preset at 416x256.
    #[arg(long, value_parser = super::weights_path)]
    init: Option<PathBuf>,
    /// Input width that the anchors are checked for, instead of the network's.
    #[arg(long, value_parser = side)]
    width: Option<usize>,
    /// Input height that the anchors are checked for, instead of the network's.
    #[arg(long, value_parser = side)]
    height: Option<usize>,
}

/// Width or height of a network's input.
pub(super) fn side(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|side| (1..=4096).contains(side)).ok_or_else(|| "1 to 4096 pixels".to_owned())
}

/// What boxes are held against.
struct Network {
    anchors: AnchorConfig,
    size: (usize, usize),
}

/// What is known of one class.
#[derive(Debug, Default)]
struct ClassCount {
    pictures: BTreeSet<u64>,
    boxes: usize,
    crowds: usize,
    scored: usize,
    pictures_complete: usize,
    unmatched: usize,
}

/// What is wrong with pictures and boxes, and what the pictures look like.
#[derive(Default)]
struct Findings {
    faults: Vec<String>,
    /// Where the pictures of each data set are.
    images_dirs: Vec<PathBuf>,
    /// Hash, data set and name of every picture that can be read.
    hashes: Vec<(u128, usize, String)>,
    /// Widths and heights of boxes in pixels of the network input.
    sizes: Vec<(f32, f32)>,
}

impl Args {
    /// Checks.
    pub(crate) fn run(self) -> Result<()> {
        let network = self.network()?;
        let mut findings = Findings::default();
        for (number, dir) in self.data.iter().enumerate() {
            let folder = Folder::open(dir)?;
            if self.data.len() > 1 {
                println!("{}:", dir.display());
            }
            findings.images_dirs.push(folder.images_dir().to_owned());
            check_pictures(&folder, number, &mut findings);
            check_boxes(&folder, &network, &mut findings);
        }
        report_duplicates(&findings);
        report_anchors(&network, &findings.sizes);
        for fault in findings.faults.iter().take(MOST_LINES) {
            say!("error: {fault}");
        }
        if !findings.faults.is_empty() {
            let names: Vec<String> = self.data.iter().map(|dir| dir.display().to_string()).collect();
            bail!("{}: {} faults; training would stop at or learn from them", names.join(", "), findings.faults.len());
        }
        Ok(())
    }

    /// The network of `--init`, or that of the edge preset.
    fn network(&self) -> Result<Network> {
        let mut network = Network { anchors: ModelSpec::edge_anchors(), size: (416, 256) };
        if let Some(init) = &self.init {
            let dir = RunDir(init.parent().unwrap_or(Path::new("")).to_owned());
            if !dir.model().exists() && !dir.config().exists() {
                // A backbone alone, as `import` makes it.
                say!("{}: no model.toml beside it, so the anchors are those of the edge preset", init.display());
            } else {
                let spec = dir.spec()?;
                network = Network { anchors: spec.anchors, size: (spec.width, spec.height) };
            }
        }
        network.size = (self.width.unwrap_or(network.size.0), self.height.unwrap_or(network.size.1));
        Ok(network)
    }
}

fn report_duplicates(findings: &Findings) {
    let hashes = &findings.hashes;
    let mut within = (0_usize, BTreeSet::new());
    let mut across = within.clone();
    duplicates::for_each_pair(&hashes.iter().map(|(hash, _, _)| *hash).collect::<Vec<_>>(), |a, b| {
        let (n, first) = if hashes[a].1 == hashes[b].1 { &mut within } else { &mut across };
        *n += 1;
        first.insert((a, b));
        if first.len() > MOST_LINES / 5 {
            first.pop_last();
        }
    });
    let name = |idx: usize| findings.images_dirs[hashes[idx].1].join(&hashes[idx].2).display().to_string();
    for ((n, first), what) in [(within, "within a data set"), (across, "in two data sets")] {
        for (a, b) in first {
            say!("warning: look the same: {} and {}", name(a), name(b));
        }
        if n > 0 {
            say!("warning: {n} pairs of pictures look the same {what}");
        }
    }
}

fn check_boxes(folder: &Folder, network: &Network, findings: &mut Findings) {
    let coco = &folder.coco;
    let image_of: BTreeMap<u64, &CocoImage> = coco.images.iter().map(|image| (image.id, image)).collect();
    let mut counts: BTreeMap<u32, ClassCount> = coco.categories.iter().map(|c| (c.id, ClassCount::default())).collect();
    for image in &coco.images {
        for (id, count) in &mut counts {
            count.pictures_complete += usize::from(image.is_exhaustive(*id));
        }
    }
    let anchors = anchor_fit::sizes(&network.anchors);
    let mut by_size = [0_usize; 3];
    for annotation in &coco.annotations {
        let Some(image) = image_of.get(&annotation.image_id) else { continue };
        let [x, y, w, h] = annotation.bbox;
        let (right, bottom) = (f64::from(image.width), f64::from(image.height));
        let fault = |what: &str| format!("{}: box {:?} (annotation {}) {what}", image.file_name, annotation.bbox, annotation.id);
        if !(w > 0.0 && h > 0.0) {
            findings.faults.push(fault("is empty"));
            continue;
        }
        if image.width == 0 || image.height == 0 {
            findings.faults.push(fault(&format!("is in a picture of {}x{} pixels", image.width, image.height)));
            continue;
        }
        if x < -1.0 || y < -1.0 || x + w > right + 1.0 || y + h > bottom + 1.0 {
            findings.faults.push(fault("leaves the picture"));
        }
        let Some(count) = counts.get_mut(&annotation.category_id) else { continue };
        count.pictures.insert(annotation.image_id);
        count.boxes += 1;
        count.crowds += usize::from(annotation.iscrowd != 0);
        count.scored += usize::from(annotation.score.is_some());
        let area = w * h;
        by_size[if area < 32.0 * 32.0 { 0 } else { usize::from(area >= 96.0 * 96.0) + 1 }] += 1;
        let letterbox = Letterbox::new((image.width as usize, image.height as usize), network.size);
        let (sx, sy) = letterbox.frame_per_net();
        let size = (w as f32 / sx, h as f32 / sy);
        count.unmatched += usize::from(best_iou(&anchors, size) < GOOD_IOU);
        if annotation.iscrowd == 0 {
            findings.sizes.push(size);
        }
    }
    let [small, medium, large] = by_size;
    println!("{} pictures, {} boxes: {small} small, {medium} medium, {large} large", coco.images.len(), coco.annotations.len());
    println!(
        "{:<16} {:>8} {:>8} {:>8} {:>8} {:>12} {:>22}",
        "class", "pictures", "boxes", "crowds", "scored", "complete in", "no anchor at IoU 0.5"
    );
    for category in &coco.categories {
        let count = &counts[&category.id];
        let share = 100.0 * count.unmatched as f64 / count.boxes.max(1) as f64;
        println!(
            "{:<16} {:>8} {:>8} {:>8} {:>8} {:>12} {share:>21.1}%",
            category.name,
            count.pictures.len(),
            count.boxes,
            count.crowds,
            count.scored,
            count.pictures_complete
        );
    }
    for category in &coco.categories {
        let n = counts[&category.id].boxes;
        if n < FEW_BOXES {
            say!("warning: {}: {n} boxes of {}; a class is learned from hundreds", folder.dir.display(), category.name);
        }
    }
}

fn report_anchors(network: &Network, sizes: &[(f32, f32)]) {
    if sizes.is_empty() {
        return;
    }
    let given = &network.anchors;
    let before = anchor_fit::fit(given, sizes);
    let (proposed, after) = anchor_fit::propose(given, sizes);
    let percent = |share: f32| 100.0 * share;
    println!(
        "anchors at {}x{}: {:.1}% of the boxes have none at IoU 0.5, best IoU {:.3} on average",
        network.size.0,
        network.size.1,
        percent(before.missed),
        before.mean_iou
    );
    // Less than a point is not worth another set of anchors.
    if before.missed - after.missed >= 0.01 {
        println!(
            "better: {:.1}%, {:.3}, with these lines under [model.anchors] of a fit.toml (`fit … --until 0 --out NEW` writes one, `fit --config` with another --out starts from \
             it):\n  base_sizes = {:?}\n  \
             aspect_ratios = {:?}",
            percent(after.missed),
            after.mean_iou,
            proposed.base_sizes,
            proposed.aspect_ratios
        );
    }
}

fn check_pictures(folder: &Folder, number: usize, findings: &mut Findings) {
    let bar = progress(folder.coco.images.len(), "checking");
    let seen: Vec<Result<(u128, usize, String), String>> = folder
        .coco
        .images
        .par_iter()
        .flat_map_iter(|image| {
            bar.inc(1);
            let stated = (image.width as usize, image.height as usize);
            match images::open(&folder.image_path(&image.file_name)) {
                Err(error) => vec![Err(error.to_string())],
                Ok(picture) => {
                    let mut seen = vec![Ok((duplicates::hash(&picture), number, image.file_name.clone()))];
                    if (picture.width, picture.height) != stated {
                        seen.push(Err(format!(
                            "{}: {}x{}, the labels say {}x{}",
                            image.file_name, picture.width, picture.height, stated.0, stated.1
                        )));
                    }
                    seen
                }
            }
        })
        .collect();
    bar.finish_and_clear();
    for one in seen {
        match one {
            Ok(hash) => findings.hashes.push(hash),
            Err(fault) => findings.faults.push(fault),
        }
    }
}
