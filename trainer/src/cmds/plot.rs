//! `fovea-train plot`: the figures of the paper, and those that show what a run does.

use super::DeviceArgs;
use crate::augment::Augmentation;
use crate::config::FitConfig;
use crate::data::{Folder, class_by_category};
use crate::evaluate::{Found, detect_all};
use crate::figure::{self, Area, Axis, COLORS, Line};
use crate::fit::{Resources, recipe};
use crate::loss::{ClsLoss, Focal};
use crate::model::{Mode, Model};
use crate::peers::Peers;
use crate::request::Request;
use crate::run_dir::RunDir;
use crate::spec::ModelSpec;
use crate::targets;
use crate::weights;
use anyhow::{Context, Result};
use fovea::detection::{BBox, Detection};
use fovea::eval::ClassOutcomes;
use plotters::prelude::*;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// Arguments of `fovea-train plot`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  fovea-train plot losses --out losses.png
  fovea-train plot detections --run runs/first --data mydata/val --out figures")]
pub(crate) struct Args {
    #[command(subcommand)]
    figure: Figure,
}

/// What can be drawn.
#[derive(Debug, clap::Subcommand)]
enum Figure {
    /// Loss against p_t (the paper's Figure 1).
    #[command(after_help = "Example:
  fovea-train plot losses --loss focal:gamma=2,alpha=0.25 --loss cross_entropy --out losses.png")]
    Losses {
        /// Losses, as `fit --loss` has them. [default: focal, gamma 0, 0.5, 1, 2, 5]
        #[arg(long)]
        loss: Vec<ClsLoss>,
        /// PNG to write.
        #[arg(long)]
        out: PathBuf,
    },
    /// How the loss is spread over the anchors on objects and over the background, by gamma (the paper's Figure 4).
    #[command(after_help = "Example:
  fovea-train plot distribution --run runs/first --data mydata/val --out distribution.png")]
    Distribution {
        /// Folder of a run.
        #[arg(long)]
        run: PathBuf,
        /// Labelled data.
        #[arg(long)]
        data: PathBuf,
        /// Pictures.
        #[arg(long, default_value_t = 192)]
        pictures: usize,
        /// PNG to write; the table goes to stdout.
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        device: DeviceArgs,
    },
    /// Precision and recall by class, scores, sizes, and what is taken for what.
    #[command(after_help = "Example:
  fovea-train plot detections --run runs/first --data mydata/val --out figures")]
    Detections {
        /// Folder of a run.
        #[arg(long)]
        run: PathBuf,
        /// Labelled data.
        #[arg(long)]
        data: PathBuf,
        /// Only the first pictures.
        #[arg(long)]
        limit: Option<usize>,
        /// Score from which a detection counts in sizes.png and confusion.png.
        #[arg(long, default_value_t = 0.3)]
        score: f32,
        /// Folder to write precision.png, scores.png, sizes.png and confusion.png into.
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        device: DeviceArgs,
    },
    /// Speed against accuracy (the paper's Figure 2).
    #[command(after_help = "Example:
  fovea-train plot speed --point first:first.bench.json:first.eval.json --out speed.png")]
    Speed {
        /// NAME:BENCH.json:EVAL.json, of `fovea bench --model-only --json` and `fovea eval --json`.
        #[arg(long, required = true)]
        point: Vec<String>,
        /// PNG to write.
        #[arg(long)]
        out: PathBuf,
    },
}

impl Args {
    /// Draws.
    pub(crate) fn run(self) -> Result<()> {
        match self.figure {
            Figure::Losses { loss, out } => losses(&loss, &out),
            Figure::Distribution { run, data, pictures, out, device } => {
                let model = Trained::open(run, device.open()?)?;
                let z = model.logits(&data, pictures)?;
                println!("{}", shares(&z));
                draw_distribution(&z, &out)
            }
            Figure::Detections { run, data, limit, score, out, device } => {
                let model = Trained::open(run, device.open()?)?;
                std::fs::create_dir_all(&out).with_context(|| format!("cannot make the folder {}", out.display()))?;
                detections(&model, &Folder::open(&data)?, limit, score, &out)
            }
            Figure::Speed { point, out } => {
                let points: Vec<Point> = point.iter().map(|text| Point::read(text)).collect::<Result<_>>()?;
                draw_speed(&points, &out)
            }
        }
    }
}

/// A run's averaged weights.
struct Trained {
    dir: RunDir,
    spec: ModelSpec,
    model: Model,
}

impl Trained {
    fn open(run: PathBuf, device: tch::Device) -> Result<Self> {
        let dir = RunDir(run);
        let spec = ModelSpec::read(&dir.model())?;
        let mut model = Model::new(&spec, 0.01, 0, device);
        model.load(&weights::read(&dir.weights())?.weights).with_context(|| dir.weights().display().to_string())?;
        Ok(Self { dir, spec, model })
    }

    /// `z = -x_t` of every logit that has a target, ascending: on objects, and on background.
    fn logits(&self, data: &Path, pictures: usize) -> Result<[Vec<f64>; 2]> {
        let spec = &self.spec;
        // Matched as the run was; a mean of runs and an imported network have no settings.
        let own = if self.dir.config().exists() {
            FitConfig::read(&self.dir.config())?
        } else {
            FitConfig::edge(data.to_owned(), spec.clone())
        };
        let config = FitConfig {
            matching: own.matching,
            bands: own.bands,
            augment: Augmentation { flip: 0.0, ..Augmentation::FLIP_ONLY },
            repeat_below: 0.0,
            mosaic_off: 0.0,
            ..FitConfig::edge(data.to_owned(), spec.clone())
        };
        let alone = Resources { device: tch::Device::Cpu, kind: Kind::Float, workers: 1, examples: None };
        let recipe = recipe(&config, &alone, &Peers::alone())?;
        let n_pictures = pictures.min(recipe.examples.len());
        let n_batches = n_pictures.div_ceil(config.batch);
        let mut z = [Vec::new(), Vec::new()];
        for iteration in 0..n_batches {
            let batch = recipe.make(iteration);
            let shape = [config.batch as i64, spec.height as i64, spec.width as i64, 3];
            let images = Tensor::from_data_size(&batch.pixels, &shape, Kind::Uint8).to_device(self.model.device());
            let outputs = tch::no_grad(|| self.model.forward(&images, Mode::EVAL));
            let levels: Vec<Tensor> = outputs.iter().map(|level| level.cls.reshape([config.batch as i64, -1])).collect();
            let logits = Tensor::cat(&levels, 1).to_device(tch::Device::Cpu).reshape([-1]);
            // The last batch begins anew with the first pictures: these are counted already.
            let n_new = (n_pictures - iteration * config.batch).min(config.batch);
            let n_logits = batch.classes.len() / config.batch * n_new;
            for (logit, code) in Vec::<f32>::try_from(&logits)?.into_iter().map(f64::from).zip(&batch.classes).take(n_logits) {
                match *code {
                    targets::OBJECT => z[0].push(-logit),
                    targets::BACKGROUND => z[1].push(logit),
                    _ => {}
                }
            }
        }
        z.iter_mut().for_each(|z| z.sort_unstable_by(f64::total_cmp));
        Ok(z)
    }
}

const GAMMAS: [f64; 4] = [0.0, 0.5, 1.0, 2.0];

/// The focal loss of each, ascending as `z` is; alpha scales both sides and does not matter here.
fn focal_of(z: &[f64], gamma: f64) -> Vec<f64> {
    let (value, _) = ClsLoss::Focal(Focal { gamma, alpha: 0.5 }).curve(&Tensor::from_slice(z));
    Vec::try_from(&value).unwrap_or_default()
}

/// Share of the sum that the hardest part has; `losses` ascend.
fn share_of_hardest(losses: &[f64], part: f64) -> f64 {
    let n = (losses.len() as f64 * part).ceil() as usize;
    losses[losses.len() - n.min(losses.len())..].iter().sum::<f64>() / losses.iter().sum::<f64>()
}

/// Share of the sum that the easiest parts have, at 200 parts; `losses` ascend.
fn cumulative(losses: &[f64]) -> Vec<(f64, f64)> {
    const N: usize = 200;
    let total: f64 = losses.iter().sum();
    let (mut sum, mut done) = (0.0, 0);
    let mut points = vec![(0.0, 0.0)];
    for step in 1..=N {
        let until = losses.len() * step / N;
        sum += losses[done..until].iter().sum::<f64>();
        done = until;
        points.push((step as f64 / N as f64, sum / total));
    }
    points
}

/// The distribution in numbers: Markdown.
fn shares(z: &[Vec<f64>; 2]) -> String {
    let mut text = String::from(
        "| gamma | objects: hardest 20 % | background: hardest 10 % | hardest 1 % | hardest 0.1 % | background : objects |\n\
         |---|---|---|---|---|---|\n",
    );
    for gamma in GAMMAS {
        let (objects, background) = (focal_of(&z[0], gamma), focal_of(&z[1], gamma));
        let percent = |losses: &[f64], part: f64| format!("{:.0} %", 100.0 * share_of_hardest(losses, part));
        let ratio = background.iter().sum::<f64>() / objects.iter().sum::<f64>();
        text.push_str(&format!(
            "| {gamma} | {} | {} | {} | {} | {ratio:.2} |\n",
            percent(&objects, 0.2),
            percent(&background, 0.1),
            percent(&background, 0.01),
            percent(&background, 0.001)
        ));
    }
    text.push_str(&format!("\n{} logits on objects, {} on background.", z[0].len(), z[1].len()));
    text
}

fn draw_distribution(z: &[Vec<f64>; 2], out: &Path) -> Result<()> {
    figure::draw(out, (920, 400), |area| {
        for ((half, name), z) in area.split_evenly((1, 2)).iter().zip(["anchors on objects", "background"]).zip(z) {
            let curves: Vec<Line> = GAMMAS
                .iter()
                .map(|gamma| Line { name: format!("gamma {gamma}"), points: cumulative(&focal_of(z, *gamma)) })
                .collect();
            let axis = |name| Axis { name, range: 0.0..1.0 };
            let (x, y) = (axis("part of the anchors, easiest first"), axis("part of the loss"));
            figure::lines(half, name, x, y, &curves, SeriesLabelPosition::UpperLeft)?;
        }
        Ok(())
    })
}

fn losses(given: &[ClsLoss], out: &Path) -> Result<()> {
    let defaults: Vec<ClsLoss> =
        [0.0, 0.5, 1.0, 2.0, 5.0].map(|gamma| ClsLoss::Focal(Focal { gamma, ..Focal::default() })).to_vec();
    let p: Vec<f64> = (1..500).map(|n| f64::from(n) / 500.0).collect();
    let z: Vec<f64> = p.iter().map(|p| ((1.0 - p) / p).ln()).collect();
    let curves: Vec<Line> = if given.is_empty() { &defaults } else { given }
        .iter()
        .map(|loss| {
            let (value, _) = loss.curve(&Tensor::from_slice(&z));
            let values = Vec::<f64>::try_from(&value).unwrap_or_default();
            Line { name: loss.name(), points: p.iter().copied().zip(values).collect() }
        })
        .collect();
    figure::draw(out, (640, 440), |area| {
        let (x, y) = (Axis { name: "p_t", range: 0.0..1.0 }, Axis { name: "loss", range: 0.0..5.0 });
        figure::lines(area, "Loss against the probability of the truth", x, y, &curves, SeriesLabelPosition::UpperRight)
    })
}

/// A box of a picture.
#[derive(Debug, Clone, Copy)]
struct Truth {
    class: usize,
    bbox: BBox,
    is_crowd: bool,
}

/// A picture, its boxes, and what was found.
struct Judged {
    truths: Vec<Truth>,
    /// By falling score.
    found: Vec<Detection>,
    /// For each class whether every instance is boxed.
    is_known: Vec<bool>,
}

/// Which box each detection is on: the free one that it overlaps most, of whatever class, from `IoU` 0.5 up.
fn matches(picture: &Judged) -> Vec<Option<usize>> {
    let mut is_free: Vec<bool> = picture.truths.iter().map(|truth| !truth.is_crowd).collect();
    let on = |detection: &Detection, is_free: &[bool]| {
        let overlaps = picture.truths.iter().enumerate().filter(|(idx, _)| is_free[*idx]);
        let overlaps = overlaps.map(|(idx, truth)| (idx, truth.bbox.iou(&detection.bbox))).filter(|(_, iou)| *iou >= 0.5);
        overlaps.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(idx, _)| idx)
    };
    let mut matched = Vec::with_capacity(picture.found.len());
    for detection in &picture.found {
        let truth = on(detection, &is_free);
        if let Some(truth) = truth {
            is_free[truth] = false;
        }
        matched.push(truth);
    }
    matched
}

/// Rows: what is there; columns: what is found; the last of each is background. As in the metrics, an object counts where its
/// class is completely labelled, and so does a detection on background, but within a crowd.
fn confusion(pictures: &[Judged], n_classes: usize) -> Vec<Vec<usize>> {
    let mut table = vec![vec![0; n_classes + 1]; n_classes + 1];
    for picture in pictures {
        let mut is_missed: Vec<bool> = picture.truths.iter().map(|truth| !truth.is_crowd).collect();
        for (detection, truth) in picture.found.iter().zip(matches(picture)) {
            let class = detection.class_id.index();
            let in_crowd =
                |truth: &Truth| truth.is_crowd && truth.bbox.intersection(&detection.bbox) >= 0.5 * detection.bbox.area();
            if let Some(truth) = truth {
                is_missed[truth] = false;
                if picture.is_known[picture.truths[truth].class] {
                    table[picture.truths[truth].class][class] += 1;
                }
            } else if picture.is_known[class] && !picture.truths.iter().any(in_crowd) {
                table[n_classes][class] += 1;
            }
        }
        for (truth, _) in picture.truths.iter().zip(is_missed).filter(|(_, is_missed)| *is_missed) {
            if picture.is_known[truth.class] {
                table[truth.class][n_classes] += 1;
            }
        }
    }
    table
}

fn judged(folder: &Folder, spec: &ModelSpec, found: Found, score: f32) -> Vec<Judged> {
    let class_of = class_by_category(&folder.coco, &spec.classes);
    let mut truths: std::collections::HashMap<u64, Vec<Truth>> = std::collections::HashMap::new();
    for annotation in &folder.coco.annotations {
        let Some(&class) = class_of.get(&annotation.category_id) else { continue };
        let Some(is_crowd) = annotation.is_ignored() else { continue };
        let [x, y, w, h] = annotation.bbox.map(|v| v as f32);
        let truth = Truth { class, bbox: BBox::new(x, y, x + w, y + h), is_crowd };
        truths.entry(annotation.image_id).or_default().push(truth);
    }
    found
        .into_iter()
        .map(|(image, mut found)| {
            found.retain(|detection| detection.score > score);
            found.sort_by(|a, b| b.score.total_cmp(&a.score));
            let mut is_known = vec![false; spec.classes.len()];
            class_of.iter().for_each(|(&category, &class)| is_known[class] = image.is_exhaustive(category));
            Judged { truths: truths.remove(&image.id).unwrap_or_default(), found, is_known }
        })
        .collect()
}

fn detections(model: &Trained, folder: &Folder, limit: Option<usize>, score: f32, out: &Path) -> Result<()> {
    let (evaluator, found) = detect_all(&model.model, &model.spec, folder, limit)?;
    let outcomes = evaluator.outcomes();
    let names: Vec<String> = evaluator.categories().iter().map(|category| category.1.clone()).collect();
    draw_precision(&names, &outcomes, &out.join("precision.png"))?;
    draw_scores(&outcomes, &out.join("scores.png"))?;
    let pictures = judged(folder, &model.spec, found, score);
    draw_sizes(&pictures, score, &out.join("sizes.png"))?;
    draw_confusion(&confusion(&pictures, model.spec.classes.len()), &model.spec.classes, score, &out.join("confusion.png"))
}

/// Recall and precision after each detection, thinned to what a figure shows.
fn precision_recall(outcomes: &ClassOutcomes) -> Vec<(f64, f64)> {
    let mut n_true = 0;
    let all: Vec<(f64, f64)> = outcomes
        .detections
        .iter()
        .enumerate()
        .map(|(idx, (_, is_true))| {
            n_true += usize::from(*is_true);
            (f64::from(n_true as u32) / outcomes.boxes.max(1) as f64, n_true as f64 / (idx + 1) as f64)
        })
        .collect();
    let step = all.len() / 300 + 1;
    all.into_iter().step_by(step).collect()
}

fn draw_precision(names: &[String], outcomes: &[ClassOutcomes], out: &Path) -> Result<()> {
    let curves: Vec<Line> = names
        .iter()
        .zip(outcomes)
        .filter(|(_, outcomes)| outcomes.boxes > 0)
        .map(|(name, outcomes)| Line { name: name.clone(), points: precision_recall(outcomes) })
        .collect();
    figure::draw(out, (720, 520), |area| {
        let axis = |name| Axis { name, range: 0.0..1.0 };
        let (x, y) = (axis("recall"), axis("precision"));
        figure::lines(area, "Precision and recall at IoU 0.5", x, y, &curves, SeriesLabelPosition::LowerLeft)
    })
}

/// Corners of the steps of a histogram: counts over equal bins of `0..n`.
fn steps(counts: &[usize]) -> Vec<(f64, f64)> {
    let corner = |(bin, &count): (usize, &usize)| {
        let height = (1.0 + count as f64).log10();
        [(bin as f64, height), ((bin + 1) as f64, height)]
    };
    counts.iter().enumerate().flat_map(corner).collect()
}

fn draw_scores(outcomes: &[ClassOutcomes], out: &Path) -> Result<()> {
    const BINS: usize = 20;
    let mut counts = [[0; BINS]; 2];
    for (score, is_true) in outcomes.iter().flat_map(|class| &class.detections) {
        counts[usize::from(!is_true)][((score * BINS as f64) as usize).min(BINS - 1)] += 1;
    }
    let line = |name: &str, counts: &[usize]| Line {
        name: name.into(),
        points: steps(counts).into_iter().map(|(x, y)| (x / BINS as f64, y)).collect(),
    };
    let highest = counts.iter().flatten().fold(10, |highest, &count| highest.max(count));
    figure::draw(out, (640, 420), |area| {
        let x = Axis { name: "score", range: 0.0..1.0 };
        let y = Axis { name: "log10 (1 + detections)", range: 0.0..(1.0 + highest as f64).log10() * 1.1 };
        let both = [line("true at IoU 0.5", &counts[0]), line("false", &counts[1])];
        figure::lines(area, "Scores of true and false detections", x, y, &both, SeriesLabelPosition::UpperRight)
    })
}

fn draw_sizes(pictures: &[Judged], score: f32, out: &Path) -> Result<()> {
    // Half octaves from 4 to 512 pixels.
    const BINS: usize = 14;
    let bin = |bbox: &BBox| ((bbox.area().max(1.0).sqrt() / 4.0).log2() * 2.0).clamp(0.0, (BINS - 1) as f32) as usize;
    let mut counts = [[0; BINS]; 2];
    for picture in pictures {
        let mut is_found = vec![false; picture.truths.len()];
        for (detection, truth) in picture.found.iter().zip(matches(picture)) {
            if let Some(truth) = truth {
                is_found[truth] = picture.truths[truth].class == detection.class_id.index();
            }
        }
        for (truth, is_found) in picture.truths.iter().zip(is_found).filter(|(truth, _)| !truth.is_crowd) {
            counts[0][bin(&truth.bbox)] += 1;
            counts[1][bin(&truth.bbox)] += usize::from(is_found);
        }
    }
    let octaves = |counts: &[usize]| steps(counts).into_iter().map(|(x, y)| (2.0 + x / 2.0, y)).collect();
    let curves = [
        Line { name: "boxes".into(), points: octaves(&counts[0]) },
        Line { name: format!("found from score {score}"), points: octaves(&counts[1]) },
    ];
    let highest = counts.iter().flatten().fold(10, |highest, &count| highest.max(count));
    figure::draw(out, (640, 420), |area| {
        let x = Axis { name: "log2 of the side in pixels, the root of the area", range: 2.0..9.0 };
        let y = Axis { name: "log10 (1 + boxes)", range: 0.0..(1.0 + highest as f64).log10() * 1.1 };
        figure::lines(area, "Sizes of boxes, and what of them is found", x, y, &curves, SeriesLabelPosition::UpperRight)
    })
}

fn draw_confusion(table: &[Vec<usize>], classes: &[String], score: f32, out: &Path) -> Result<()> {
    const CELL: i32 = 46;
    const LEFT: i32 = 110;
    const TOP: i32 = 84;
    let n = table.len() as i32;
    let names: Vec<&str> = classes.iter().map(String::as_str).chain(["background"]).collect();
    let size = ((LEFT + CELL * n + 16) as u32, (TOP + CELL * n + 16) as u32);
    figure::draw(out, size, |area| {
        figure::text(area, &format!("What is there (rows) and what is found (columns), from score {score}"), (12, 18), 15)?;
        for ((row, counts), name) in table.iter().enumerate().zip(&names) {
            let total = counts.iter().sum::<usize>().max(1) as f64;
            let y = TOP + CELL * row as i32;
            figure::text(area, name, (12, y + CELL / 2), 13)?;
            for (column, &count) in counts.iter().enumerate() {
                let x = LEFT + CELL * column as i32;
                if row == 0 {
                    // Every second name a line higher, so that none runs into the next.
                    figure::text(area, names[column], (x, TOP - 14 - 18 * (column as i32 % 2)), 11)?;
                }
                let share = count as f64 / total;
                let cell = [(x, y), (x + CELL - 2, y + CELL - 2)];
                area.draw(&Rectangle::new(cell, COLORS[0].mix(share).filled()))?;
                let color = if share > 0.6 { WHITE } else { BLACK };
                let style = ("sans-serif", 12).into_font().color(&color);
                if count > 0 {
                    area.draw(&Text::new(count.to_string(), (x + 8, y + CELL / 2 - 6), style))?;
                }
            }
        }
        Ok(())
    })
}

/// A model's speed (least CPU time: what other programs on the machine do hardly changes it) and accuracy.
#[derive(Debug, PartialEq)]
struct Point {
    name: String,
    ms: f64,
    ap50: f64,
}

impl Point {
    fn read(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let [name, bench, eval] = parts[..] else {
            return Err(Request(format!("--point {text}: expected NAME:BENCH.json:EVAL.json")).into());
        };
        let number = |path: &str, pointer: &str| -> Result<f64> {
            let json = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
            let json: serde_json::Value = serde_json::from_str(&json).with_context(|| path.to_owned())?;
            json.pointer(pointer).and_then(serde_json::Value::as_f64).with_context(|| format!("{path} has no number {pointer}"))
        };
        Ok(Self { name: name.into(), ms: number(bench, "/cpu_ms_min")?, ap50: number(eval, "/ap50")? })
    }
}

fn draw_speed(points: &[Point], out: &Path) -> Result<()> {
    let slowest = points.iter().map(|point| point.ms).fold(0.0, f64::max);
    let range = |of: fn(&Point) -> f64| {
        let low = points.iter().map(of).fold(f64::INFINITY, f64::min);
        (low, points.iter().map(of).fold(0.0, f64::max))
    };
    let (low, high) = range(|point| 100.0 * point.ap50);
    figure::draw(out, (640, 440), |area: &Area<'_>| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .caption("Speed and accuracy", ("sans-serif", 17))
            .set_label_area_size(LabelAreaPosition::Left, 52)
            .set_label_area_size(LabelAreaPosition::Bottom, 40)
            .build_cartesian_2d(0.0..slowest * 1.35, (low - 5.0).max(0.0)..(high + 3.0).min(100.0))?;
        chart.configure_mesh().light_line_style(WHITE).x_desc("ms of CPU for one picture").y_desc("AP50").draw()?;
        for (idx, point) in points.iter().enumerate() {
            let at = (point.ms, 100.0 * point.ap50);
            let color = COLORS[idx % COLORS.len()];
            chart.draw_series([Circle::new(at, 5, color.filled())])?;
            let label = EmptyElement::at(at) + Text::new(point.name.clone(), (9, -7), ("sans-serif", 13));
            chart.draw_series([label])?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea::detection::ClassId;

    #[test]
    fn shares_of_a_sum() {
        let losses: Vec<f64> = [vec![0.0; 990], vec![1.0; 10]].concat();
        assert_eq!((share_of_hardest(&losses, 0.01), share_of_hardest(&losses, 0.005)), (1.0, 0.5));
        let curve = cumulative(&losses);
        assert_eq!((curve[0], curve[198], curve[199], curve[200]), ((0.0, 0.0), (0.99, 0.0), (0.995, 0.5), (1.0, 1.0)));
    }

    #[test]
    fn gamma_concentrates_the_loss() {
        let z: Vec<f64> = (0..1000).map(|n| f64::from(n) / 100.0 - 8.0).collect();
        let shares = GAMMAS.map(|gamma| share_of_hardest(&focal_of(&z, gamma), 0.1));
        assert!(shares.windows(2).all(|pair| pair[0] < pair[1]), "{shares:?}");
    }

    /// A hit, a wrong class, a miss, a detection on background, one in a crowd; a miss and a detection of a class that is not
    /// completely labelled.
    #[test]
    fn what_is_taken_for_what() {
        let square = |x: f32| BBox::new(x, 0.0, x + 10.0, 10.0);
        let truth = |x: f32, class: usize, is_crowd: bool| Truth { class, bbox: square(x), is_crowd };
        let found = |x: f32, class: u16, score: f32| Detection { bbox: square(x), class_id: ClassId(class), score };
        let picture = Judged {
            truths: vec![
                truth(0.0, 0, false),
                truth(20.0, 1, false),
                truth(40.0, 1, false),
                truth(60.0, 0, true),
                truth(100.0, 2, false),
            ],
            found: vec![found(0.0, 0, 0.9), found(21.0, 0, 0.8), found(1.0, 0, 0.7), found(60.0, 0, 0.6), found(80.0, 2, 0.5)],
            is_known: vec![true, true, false],
        };
        assert_eq!(confusion(&[picture], 3), [[1, 0, 0, 0], [1, 0, 0, 1], [0; 4], [1, 0, 0, 0]]);
    }

    #[test]
    fn precision_and_recall_of_known_outcomes() {
        let outcomes = ClassOutcomes { detections: vec![(0.9, true), (0.8, false), (0.7, true)], boxes: 4 };
        assert_eq!(precision_recall(&outcomes), [(0.25, 1.0), (0.25, 0.5), (0.5, 2.0 / 3.0)]);
    }
}
