//! `fovea-train ablate`: variants of one recipe on one data set under one budget, as the paper's Table 1 has them.
//!
//! A table is a TOML file of variants; a variant is what it changes in `fit.toml`. Each variant and seed is a run folder,
//! so a run that is there is not done again: the same command goes on where it stopped. Variants of several tables that
//! have one name and one meaning share their runs.

use super::fit::{Machine, Settings, stop_on_interrupt};
use crate::config::FitConfig;
use crate::curve::last_speed;
use crate::data::{self, Folder};
use crate::evaluate::evaluate;
use crate::figure;
use crate::files::write_atomic;
use crate::fit::{Control, Diverged, Outcome, Resources, fit};
use crate::model::{Mode, Model};
use crate::peers::Peers;
use crate::request::Request;
use crate::run_dir::RunDir;
use crate::weights;
use anyhow::{Context, Result};
use fovea::pipeline::clock::Stopwatch;
use fovea::pipeline::detector::hex;
use plotters::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tch::{Kind, Tensor};

/// Arguments of `fovea-train ablate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  fovea-train ablate --table b,c --data mydata/train --val mydata/val --init shufflenetv2-x1.0.safetensors \\
    --iterations 2000 --out ablation

Writes b.md, b.png, c.md, c.png and a run folder for every variant and seed into --out. The same command goes on where it \
stopped. A variant with another backbone than --init has starts from random weights. A table file has `title`, \
`columns`, and for each of `[[variants]]` a `name`, `cells` (one for each column) and \
`set` (what it changes in fit.toml); `base` changes all of them, `details = true` adds sizes of objects and time.")]
pub(crate) struct Args {
    /// a to e: the variants of the paper's Table 1; or a TOML file. Several are done together.
    #[arg(long, required = true, value_delimiter = ',')]
    table: Vec<String>,
    /// Folder of the tables and runs.
    #[arg(long)]
    out: PathBuf,
    /// Minutes of training for each run, instead of --iterations: how many steps that is, is measured.
    #[arg(long, conflicts_with_all = ["iterations", "config"])]
    minutes: Option<f64>,
    /// Seeds: each variant is done with each.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
    seeds: Vec<u64>,
    /// Evaluate on every n-th picture of --val.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    val_every: u64,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    machine: Machine,
}

/// A table of variants.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    title: String,
    columns: Vec<String>,
    /// Also AP by size of objects, and time.
    #[serde(default)]
    details: bool,
    #[serde(default)]
    base: toml::Table,
    variants: Vec<Variant>,
}

/// A row of the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    name: String,
    cells: Vec<String>,
    #[serde(default)]
    set: toml::Table,
}

/// What a run came to; `result.json` of its folder.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Finished {
    /// The step at which it diverged.
    diverged: Option<usize>,
    iterations: usize,
    pictures: usize,
    ap: Option<f64>,
    ap50: Option<f64>,
    ap75: Option<f64>,
    ap_small: Option<f64>,
    ap_medium: Option<f64>,
    ap_large: Option<f64>,
    /// Milliseconds of the network for one picture, in libtorch.
    ms: Option<f64>,
    /// SHA-256 of the labels that it was measured on.
    #[serde(default)]
    val_sha256: String,
}

/// The tables that the program brings.
const BUILT_IN: [(&str, &str); 5] = [
    ("a", include_str!("../../tables/a.toml")),
    ("b", include_str!("../../tables/b.toml")),
    ("c", include_str!("../../tables/c.toml")),
    ("d", include_str!("../../tables/d.toml")),
    ("e", include_str!("../../tables/e.toml")),
];

impl Table {
    fn open(name: &str) -> Result<(String, Self)> {
        let (stem, text) = match BUILT_IN.iter().find(|built_in| built_in.0 == name) {
            Some((stem, text)) => ((*stem).to_owned(), (*text).to_owned()),
            None => {
                let text = std::fs::read_to_string(name)
                    .with_context(|| format!("--table {name}: neither one of a, b, c, d, e nor a file that can be read"))?;
                let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
                (stem, text)
            }
        };
        let table: Self = toml::from_str(&text).with_context(|| name.to_owned())?;
        for variant in &table.variants {
            if variant.cells.len() != table.columns.len() {
                return Err(Request(format!(
                    "{name}: variant `{}` has {} cells for {} columns",
                    variant.name,
                    variant.cells.len(),
                    table.columns.len()
                ))
                .into());
            }
            if variant.name.is_empty() || variant.name.contains(['/', '\\']) || variant.name.starts_with('.') {
                return Err(Request(format!("{name}: variant name {:?} is no name for a folder", variant.name)).into());
            }
        }
        Ok((stem, table))
    }

    fn config(&self, variant: &Variant, base: &FitConfig) -> Result<FitConfig> {
        let base = toml::Table::try_from(base)?;
        let changed = |mut settings: toml::Table| {
            [&self.base, &variant.set].into_iter().for_each(|changes| merge(&mut settings, changes));
            settings
        };
        let mut settings = changed(base.clone());
        if backbone(&settings) != backbone(&base) {
            settings = changed(without_weights(base));
        }
        let said = || format!("variant `{}` of \"{}\"", variant.name, self.title);
        let config: FitConfig = settings.try_into().with_context(said)?;
        config.check().map_err(|error| Request(format!("{}: {error:#}", said())))?;
        Ok(config)
    }
}

/// Weights of one backbone are none for another, which starts from random ones with its norm and its own blocks.
fn without_weights(mut settings: toml::Table) -> toml::Table {
    settings.remove("init");
    if let Some(model) = settings.get_mut("model").and_then(toml::Value::as_table_mut) {
        model.remove("blocks");
        model.insert("backbone_norm".into(), true.into());
    }
    settings
}

fn backbone(settings: &toml::Table) -> Option<&str> {
    settings.get("model")?.get("backbone")?.as_str()
}

/// Puts the values of `changes` into `settings`; tables into tables, but a loss as a whole, as its keys depend on its kind.
fn merge(settings: &mut toml::Table, changes: &toml::Table) {
    for (key, change) in changes {
        match (settings.get_mut(key), change) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) if key != "loss" => merge(old, new),
            _ => {
                settings.insert(key.clone(), change.clone());
            }
        }
    }
}

impl Args {
    /// Runs what is not done yet and writes the tables.
    pub(crate) fn run(self) -> Result<()> {
        let tables: Vec<(String, Table)> = self.table.iter().map(|name| Table::open(name)).collect::<Result<_>>()?;
        let base = self.settings.config()?;
        // Everything that can be wrong with a variant is found before the first is trained.
        for (_, table) in &tables {
            table.variants.iter().try_for_each(|variant| table.config(variant, &base).map(|_| ()))?;
        }
        if self.settings.has_seed() {
            return Err(Request("--seed: a table has several runs of each variant; name their --seeds".into()).into());
        }
        let Some(val) = &base.val else {
            return Err(Request("--val is missing: the variants are compared on it".into()).into());
        };
        let mut val = Folder::open(val)?;
        val.coco.images = val.coco.images.into_iter().step_by(self.val_every as usize).collect();
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot make the folder {}", self.out.display()))?;
        let lock = std::fs::File::open(&self.out).ok();
        if lock.as_ref().is_some_and(|lock| matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock))) {
            return Err(Request(format!("another process works in {}", self.out.display())).into());
        }
        let val_sha256 = hex(&Sha256::digest(serde_json::to_string(&val.coco)?));
        let mut runner = Runner {
            val_sha256,
            resources: self.machine.resources()?,
            stop: stop_on_interrupt()?,
            val,
            minutes: self.minutes,
            examples_of: None,
        };
        for &seed in &self.seeds {
            for (_, table) in &tables {
                for variant in &table.variants {
                    let config = FitConfig { seed, val: None, ..table.config(variant, &base)? };
                    let dir = RunDir(folder(&self.out, variant, seed));
                    if !runner.finish(config, &dir, table.details)? {
                        say!("stopped; the same command goes on with {}", dir.0.display());
                        return self.write(&tables);
                    }
                    self.write(&tables)?;
                }
            }
        }
        Ok(())
    }

    fn write(&self, tables: &[(String, Table)]) -> Result<()> {
        for (stem, table) in tables {
            let rows: Vec<Row<'_>> =
                table.variants.iter().map(|variant| Row::read(variant, &self.out, &self.seeds)).collect::<Result<_>>()?;
            write_atomic(&self.out.join(format!("{stem}.md")), markdown(table, &rows).as_bytes())?;
            picture(&self.out.join(format!("{stem}.png")), table, &rows)?;
        }
        Ok(())
    }
}

fn folder(out: &Path, variant: &Variant, seed: u64) -> PathBuf {
    out.join(format!("{}-s{seed}", variant.name))
}

/// Trains and measures run after run.
struct Runner {
    resources: Resources,
    stop: Arc<AtomicBool>,
    val: Folder,
    val_sha256: String,
    minutes: Option<f64>,
    /// The settings that the pictures in memory were read for.
    examples_of: Option<FitConfig>,
}

impl Runner {
    /// Does what is left of a run; `false` where it was stopped.
    fn finish(&mut self, mut config: FitConfig, dir: &RunDir, details: bool) -> Result<bool> {
        let result = dir.0.join("result.json");
        let before = dir.config().exists().then(|| FitConfig::read(&dir.config())).transpose()?;
        if let Some(before) = &before {
            if self.minutes.is_some() {
                config.set_iterations(before.iterations);
            }
            if *before != config {
                return Err(Request(format!(
                    "{} was run with other settings than this command has; use another --out, or delete that folder",
                    dir.0.display()
                ))
                .into());
            }
            if let Ok(text) = std::fs::read_to_string(&result) {
                let done: Finished = serde_json::from_str(&text).with_context(|| result.display().to_string())?;
                let is_whole = done.val_sha256 == self.val_sha256 && (done.ms.is_some() || !details);
                if done.diverged.is_none() && !is_whole {
                    say!("{}: measured anew, on these validation data", dir.0.display());
                    let finished = self.measure(&config, dir, details)?;
                    write_atomic(&result, serde_json::to_string_pretty(&finished)?.as_bytes())?;
                }
                return Ok(true);
            }
        }
        self.load(&config)?;
        say!("{}", dir.0.display());
        std::fs::create_dir_all(&dir.0).with_context(|| format!("cannot make the folder {}", dir.0.display()))?;
        if before.is_none() {
            if let Some(minutes) = self.minutes {
                let Some(iterations) = self.iterations_in(minutes, &config, dir)? else { return Ok(false) };
                config.set_iterations(iterations);
            }
            config.model.write(&dir.model())?;
            config.write(&dir.config())?;
        }
        let control = Control { resume: dir.checkpoint().exists(), other_data: false, until: None, stop: &self.stop };
        let finished = match fit(&config, dir, control, &self.resources, &mut Peers::alone()) {
            Ok(Outcome::Stopped(_)) => return Ok(false),
            Ok(Outcome::Done) => self.measure(&config, dir, details)?,
            Err(error) => match error.downcast_ref::<Diverged>() {
                Some(diverged) => {
                    say!("{error}");
                    Finished { diverged: Some(diverged.iteration), iterations: config.iterations, ..Finished::default() }
                }
                None => return Err(error),
            },
        };
        write_atomic(&result, serde_json::to_string_pretty(&finished)?.as_bytes())?;
        Ok(true)
    }

    /// Reads the training pictures, once for all variants that use the same.
    fn load(&mut self, config: &FitConfig) -> Result<()> {
        let same = |old: &FitConfig| {
            (&old.data, &old.pseudo, &old.model.classes, old.bands)
                == (&config.data, &config.pseudo, &config.model.classes, config.bands)
                && (old.model.width, old.model.height) == (config.model.width, config.model.height)
        };
        if !self.examples_of.as_ref().is_some_and(same) {
            self.resources.examples = None;
            let folder = Folder::open(&config.data)?;
            let examples = data::load(&folder, &config.model, config.pseudo.as_deref(), config.bands)?;
            self.resources.examples = Some(Arc::new(examples));
            self.examples_of = Some(config.clone());
        }
        Ok(())
    }

    /// Steps of a run that fit into a time, by the speed of a few; `None` where it was stopped.
    fn iterations_in(&self, minutes: f64, config: &FitConfig, dir: &RunDir) -> Result<Option<usize>> {
        let trial = RunDir(dir.0.join("trial"));
        std::fs::create_dir_all(&trial.0)?;
        let steps = 20.min(config.iterations);
        let control = Control { resume: false, other_data: false, until: Some(steps), stop: &self.stop };
        let timed = fit(config, &trial, control, &self.resources, &mut Peers::alone());
        if timed.as_ref().is_err_and(|error| error.is::<Diverged>()) {
            // The run itself will, too, and be a line of the table.
            std::fs::remove_dir_all(&trial.0)?;
            return Ok(Some(steps));
        }
        if matches!(timed?, Outcome::Stopped(at) if at < steps) {
            std::fs::remove_dir_all(&trial.0)?;
            return Ok(None);
        }
        let rate = last_speed(&trial.curve())?;
        std::fs::remove_dir_all(&trial.0)?;
        Ok(Some(((minutes * 60.0 * rate / config.batch as f64) as usize).max(1)))
    }

    fn measure(&self, config: &FitConfig, dir: &RunDir, details: bool) -> Result<Finished> {
        let mut model = Model::new(&config.model, config.prior, 0, self.resources.device);
        model.load(&weights::read(&dir.weights())?.weights).with_context(|| dir.weights().display().to_string())?;
        let report = evaluate(&model, &config.model, &self.val, None)?;
        write_atomic(&dir.0.join("eval.json"), serde_json::to_string_pretty(&report)?.as_bytes())?;
        Ok(Finished {
            diverged: None,
            iterations: config.iterations,
            pictures: report.images,
            ap: report.ap,
            ap50: report.ap50,
            ap75: report.ap75,
            ap_small: report.ap_small,
            ap_medium: report.ap_medium,
            ap_large: report.ap_large,
            val_sha256: self.val_sha256.clone(),
            ms: details.then(|| milliseconds(&model, (config.model.width as i64, config.model.height as i64))),
        })
    }
}

/// Median time of the network for one picture.
fn milliseconds(model: &Model, (width, height): (i64, i64)) -> f64 {
    let picture = Tensor::zeros([1, height, width, 3], (Kind::Uint8, model.device()));
    let mut times: Vec<f64> = (0..20)
        .map(|_| {
            let mut clock = Stopwatch::start();
            let heads = tch::no_grad(|| model.forward(&picture, Mode::EVAL));
            // Reading a value waits for the device.
            let _ = heads[0].cls.double_value(&[0, 0, 0, 0]);
            1000.0 * clock.lap().as_secs_f64()
        })
        .skip(5)
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A variant with the runs that are done.
struct Row<'a> {
    variant: &'a Variant,
    runs: Vec<Finished>,
    n_seeds: usize,
}

/// Reads one number of a run.
type Figure = fn(&Finished) -> Option<f64>;

impl<'a> Row<'a> {
    fn read(variant: &'a Variant, out: &Path, seeds: &[u64]) -> Result<Self> {
        let mut runs = Vec::new();
        for &seed in seeds {
            let path = folder(out, variant, seed).join("result.json");
            if let Ok(text) = std::fs::read_to_string(&path) {
                runs.push(serde_json::from_str(&text).with_context(|| path.display().to_string())?);
            }
        }
        Ok(Self { variant, runs, n_seeds: seeds.len() })
    }

    /// One value for each run that did not diverge.
    fn values(&self, of: Figure) -> Vec<f64> {
        self.runs.iter().filter(|run| run.diverged.is_none()).filter_map(of).collect()
    }

    /// What there is to say beside the numbers.
    fn remark(&self) -> String {
        let steps: Vec<String> = self.runs.iter().filter_map(|run| run.diverged).map(|step| step.to_string()).collect();
        let mut remarks = Vec::new();
        if !steps.is_empty() {
            remarks.push(format!("**diverged** at step {} ({} of {} runs)", steps.join(", "), steps.len(), self.runs.len()));
        }
        if self.runs.len() < self.n_seeds {
            remarks.push(format!("{} of {} runs done", self.runs.len(), self.n_seeds));
        }
        remarks.join("; ")
    }
}

/// Mean and standard deviation of a run; the latter from two runs on.
fn mean_and_deviation(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (!values.is_empty()).then(|| (mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt())))
}

/// Standard deviation of a run within a variant, over all variants, and its degrees of freedom.
fn pooled(rows: &[Row<'_>], of: Figure) -> Option<(f64, usize)> {
    let (mut squares, mut freedom) = (0.0, 0);
    for values in rows.iter().map(|row| row.values(of)) {
        if let Some((_, Some(deviation))) = mean_and_deviation(&values) {
            squares += deviation.powi(2) * (values.len() - 1) as f64;
            freedom += values.len() - 1;
        }
    }
    (freedom > 0).then(|| ((squares / freedom as f64).sqrt(), freedom))
}

/// 97.5 % point of Student's t.
fn t_quantile(freedom: usize) -> f64 {
    const FIRST: [f64; 12] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179];
    // From 13 on within 0.003.
    FIRST.get(freedom - 1).copied().unwrap_or(1.96 + 2.5 / freedom as f64)
}

const FIGURES: [(&str, Figure); 3] = [("AP", |run| run.ap), ("AP50", |run| run.ap50), ("AP75", |run| run.ap75)];
const DETAILS: [(&str, Figure); 3] = [("APS", |run| run.ap_small), ("APM", |run| run.ap_medium), ("APL", |run| run.ap_large)];

fn markdown(table: &Table, rows: &[Row<'_>]) -> String {
    let figures: Vec<_> = FIGURES.iter().chain(if table.details { &DETAILS[..] } else { &[] }).collect();
    let mut names: Vec<&str> = table.columns.iter().map(String::as_str).collect();
    names.extend(figures.iter().map(|figure| figure.0));
    if table.details {
        names.push("ms");
    }
    names.push("");
    let mut text = format!("**{}**\n\n| {} |\n|{}\n", table.title, names.join(" | "), "---|".repeat(names.len()));
    for row in rows {
        let mut cells = row.variant.cells.clone();
        for (_, of) in &figures {
            cells.push(match mean_and_deviation(&row.values(*of)) {
                Some((mean, Some(deviation))) => format!("{:.1} ± {:.1}", 100.0 * mean, 100.0 * deviation),
                Some((mean, None)) => format!("{:.1}", 100.0 * mean),
                None => "-".into(),
            });
        }
        if table.details {
            let times: Vec<f64> = row.runs.iter().filter_map(|run| run.ms).collect();
            cells.push(mean_and_deviation(&times).map_or("-".into(), |(mean, _)| format!("{mean:.0}")));
        }
        cells.push(row.remark());
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text.push('\n');
    let runs = || rows.iter().flat_map(|row| &row.runs);
    let span = |of: fn(&Finished) -> usize| {
        let values = || runs().filter(|run| run.diverged.is_none()).map(of);
        let (low, high) = (values().min().unwrap_or(0), values().max().unwrap_or(0));
        if low == high { low.to_string() } else { format!("{low} to {high}") }
    };
    let _ = writeln!(
        text,
        "Mean ± standard deviation of a run; {} seeds, {} steps, measured on {} pictures.",
        rows.first().map_or(0, |row| row.n_seeds),
        span(|run| run.iterations),
        span(|run| run.pictures)
    );
    let differences: Vec<String> = FIGURES
        .iter()
        .filter_map(|(name, of)| {
            let (deviation, freedom) = pooled(rows, *of)?;
            // Of the two rows with the fewest runs.
            let mut counts: Vec<usize> = rows.iter().map(|row| row.values(*of).len()).filter(|&n| n > 0).collect();
            counts.sort_unstable();
            let variance: f64 = counts.get(..2)?.iter().map(|&n| 1.0 / n as f64).sum();
            let least = t_quantile(freedom) * deviation * variance.sqrt();
            Some(format!("{name} {:.1}", 100.0 * least))
        })
        .collect();
    if !differences.is_empty() {
        let _ = writeln!(
            text,
            "Two means that differ by less than this are not told apart (95 %, Student's t, deviation pooled over the rows): {}.",
            differences.join(", ")
        );
    }
    text
}

/// The table as a picture: cells, mean AP, and every run on a line.
fn picture(path: &Path, table: &Table, rows: &[Row<'_>]) -> Result<()> {
    const ROW: i32 = 24;
    const TOP: i32 = 64;
    let width_of = |n: usize| 8 * n as i32 + 22;
    let columns: Vec<i32> = (0..table.columns.len())
        .map(|idx| {
            rows.iter().map(|row| row.variant.cells[idx].chars().count()).chain([table.columns[idx].chars().count()]).max()
        })
        .map(|widest| width_of(widest.unwrap_or(0)))
        .collect();
    let cells_end = 12 + columns.iter().sum::<i32>();
    let (left, right) = (cells_end + 110, cells_end + 560);
    let size = ((right + 40) as u32, (TOP + ROW * rows.len() as i32 + 40) as u32);
    let highest = rows.iter().flat_map(|row| row.values(FIGURES[0].1)).fold(0.01, f64::max) * 110.0;
    let x_of = |percent: f64| left + ((right - left) as f64 * percent / highest) as i32;
    figure::draw(path, size, |area| {
        figure::text(area, &table.title, (12, 16), 16)?;
        let mut x = 12;
        for (name, width) in table.columns.iter().zip(&columns) {
            figure::text(area, name, (x, TOP - 18), 13)?;
            x += width;
        }
        figure::text(area, "AP", (cells_end, TOP - 18), 13)?;
        let step = [0.5, 1.0, 2.0, 5.0, 10.0].into_iter().find(|step| highest / step <= 8.0).unwrap_or(20.0);
        let bottom = TOP + ROW * rows.len() as i32;
        for tick in (0..).map(|n| f64::from(n) * step).take_while(|&tick| tick <= highest) {
            let x = x_of(tick);
            area.draw(&PathElement::new([(x, TOP - 6), (x, bottom)], BLACK.mix(0.15)))?;
            figure::text(area, &format!("{tick}"), (x - 6, bottom + 14), 12)?;
        }
        for (idx, row) in rows.iter().enumerate() {
            let y = TOP + ROW * idx as i32 + ROW / 2;
            let mut x = 12;
            for (cell, width) in row.variant.cells.iter().zip(&columns) {
                figure::text(area, cell, (x, y), 13)?;
                x += width;
            }
            let values: Vec<f64> = row.values(FIGURES[0].1).iter().map(|value| 100.0 * value).collect();
            let shown = match mean_and_deviation(&values) {
                Some((mean, Some(deviation))) => format!("{mean:.1} ± {deviation:.1}"),
                Some((mean, None)) => format!("{mean:.1}"),
                None if row.runs.is_empty() => String::new(),
                None => "diverged".into(),
            };
            figure::text(area, &shown, (cells_end, y), 13)?;
            let (blue, orange) = (figure::COLORS[0], figure::COLORS[1]);
            for value in &values {
                area.draw(&Circle::new((x_of(*value), y), 4, blue.mix(0.6).filled()))?;
            }
            if let Some((mean, _)) = mean_and_deviation(&values) {
                area.draw(&PathElement::new([(x_of(mean), y - 8), (x_of(mean), y + 8)], orange.stroke_width(2)))?;
            }
        }
        figure::text(area, "AP, each run; the bar is the mean", (left, bottom + 30), 12)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Backbone, ModelSpec};

    fn base() -> FitConfig {
        let model = ModelSpec::edge(Backbone::ShuffleNetV2, 64, 2, (256, 160), vec!["a".into()]);
        FitConfig::edge("data".into(), model)
    }

    #[test]
    fn every_built_in_variant_is_a_run() {
        for (name, _) in BUILT_IN {
            let (_, table) = Table::open(name).unwrap();
            let mut names: Vec<&str> = table.variants.iter().map(|variant| variant.name.as_str()).collect();
            let configs: Vec<FitConfig> = table.variants.iter().map(|v| table.config(v, &base()).unwrap()).collect();
            for (idx, config) in configs.iter().enumerate() {
                assert!(!configs[..idx].contains(config), "{name}: {} comes twice", names[idx]);
            }
            let folded = FitConfig { init: Some("w.safetensors".into()), ..base() };
            let folded = FitConfig { model: ModelSpec { backbone_norm: false, ..folded.model }, ..folded };
            for (variant, config) in table.variants.iter().zip(&configs) {
                let given = table.config(variant, &folded).unwrap();
                let is_of_base = config.model.backbone == folded.model.backbone;
                assert_eq!((given.init.is_some(), given.model.backbone_norm), (is_of_base, !is_of_base), "{}", variant.name);
            }
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), configs.len(), "{name}: a name comes twice");
        }
    }

    #[test]
    fn a_table_says_what_diverged_and_what_differs() {
        let table: Table = toml::from_str(
            "title = 'T'\ncolumns = ['x']\n[[variants]]\nname = 'p'\ncells = ['1']\n[[variants]]\nname = 'q'\ncells = ['2']\n\
             [[variants]]\nname = 'r'\ncells = ['3']\n",
        )
        .unwrap();
        let run = |ap: f64| Finished {
            ap: Some(ap),
            ap50: Some(ap),
            ap75: Some(ap),
            iterations: 9,
            pictures: 5,
            ..Finished::default()
        };
        let fell = Finished { diverged: Some(7), ..Finished::default() };
        let rows = [
            Row { variant: &table.variants[0], runs: vec![run(0.1), run(0.2)], n_seeds: 2 },
            Row { variant: &table.variants[1], runs: vec![fell], n_seeds: 2 },
            Row { variant: &table.variants[2], runs: vec![Finished { ap75: None, ..run(0.3) }], n_seeds: 2 },
        ];
        let text = markdown(&table, &rows);
        for part in [
            "| 1 | 15.0 ± 7.1 | 15.0 ± 7.1 | 15.0 ± 7.1 |  |",
            "| 2 | - | - | - | **diverged** at step 7 (1 of 1 runs); 1 of 2 runs done |",
            "2 seeds, 9 steps, measured on 5 pictures",
            "| 3 | 30.0 | 30.0 | - | 1 of 2 runs done |",
            // 12.706 x 7.07 x sqrt(1 + 1/2).
            "AP 110.0",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_variant_changes_single_settings_and_whole_losses() {
        let table: Table = toml::from_str(
            "title = 'T'\ncolumns = []\nbase = { lr = 0.5 }\n[[variants]]\nname = 'p'\ncells = []\n\
             set = { loss = { kind = 'hinge' }, model = { anchors = { scales = [1.0] } } }\n",
        )
        .unwrap();
        let config = table.config(&table.variants[0], &base()).unwrap();
        assert_eq!((config.lr, config.loss), (0.5, "hinge".parse().unwrap()));
        assert_eq!((config.model.anchors.scales.len(), config.model.anchors.aspect_ratios.len()), (1, 3));
        let wrong: Table =
            toml::from_str("title = 'T'\ncolumns = []\n[[variants]]\nname = 'p'\ncells = []\nset = { gamma = 1 }\n").unwrap();
        let error = format!("{:#}", wrong.config(&wrong.variants[0], &base()).unwrap_err());
        assert!(error.contains("variant `p`") && error.contains("unknown field `gamma`"), "{error}");
    }
}
