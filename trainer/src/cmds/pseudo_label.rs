//! `fovea-train pseudo-label`.
//!
//! Every picture goes through every teacher, as it is and mirrored; the boxes of all views are fused. What is found is
//! kept in a journal beside the output, a line a picture, so that a run that was stopped goes on where it was.

use crate::data::progress;
use crate::files::{list_pictures, write_atomic};
use crate::fusion::{Found, fuse};
use crate::request::Request;
use anyhow::{Context, Result, anyhow, bail};
use fovea::detection::{BBox, Detection};
use fovea::eval::{CocoDataset, CocoImage, IGNORE_FROM, OBJECT_FROM};
use fovea::images::{self, RgbPicture};
use fovea::pipeline::detector::{Detector, DetectorOptions, hex, read_network};
use fovea::pipeline::ports::Detect;
use fovea::postprocess::PostprocessOptions;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// Score from which a view's box takes part in the fusion.
const VIEW_THRESHOLD: f32 = 0.05;
/// `IoU` with a drawn box of the same class from which a found box is that object.
const SAME_CLASS_IOU: f32 = 0.5;
/// The same for a drawn box of another class: what a person has named is not something else as well.
const OTHER_CLASS_IOU: f32 = 0.75;

/// Arguments of `fovea-train pseudo-label`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  fovea-train pseudo-label --teacher models/street --images mydata/train/images \\
    --annotations mydata/train/annotations.json --out mydata/train/pseudo.json
  fovea-train fit --data mydata/train --pseudo mydata/train/pseudo.json --out runs/first

  fovea-train pseudo-label --teacher models/street --images unlabelled/images --out unlabelled/annotations.json
  fovea-train fit --data unlabelled --out runs/second

With --annotations, only classes that a picture's own labels leave out are labelled (`exhaustive_category_ids`). Stopped \
and started again, the command goes on where it was.")]
pub(crate) struct Args {
    /// Model folder of a teacher; give it again for a second one.
    #[arg(long = "teacher", required = true)]
    teachers: Vec<PathBuf>,
    /// Folder of pictures.
    #[arg(long)]
    images: PathBuf,
    /// COCO annotations of these pictures, to be completed. [default: none; every picture of the folder is labelled]
    #[arg(long)]
    annotations: Option<PathBuf>,
    /// File to write: COCO annotations with `score`.
    #[arg(long)]
    out: PathBuf,
    /// Lowest score of a label.
    #[arg(long, default_value_t = IGNORE_FROM as f32)]
    keep_from: f32,
    /// Pictures at a time. [default: as many as there are processors]
    #[arg(long)]
    threads: Option<usize>,
}

/// What was found in one picture: a line of the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    file: String,
    size: (u32, u32),
    /// Class, score, edges.
    found: Vec<(usize, f32, [f32; 4])>,
    /// Why the picture cannot be read.
    error: Option<String>,
}

/// A teacher with its classes' places among those of all teachers.
struct Teacher {
    detector: Detector,
    class_of: Vec<usize>,
}

impl Args {
    /// Labels.
    pub(crate) fn run(self) -> Result<()> {
        if !(0.0..1.0).contains(&self.keep_from) {
            return Err(Request(format!("--keep-from {}: expected 0 up to, not including, 1", self.keep_from)).into());
        }
        self.keep_labels()?;
        let mut classes: Vec<String> = Vec::new();
        let mut n_views: Vec<usize> = Vec::new();
        let mut digests = Vec::new();
        for dir in &self.teachers {
            let (manifest, _, bytes) = read_network(dir)?;
            digests.push(json!({"name": manifest.name, "sha256": hex(&Sha256::digest(&bytes))}));
            for name in manifest.classes {
                let class = classes.iter().position(|class| *class == name).unwrap_or_else(|| {
                    classes.push(name);
                    n_views.push(0);
                    classes.len() - 1
                });
                n_views[class] += 2;
            }
        }
        let own = self.annotations.as_deref().map(read_own).transpose()?;
        let targets = Targets::new(own, &classes);
        let names = match &targets.own {
            Some(own) => {
                let is_partial = |image: &&CocoImage| !(0..classes.len()).all(|class| targets.is_known(image, class));
                own.images.iter().filter(is_partial).map(|image| image.file_name.clone()).collect()
            }
            None => list_pictures(&self.images)?,
        };
        if names.is_empty() {
            return Err(Request(format!("{}: there is nothing to label", self.images.display())).into());
        }
        let mut digest = Sha256::new();
        names.iter().for_each(|name| digest.update(format!("{name}\n")));
        let info = json!({
            "teachers": digests,
            "views": "each picture as it is and mirrored",
            "fusion": "weighted boxes fusion (arXiv 1910.13302) at IoU 0.55",
            "keep_from": rounded(self.keep_from, 4),
            "pictures_sha256": hex(&digest.finalize()),
        });
        let (journal, mut lines) = Journal::open(&self.out, &info)?;
        let missing: Vec<String> = names.iter().filter(|name| !lines.contains_key(*name)).cloned().collect();
        if !lines.is_empty() {
            say!("going on: {} of {} pictures are labelled", lines.len(), names.len());
        }
        self.find(&missing, &classes, &n_views, |line| {
            journal.append(&line)?;
            lines.insert(line.file.clone(), line);
            Ok(())
        })?;
        let lines: Vec<&Line> = names.iter().filter_map(|name| lines.get(name)).collect();
        if let Some(error) = lines.iter().find_map(|line| line.error.as_ref())
            && lines.iter().all(|line| line.error.is_some())
        {
            // A file without pictures would say of all of them that nothing is there.
            bail!("{}: none of {} pictures can be read ({error}); check --images", self.images.display(), lines.len());
        }
        write_atomic(&self.out, serde_json::to_string(&targets.labels(&lines, info))?.as_bytes())?;
        std::fs::remove_file(&journal.path).ok();
        targets.report(&lines);
        Ok(())
    }

    /// Refuses to replace labels that it did not make.
    fn keep_labels(&self) -> Result<()> {
        let real = |path: &Path| path.canonicalize().ok();
        if let Some(annotations) = &self.annotations
            && real(annotations).is_some_and(|annotations| real(&self.out) == Some(annotations))
        {
            let out = self.out.display();
            return Err(
                Request(format!("--out {out} is --annotations too, whose labels it would replace; name another file")).into()
            );
        }
        let Ok(text) = std::fs::read_to_string(&self.out) else { return Ok(()) };
        let before: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        if before["info"]["teachers"].is_null() {
            let out = self.out.display();
            return Err(Request(format!("--out {out} is there and was not made by this command; name another file")).into());
        }
        Ok(())
    }

    /// Runs the teachers over all pictures, on several threads; `take` gets what each picture gives.
    fn find(
        &self,
        names: &[String],
        classes: &[String],
        n_views: &[usize],
        mut take: impl FnMut(Line) -> Result<()>,
    ) -> Result<()> {
        let threads = self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let next = AtomicUsize::new(0);
        let bar = progress(names.len(), "labelling");
        let (send, receive) = mpsc::sync_channel(16);
        let work = |send: &mpsc::SyncSender<Result<Line>>| -> Result<()> {
            let mut teachers: Vec<Teacher> =
                self.teachers.iter().map(|dir| Teacher::open(dir, classes)).collect::<Result<_>>()?;
            // Relaxed: the counter hands out numbers and nothing else.
            while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                let line = match images::open(&self.images.join(name)) {
                    Ok(picture) => Line {
                        file: name.clone(),
                        size: (picture.width as u32, picture.height as u32),
                        found: self.label(&mut teachers, picture, n_views).with_context(|| name.clone())?,
                        error: None,
                    },
                    Err(error) => Line { file: name.clone(), size: (0, 0), found: Vec::new(), error: Some(error.to_string()) },
                };
                // The receiver is gone: it has failed.
                if send.send(Ok(line)).is_err() {
                    break;
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, names.len().max(1)) {
                let send = send.clone();
                scope.spawn(move || {
                    if let Err(error) = work(&send) {
                        send.send(Err(error)).ok();
                    }
                });
            }
            drop(send);
            for line in receive {
                take(line?)?;
                bar.inc(1);
            }
            bar.finish_and_clear();
            Ok(())
        })
    }

    /// Fused boxes of all views of a picture.
    fn label(&self, teachers: &mut [Teacher], mut picture: RgbPicture, n_views: &[usize]) -> Result<Vec<(usize, f32, [f32; 4])>> {
        let mut found = Vec::new();
        let mut detections: Vec<Detection> = Vec::new();
        for is_mirrored in [false, true] {
            if is_mirrored {
                mirror(&mut picture);
            }
            let width = picture.width as f32;
            for teacher in teachers.iter_mut() {
                teacher.detector.detect(&picture.as_picture(), &mut detections)?;
                found.extend(detections.iter().map(|detection| {
                    let BBox { x1, y1, x2, y2 } = detection.bbox;
                    let bbox = if is_mirrored { BBox::new(width - x2, y1, width - x1, y2) } else { detection.bbox };
                    Found { class: teacher.class_of[detection.class_id.index()], score: detection.score, bbox }
                }));
            }
        }
        fuse(&mut found, |class| n_views[class]);
        found.retain(|one| one.score >= self.keep_from);
        Ok(found.iter().map(|one| (one.class, one.score, one.bbox.to_array())).collect())
    }
}

impl Teacher {
    fn open(dir: &Path, classes: &[String]) -> Result<Self> {
        // All that it can see, whatever its manifest wants to be shown: what is not found counts as not there.
        let postprocess = PostprocessOptions {
            score_threshold: Some(VIEW_THRESHOLD),
            classes: read_network(dir)?.0.classes,
            min_box_size: Some(0.0),
            ..PostprocessOptions::default()
        };
        let detector =
            Detector::open(dir, &DetectorOptions { threads: 1, postprocess, allow_float: true, ..DetectorOptions::default() })?;
        let class_of = |name: &String| classes.iter().position(|class| class == name);
        let class_of = detector.labels().iter().filter_map(class_of).collect();
        Ok(Self { detector, class_of })
    }
}

fn mirror(picture: &mut RgbPicture) {
    for row in picture.data.chunks_exact_mut(3 * picture.width) {
        row.as_chunks_mut::<3>().0.reverse();
    }
}

/// Lines of pictures that are done, in a file beside the output; its first line tells which run it belongs to.
struct Journal {
    path: PathBuf,
}

impl Journal {
    fn open(out: &Path, info: &serde_json::Value) -> Result<(Self, HashMap<String, Line>)> {
        let path = out.with_extension("journal");
        let head = info.to_string();
        let mut lines = HashMap::new();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(anyhow!(error).context(format!("cannot read {}", path.display()))),
        };
        if let Some((found, rest)) = text.split_once('\n') {
            if found != head {
                return Err(Request(format!(
                    "{} belongs to a run with other teachers, pictures or --keep-from; remove it, or use another --out",
                    path.display()
                ))
                .into());
            }
            // A line that was cut is a picture that is not done.
            lines.extend(rest.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()).map(|l| (l.file.clone(), l)));
        }
        let mut kept = head + "\n";
        for line in lines.values() {
            kept.push_str(&serde_json::to_string(line)?);
            kept.push('\n');
        }
        write_atomic(&path, kept.as_bytes())?;
        Ok((Self { path }, lines))
    }

    fn append(&self, line: &Line) -> Result<()> {
        let text = serde_json::to_string(line)? + "\n";
        let written = OpenOptions::new().append(true).open(&self.path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn read_own(path: &Path) -> Result<CocoDataset> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    CocoDataset::parse(&text).with_context(|| path.display().to_string())
}

/// What there is to complete.
struct Targets {
    own: Option<CocoDataset>,
    /// Names by class.
    classes: Vec<String>,
    /// Category ids by class: those of the annotations, else free ones.
    ids: Vec<u32>,
}

impl Targets {
    fn new(own: Option<CocoDataset>, classes: &[String]) -> Self {
        let categories = own.as_ref().map_or(&[][..], |own| &own.categories);
        let mut free = categories.iter().map(|category| category.id).max().unwrap_or(0);
        let mut id_of = |name: &String| {
            let there = categories.iter().find(|category| category.name == *name).map(|category| category.id);
            there.unwrap_or_else(|| {
                free += 1;
                free
            })
        };
        let ids = classes.iter().map(&mut id_of).collect();
        Self { own, classes: classes.to_vec(), ids }
    }

    /// Whether every object of the class is labelled in the picture.
    fn is_known(&self, image: &CocoImage, class: usize) -> bool {
        let has_class = |own: &CocoDataset| own.categories.iter().any(|category| category.id == self.ids[class]);
        self.own.as_ref().is_some_and(has_class) && image.is_exhaustive(self.ids[class])
    }

    /// The annotations file.
    fn labels(&self, lines: &[&Line], info: serde_json::Value) -> serde_json::Value {
        // Those that a teacher knows and no others: what is completed is what `fit --pseudo` takes as known.
        let categories: Vec<_> = self.ids.iter().zip(&self.classes).map(|(id, name)| json!({"id": id, "name": name})).collect();
        let mut image_list = Vec::new();
        let mut annotations = Vec::new();
        let mut drawn: HashMap<u64, Vec<(u32, BBox)>> = HashMap::new();
        let mut image_of: HashMap<&str, &CocoImage> = HashMap::new();
        if let Some(own) = &self.own {
            image_of.extend(own.images.iter().map(|image| (image.file_name.as_str(), image)));
            for annotation in &own.annotations {
                let [x, y, w, h] = annotation.bbox.map(|v| v as f32);
                let bbox = BBox::new(x, y, x + w, y + h);
                drawn.entry(annotation.image_id).or_default().push((annotation.category_id, bbox));
            }
        }
        for (line, number) in lines.iter().zip(1_u64..).filter(|(line, _)| line.error.is_none()) {
            let image = image_of.get(line.file.as_str());
            let image_id = image.map_or(number, |image| image.id);
            // Those that were looked at: `fit --pseudo` takes no others for completed.
            let (width, height) = line.size;
            image_list.push(json!({"id": image_id, "file_name": line.file, "width": width, "height": height}));
            for &(class, score, [x1, y1, x2, y2]) in &line.found {
                let (id, bbox) = (self.ids[class], BBox::new(x1, y1, x2, y2));
                let is_known = image.is_some_and(|image| self.is_known(image, class));
                let is_drawn = drawn.get(&image_id).is_some_and(|drawn| {
                    let limit = |other: u32| if other == id { SAME_CLASS_IOU } else { OTHER_CLASS_IOU };
                    drawn.iter().any(|(other, drawn)| drawn.iou(&bbox) > limit(*other))
                });
                if !is_known && !is_drawn {
                    let [x, y, w, h] = [x1, y1, x2 - x1, y2 - y1].map(|v| rounded(v, 2));
                    annotations.push(json!({
                        "id": annotations.len() + 1, "image_id": image_id, "category_id": id, "bbox": [x, y, w, h],
                        "area": rounded(bbox.area(), 1), "iscrowd": 0, "score": rounded(score, 4), "pseudo": 1,
                    }));
                }
            }
        }
        json!({"info": info, "images": image_list, "categories": categories, "annotations": annotations})
    }

    fn report(&self, lines: &[&Line]) {
        let mut counts: BTreeMap<usize, [usize; 2]> = BTreeMap::new();
        for (class, score, _) in lines.iter().flat_map(|line| &line.found) {
            counts.entry(*class).or_default()[usize::from(rounded(*score, 4) >= OBJECT_FROM)] += 1;
        }
        println!(
            "{:<16} {:>10} {:>10}   (found in {} pictures, drawn ones among them)",
            "class",
            "from 0.45",
            "below",
            lines.len()
        );
        for (class, [below, above]) in counts {
            println!("{:<16} {above:>10} {below:>10}", self.classes[class]);
        }
        let broken: Vec<&String> = lines.iter().filter_map(|line| line.error.as_ref()).collect();
        for error in broken.iter().take(20) {
            say!("warning: {error}");
        }
        if !broken.is_empty() {
            say!("warning: {} pictures have no labels, as they cannot be read", broken.len());
        }
    }
}

/// A number with few digits, as a person would write it.
fn rounded(value: f32, digits: i32) -> f64 {
    let unit = 10_f64.powi(digits);
    (f64::from(value) * unit).round() / unit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(file: &str, found: &[(usize, f32, [f32; 4])]) -> Line {
        Line { file: file.into(), size: (90, 60), found: found.to_vec(), error: None }
    }

    #[test]
    fn only_what_the_own_labels_leave_out_is_labelled() {
        let own = json!({
            "images": [
                {"id": 7, "file_name": "a.png", "width": 90, "height": 60, "exhaustive_category_ids": [3]},
                {"id": 8, "file_name": "b.png", "width": 90, "height": 60},
            ],
            "categories": [{"id": 3, "name": "car"}, {"id": 9, "name": "bus"}, {"id": 2, "name": "tram"}],
            "annotations": [
                {"image_id": 7, "category_id": 3, "bbox": [0, 0, 40, 40]},
                {"image_id": 7, "category_id": 9, "bbox": [50, 0, 40, 40]},
            ],
        });
        let own = CocoDataset::parse(&own.to_string()).unwrap();
        let targets = Targets::new(Some(own), &["bus".into(), "car".into(), "dog".into()]);
        assert_eq!(targets.ids, [9, 3, 10]);
        let lines = [
            line(
                "a.png",
                &[
                    (1, 0.9, [60.0, 40.0, 80.0, 60.0]), // cars are complete
                    (0, 0.8, [1.0, 0.0, 40.0, 40.0]),   // a drawn car
                    (0, 0.7, [50.0, 0.0, 90.0, 30.0]),  // a drawn bus
                    (0, 0.6, [10.0, 40.0, 50.0, 60.0]),
                    (2, 0.25, [55.0, 5.0, 70.0, 20.0]),
                ],
            ),
            line("b.png", &[(0, 0.9, [0.0, 0.0, 30.0, 30.0]), (2, 0.5, [0.0, 0.0, 9.0, 9.0])]),
        ];
        let labels = targets.labels(&[&lines[0], &lines[1]], json!({}));
        let got: Vec<(u64, u64)> = labels["annotations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| (a["image_id"].as_u64().unwrap(), a["category_id"].as_u64().unwrap()))
            .collect();
        assert_eq!(got, [(7, 9), (7, 10), (8, 10)]);
        assert_eq!(labels["annotations"][1]["score"], 0.25);
        assert_eq!(labels["images"][1]["file_name"], "b.png");
        // No teacher knows trams: they are not completed.
        let named: Vec<&str> = labels["categories"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(named, ["bus", "car", "dog"]);
    }

    #[test]
    fn pictures_without_labels_become_a_data_set() {
        let targets = Targets::new(None, &["car".into()]);
        let mut broken = line("b.png", &[]);
        broken.error = Some("no picture".into());
        let lines = [line("a.png", &[(0, 0.5, [1.0, 2.0, 11.0, 22.0])]), broken, line("c.png", &[])];
        let labels = targets.labels(&lines.iter().collect::<Vec<_>>(), json!({})).to_string();
        let coco = CocoDataset::parse(&labels).unwrap();
        let names: Vec<&str> = coco.images.iter().map(|image| image.file_name.as_str()).collect();
        assert_eq!(names, ["a.png", "c.png"]);
        assert_eq!((coco.annotations[0].bbox, coco.annotations[0].score), ([1.0, 2.0, 10.0, 20.0], Some(0.5)));
    }

    #[test]
    fn a_journal_goes_on_after_a_cut() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("pseudo.json");
        let info = json!({"keep_from": 0.2});
        let (journal, lines) = Journal::open(&out, &info).unwrap();
        assert!(lines.is_empty());
        journal.append(&line("a.png", &[(0, 0.5, [1.0, 2.0, 3.0, 4.0])])).unwrap();
        journal.append(&line("b.png", &[])).unwrap();
        let text = std::fs::read_to_string(&journal.path).unwrap();
        std::fs::write(&journal.path, &text[..text.len() - 9]).unwrap();
        let (journal, lines) = Journal::open(&out, &info).unwrap();
        assert_eq!(lines.keys().collect::<Vec<_>>(), ["a.png"]);
        journal.append(&line("b.png", &[])).unwrap();
        assert_eq!(Journal::open(&out, &info).unwrap().1.len(), 2);
        assert!(Journal::open(&out, &json!({"keep_from": 0.3})).is_err());
    }
}
