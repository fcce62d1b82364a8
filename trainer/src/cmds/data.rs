//! `fovea-train data check`.

use crate::data::{Folder, progress};
use crate::spec::{ModelSpec, STRIDES};
use anyhow::{Result, bail};
use fovea::detection::BBox;
use fovea::frame::Letterbox;
use fovea::images;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Looks at data sets.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

/// What can be looked at.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Decode every picture and check every box; exit code 1 if something would break training.
    Check(Check),
}

/// Arguments of `fovea-train data check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  fovea-train data check --data mydata/train --width 416 --height 256")]
struct Check {
    /// A folder with annotations.json (COCO) and images/.
    #[arg(long)]
    data: PathBuf,
    /// Input width that the anchors are checked for.
    #[arg(long, default_value_t = 416)]
    width: usize,
    /// Input height that the anchors are checked for.
    #[arg(long, default_value_t = 256)]
    height: usize,
}

/// What is known of one class.
#[derive(Debug, Default)]
struct ClassCount {
    boxes: usize,
    crowds: usize,
    scored: usize,
    pictures_exhaustive: usize,
    unmatched: usize,
}

impl Args {
    /// Looks.
    pub(crate) fn run(self) -> Result<()> {
        let Command::Check(check) = self.command;
        check.run()
    }
}

impl Check {
    fn run(&self) -> Result<()> {
        let folder = Folder::open(&self.data)?;
        let coco = &folder.coco;
        let bar = progress(coco.images.len(), "checking");
        let mut errors: Vec<String> = coco
            .images
            .par_iter()
            .filter_map(|image| {
                bar.inc(1);
                match images::open(&folder.image_path(&image.file_name)) {
                    Err(error) => Some(error.to_string()),
                    Ok(picture) => {
                        let stated = (image.width as usize, image.height as usize);
                        ((picture.width, picture.height) != stated).then(|| {
                            format!(
                                "{}: {}x{}, annotations.json says {}x{}",
                                image.file_name, picture.width, picture.height, stated.0, stated.1
                            )
                        })
                    }
                }
            })
            .collect();
        bar.finish_and_clear();
        let image_of: BTreeMap<u64, _> = coco.images.iter().map(|image| (image.id, image)).collect();
        let mut counts: BTreeMap<u32, ClassCount> = coco.categories.iter().map(|c| (c.id, ClassCount::default())).collect();
        for image in &coco.images {
            for (id, count) in &mut counts {
                count.pictures_exhaustive += usize::from(image.is_exhaustive(*id));
            }
        }
        let cells = ModelSpec::edge_anchors();
        let manifest_anchors = fovea::retinanet::Anchors::new(&cells, (self.width, self.height), &STRIDES, &[(1, 1); 5]);
        let anchor_sizes: Vec<(f32, f32)> = manifest_anchors.iter().map(|a| (a.width(), a.height())).collect();
        let mut sizes = [0_usize; 3];
        for annotation in &coco.annotations {
            let Some(image) = image_of.get(&annotation.image_id) else { continue };
            let [x, y, w, h] = annotation.bbox;
            let (right, bottom) = (f64::from(image.width), f64::from(image.height));
            if !(w > 0.0 && h > 0.0) {
                errors.push(format!("{}: box {:?} (annotation {}) is empty", image.file_name, annotation.bbox, annotation.id));
            } else if x < -1.0 || y < -1.0 || x + w > right + 1.0 || y + h > bottom + 1.0 {
                errors.push(format!(
                    "{}: box {:?} (annotation {}) leaves the picture",
                    image.file_name, annotation.bbox, annotation.id
                ));
            }
            let Some(count) = counts.get_mut(&annotation.category_id) else { continue };
            count.boxes += 1;
            count.crowds += usize::from(annotation.iscrowd != 0);
            count.scored += usize::from(annotation.score.is_some());
            let area = w * h;
            sizes[if area < 32.0 * 32.0 { 0 } else { usize::from(area >= 96.0 * 96.0) + 1 }] += 1;
            let letterbox = Letterbox::new((image.width as usize, image.height as usize), (self.width, self.height));
            let (sx, sy) = letterbox.frame_per_net();
            let net = BBox::new(0.0, 0.0, w as f32 / sx, h as f32 / sy);
            let best = anchor_sizes.iter().map(|&(aw, ah)| BBox::new(0.0, 0.0, aw, ah).iou(&net)).fold(0.0, f32::max);
            count.unmatched += usize::from(best < 0.4);
        }
        println!(
            "{} pictures, {} boxes: {} small, {} medium, {} large",
            coco.images.len(),
            coco.annotations.len(),
            sizes[0],
            sizes[1],
            sizes[2]
        );
        println!(
            "{:<16} {:>8} {:>8} {:>8} {:>12} {:>22}",
            "class", "boxes", "crowds", "scored", "complete in", "no anchor at IoU 0.4"
        );
        for category in &coco.categories {
            let count = &counts[&category.id];
            let share = 100.0 * count.unmatched as f64 / count.boxes.max(1) as f64;
            println!(
                "{:<16} {:>8} {:>8} {:>8} {:>12} {:>21.1}%",
                category.name, count.boxes, count.crowds, count.scored, count.pictures_exhaustive, share
            );
        }
        for error in errors.iter().take(50) {
            eprintln!("error: {error}");
        }
        if !errors.is_empty() {
            bail!("{}: {} faults; training would stop at or learn from them", self.data.display(), errors.len());
        }
        Ok(())
    }
}
