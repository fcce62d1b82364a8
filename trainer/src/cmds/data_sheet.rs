//! `fovea-train data sheet`.

use crate::data::{Folder, class_by_category, progress};
use crate::figure::{self, COLORS};
use crate::request::Request;
use anyhow::{Context, Result};
use fovea::detection::{BBox, Detection};
use fovea::eval::CocoImage;
use fovea::images::{self, RgbPicture};
use fovea::pipeline::detector::{Detector, DetectorOptions};
use fovea::pipeline::ports::Detect;
use fovea::preprocess::Preprocessor;
use plotters::prelude::*;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Place of a picture on the sheet, without its caption.
const CELL: (usize, usize) = (288, 216);
/// Height of a caption.
const CAPTION: usize = 20;
/// `IoU` from which on a detection is the object.
const SAME_OBJECT: f32 = 0.5;

const DRAWN: RGBColor = RGBColor(60, 200, 80);
const MISSED: RGBColor = RGBColor(235, 40, 40);
const FALSE: RGBColor = RGBColor(255, 170, 0);
const IGNORED: RGBColor = RGBColor(170, 170, 170);

/// Arguments of `fovea-train data sheet`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  fovea-train data sheet --data mydata/train --out sheet.png
  fovea-train data sheet --data mydata/val --worst models/mine --out errors.png

With --worst, the pictures on which the model is most wrong come first: green boxes are drawn labels, red ones those that the \
model misses, orange ones what it finds where nothing is.")]
pub(crate) struct Args {
    /// The data set.
    #[arg(long)]
    data: PathBuf,
    /// Picture to write: PNG or JPEG.
    #[arg(long)]
    out: PathBuf,
    /// Only pictures with this class.
    #[arg(long)]
    class: Option<String>,
    /// The pictures on which this model is most wrong, instead of random ones.
    #[arg(long, value_name = "MODEL")]
    worst: Option<PathBuf>,
    /// Pictures on the sheet.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=400))]
    pictures: u16,
    /// Pictures in a row.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=20))]
    columns: u16,
    /// Seed of the choice.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A box to draw.
struct Mark {
    bbox: BBox,
    text: String,
    color: RGBColor,
}

/// A picture on the sheet.
struct Shown<'a> {
    image: &'a CocoImage,
    caption: String,
    marks: Vec<Mark>,
    /// How wrong the model is on it.
    errors: f32,
}

/// A label of the data set.
struct Own {
    category: u32,
    bbox: BBox,
    score: Option<f64>,
    is_crowd: bool,
}

impl Args {
    /// Draws the sheet.
    pub(crate) fn run(self) -> Result<()> {
        figure::prepare(&self.out)?;
        let folder = Folder::open(&self.data)?;
        let names: HashMap<u32, &str> = folder.coco.categories.iter().map(|c| (c.id, c.name.as_str())).collect();
        let mut own: HashMap<u64, Vec<Own>> = HashMap::new();
        for annotation in &folder.coco.annotations {
            // A label that training takes for none is none here.
            let Some(is_crowd) = annotation.is_ignored() else { continue };
            let [x, y, w, h] = annotation.bbox.map(|v| v as f32);
            let bbox = BBox::new(x, y, x + w, y + h);
            let (category, score) = (annotation.category_id, annotation.score);
            own.entry(annotation.image_id).or_default().push(Own { category, bbox, score, is_crowd });
        }
        let own_of = |image: &CocoImage| own.get(&image.id).map_or(&[][..], Vec::as_slice);
        let has_class = |image: &&CocoImage| {
            self.class
                .as_ref()
                .is_none_or(|class| own_of(image).iter().any(|one| names.get(&one.category) == Some(&class.as_str())))
        };
        let mut images: Vec<&CocoImage> = folder.coco.images.iter().filter(has_class).collect();
        if images.is_empty() {
            let known: Vec<&str> = folder.coco.categories.iter().map(|c| c.name.as_str()).collect();
            return Err(Request(format!("--class {:?}: no picture has it; there are {}", self.class, known.join(", "))).into());
        }
        images.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed));
        let n = usize::from(self.pictures);
        let shown = if let Some(model) = &self.worst {
            let mut shown = errors_of(model, &folder, &images, &own_of)?;
            shown.sort_by(|a, b| b.errors.total_cmp(&a.errors));
            shown.truncate(n);
            shown
        } else {
            images.iter().take(n).map(|image| labelled(image, own_of(image), &names)).collect()
        };
        let sheet = draw(&folder, &shown, usize::from(self.columns))?;
        images::save(&self.out, &sheet)?;
        println!("{}: {} of {} pictures", self.out.display(), shown.len(), images.len());
        Ok(())
    }
}

/// A picture with its labels, by class.
fn labelled<'a>(image: &'a CocoImage, own: &[Own], names: &HashMap<u32, &str>) -> Shown<'a> {
    let mark = |one: &Own| Mark {
        bbox: one.bbox,
        text: names.get(&one.category).map_or_else(String::new, |name| name_and_score(name, one.score)),
        color: if one.is_crowd { IGNORED } else { COLORS[one.category as usize % COLORS.len()] },
    };
    Shown { image, caption: image.file_name.clone(), marks: own.iter().map(mark).collect(), errors: 0.0 }
}

fn name_and_score(name: &str, score: Option<f64>) -> String {
    score.map_or_else(|| name.to_owned(), |score| format!("{name} {score:.2}"))
}

/// What a model does on every picture, at its display thresholds. Classes that are not completely labelled in a picture do not
/// count there.
fn errors_of<'a, 'o>(
    model: &Path,
    folder: &Folder,
    images: &[&'a CocoImage],
    own_of: &(impl Fn(&CocoImage) -> &'o [Own] + Sync),
) -> Result<Vec<Shown<'a>>> {
    let open = || Detector::open(model, &DetectorOptions { threads: 1, allow_float: true, ..DetectorOptions::default() });
    let labels = open()?.labels().to_vec();
    let class_of = class_by_category(&folder.coco, &labels);
    let category_of: HashMap<usize, u32> = class_of.iter().map(|(&category, &class)| (class, category)).collect();
    let bar = progress(images.len(), "looking");
    let look = |images: &[&'a CocoImage]| -> Result<Vec<Shown<'a>>> {
        let mut detector = open()?;
        let mut found: Vec<Detection> = Vec::new();
        images
            .iter()
            .map(|&image| {
                let picture = images::open(&folder.image_path(&image.file_name))?;
                detector.detect(&picture.as_picture(), &mut found).with_context(|| image.file_name.clone())?;
                bar.inc(1);
                let known: Vec<(u32, &Detection)> = found
                    .iter()
                    .filter_map(|one| Some((*category_of.get(&one.class_id.index())?, one)))
                    .filter(|(category, _)| image.is_exhaustive(*category))
                    .collect();
                Ok(compared(image, own_of(image), &known, &labels, &class_of))
            })
            .collect()
    };
    let per_thread = images.len().div_ceil(rayon::current_num_threads()).max(1);
    let shown: Result<Vec<Vec<Shown<'a>>>> = images.par_chunks(per_thread).map(look).collect();
    bar.finish_and_clear();
    Ok(shown?.into_iter().flatten().collect())
}

/// Labels against detections, which come best first: an error for each missed object, and as much as its score for each find
/// where nothing is.
fn compared<'a>(
    image: &'a CocoImage,
    own: &[Own],
    found: &[(u32, &Detection)],
    labels: &[String],
    class_of: &HashMap<u32, usize>,
) -> Shown<'a> {
    let name = |category: u32| class_of.get(&category).map_or("", |&class| labels[class].as_str());
    let own: Vec<&Own> = own.iter().filter(|one| class_of.contains_key(&one.category)).collect();
    let mut is_taken = vec![false; own.len()];
    let mut marks = Vec::new();
    let (mut n_false, mut errors) = (0, 0.0);
    for (category, detection) in found {
        let fits = |idx: &usize| own[*idx].category == *category && own[*idx].bbox.iou(&detection.bbox) >= SAME_OBJECT;
        let free = (0..own.len()).filter(|idx| !is_taken[*idx]).filter(fits);
        if let Some(idx) = free.max_by(|&a, &b| own[a].bbox.iou(&detection.bbox).total_cmp(&own[b].bbox.iou(&detection.bbox))) {
            is_taken[idx] = true;
            continue;
        }
        // A find inside a region to ignore is none.
        let is_ignored = |one: &Own| one.is_crowd && one.bbox.intersection(&detection.bbox) > 0.5 * detection.bbox.area();
        if !own.iter().any(|one| one.category == *category && is_ignored(one)) {
            n_false += 1;
            errors += detection.score;
            let text = name_and_score(name(*category), Some(f64::from(detection.score)));
            marks.push(Mark { bbox: detection.bbox, text, color: FALSE });
        }
    }
    let mut n_missed = 0;
    for (one, is_taken) in own.iter().zip(is_taken) {
        let is_missed = !is_taken && !one.is_crowd && image.is_exhaustive(one.category);
        n_missed += usize::from(is_missed);
        let color = if is_missed {
            MISSED
        } else if one.is_crowd {
            IGNORED
        } else {
            DRAWN
        };
        marks.push(Mark { bbox: one.bbox, text: if is_missed { name(one.category).to_owned() } else { String::new() }, color });
    }
    let caption = format!("{n_missed} missed, {n_false} false: {}", image.file_name);
    Shown { image, caption, marks, errors: errors + n_missed as f32 }
}

fn draw(folder: &Folder, shown: &[Shown<'_>], columns: usize) -> Result<RgbPicture> {
    let columns = columns.min(shown.len());
    let (width, height) = (columns * CELL.0, shown.len().div_ceil(columns) * (CELL.1 + CAPTION));
    let mut sheet = RgbPicture { width, height, data: vec![255; width * height * 3] };
    let corner = |at: usize| (at % columns * CELL.0, at / columns * (CELL.1 + CAPTION));
    let mut pixels = vec![0; CELL.0 * CELL.1 * 3];
    let mut placed: Vec<(BBox, &Mark)> = Vec::new();
    for (at, one) in shown.iter().enumerate() {
        let picture = images::open(&folder.image_path(&one.image.file_name))?;
        let letterbox = Preprocessor::new(CELL).run(&picture.as_picture(), &mut pixels);
        let (x, y) = corner(at);
        for (row, line) in pixels.chunks_exact(CELL.0 * 3).enumerate() {
            sheet.data[((y + row) * width + x) * 3..][..CELL.0 * 3].copy_from_slice(line);
        }
        placed.extend(one.marks.iter().map(|mark| {
            let b = letterbox.net_from_frame(&mark.bbox);
            let b = b.clip(CELL.0 as f32 - 1.0, CELL.1 as f32 - 1.0);
            (BBox::new(b.x1 + x as f32, b.y1 + y as f32, b.x2 + x as f32, b.y2 + y as f32), mark)
        }));
    }
    figure::draw_over(&mut sheet.data, (width as u32, height as u32), |area| {
        for (b, mark) in placed {
            let [x1, y1, x2, y2] = b.to_array().map(|v| v as i32);
            area.draw(&Rectangle::new([(x1, y1), (x2, y2)], mark.color.stroke_width(2)))?;
            if !mark.text.is_empty() {
                area.draw(&Rectangle::new(
                    [(x1, y1), (x1 + 7 * mark.text.chars().count() as i32, y1 + 13)],
                    mark.color.filled(),
                ))?;
                figure::text(area, &mark.text, (x1 + 1, y1 + 6), 11)?;
            }
        }
        for (at, one) in shown.iter().enumerate() {
            let (x, y) = corner(at);
            let caption: String = one.caption.chars().take(CELL.0 / 7).collect();
            figure::text(area, &caption, (x as i32 + 4, (y + CELL.1 + CAPTION / 2) as i32), 12)?;
        }
        Ok(())
    })?;
    Ok(sheet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea::detection::ClassId;

    #[test]
    fn errors_are_missed_objects_and_finds_where_nothing_is() {
        let image = CocoImage { id: 1, file_name: "a.png".into(), width: 90, height: 60, exhaustive_category_ids: Some(vec![5]) };
        let bbox = |x: f32| BBox::new(x, 0.0, x + 10.0, 10.0);
        let own = |x: f32, category: u32, is_crowd: bool| Own { category, bbox: bbox(x), score: None, is_crowd };
        // Found, missed, crowd, of a class that is not complete here, of a class that the model has not.
        let own = [own(0.0, 5, false), own(20.0, 5, false), own(40.0, 5, true), own(60.0, 6, false), own(70.0, 9, false)];
        let found = |x: f32, score: f32| Detection { bbox: bbox(x), class_id: ClassId(0), score };
        let found = [found(1.0, 0.9), found(0.0, 0.8), found(41.0, 0.7), found(80.0, 0.5)];
        let found: Vec<(u32, &Detection)> = found.iter().map(|one| (5, one)).collect();
        let shown = compared(&image, &own, &found, &["a".into(), "b".into()], &HashMap::from([(5, 0), (6, 1)]));
        // The second find of one object counts as false.
        assert!((shown.errors - (1.0 + 0.8 + 0.5)).abs() < 1e-6, "{}", shown.errors);
        assert!(shown.caption.starts_with("1 missed, 2 false"), "{}", shown.caption);
        assert_eq!(shown.marks.iter().filter(|mark| mark.color == MISSED).count(), 1);
    }
}
