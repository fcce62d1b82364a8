//! What a run reports over time: losses and evaluations as CSV, as TensorBoard events and as a picture.

use crate::files::write_atomic;
use crate::loss::Losses;
use crate::run_dir::RunDir;
use crate::tensorboard::EventFile;
use anyhow::{Context, Result};
use fovea::eval::EvalReport;
use plotters::prelude::*;
use plotters::style::register_font;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Columns of `curve.csv` after the iteration, and their names in TensorBoard.
const CURVE: [(&str, &str); 10] = [
    ("lr", "train/lr"),
    ("cls_loss", "loss/cls"),
    ("box_loss", "loss/box"),
    ("grad_norm", "train/grad_norm"),
    ("images_per_s", "speed/images_per_s"),
    ("wait_share", "speed/wait_share"),
    ("memory_mb", "speed/memory_mb"),
    ("distill_logits", "distill/logits"),
    ("distill_boxes", "distill/boxes"),
    ("distill_features", "distill/features"),
];

/// Pictures a second in the last line of a `curve.csv`.
pub(crate) fn last_speed(curve: &Path) -> Result<f64> {
    let column = 1 + CURVE.iter().position(|(name, _)| *name == "images_per_s").unwrap_or_default();
    let text = std::fs::read_to_string(curve).with_context(|| format!("cannot read {}", curve.display()))?;
    let speed = text.lines().last().and_then(|line| line.split(',').nth(column)?.parse().ok());
    speed.with_context(|| format!("{} has no speed", curve.display()))
}

/// Columns of `eval.csv`.
const EVALS: [(&str, &str); 3] = [("ap", "val/AP"), ("ap50", "val/AP50"), ("ap75", "val/AP75")];

/// A line of the curve: means since the one before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// Learning rate of the head.
    pub(crate) lr: f64,
    /// Losses.
    pub(crate) losses: Losses,
    /// Pictures a second, of all processes together.
    pub(crate) images_per_s: f64,
    /// Share of the time in which the network waited for a batch.
    pub(crate) wait_share: f64,
}

/// The reports of a run.
#[derive(Debug)]
pub(crate) struct Log {
    curve: Table,
    evals: Table,
    events: EventFile,
}

impl Log {
    /// Starts the reports, or goes on with them: what is after iteration `resume_at` is repeated and goes.
    pub(crate) fn open(dir: &RunDir, resume_at: Option<usize>) -> Result<Self> {
        Ok(Self {
            curve: Table::open(dir.curve(), &CURVE.map(|column| column.0), resume_at)?,
            evals: Table::open(dir.evals(), &EVALS.map(|column| column.0), resume_at)?,
            events: EventFile::create(&dir.0, resume_at.unwrap_or(0))?,
        })
    }

    /// Adds a line of losses.
    pub(crate) fn append(&mut self, iteration: usize, row: &Row) -> Result<()> {
        let Row { lr, losses, images_per_s, wait_share } = *row;
        let [logits, boxes, features] = losses.distill;
        let values = [
            lr,
            losses.cls,
            losses.bbox,
            losses.norm,
            images_per_s,
            wait_share,
            resident_mb().unwrap_or(0.0),
            logits,
            boxes,
            features,
        ];
        self.curve.append(iteration, &values)?;
        self.events.append(iteration, &std::array::from_fn::<_, 10, _>(|n| (CURVE[n].1, values[n])))
    }

    /// Adds an evaluation.
    pub(crate) fn append_eval(&mut self, iteration: usize, report: &EvalReport) -> Result<()> {
        let values = [report.ap, report.ap50, report.ap75].map(|value| value.unwrap_or(f64::NAN));
        self.evals.append(iteration, &values)?;
        self.events.append(iteration, &std::array::from_fn::<_, 3, _>(|n| (EVALS[n].1, values[n])))
    }

    /// Draws the losses; a picture that cannot be drawn does not stop the training.
    pub(crate) fn plot_or_warn(&self, path: &Path) {
        if let Err(error) = plot(&self.curve, path) {
            say!("warning: the training curve was not drawn: {error:#}");
        }
    }
}

/// Memory of this process, MB; `None` where the system has no `/proc`.
pub(crate) fn resident_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kb: f64 = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kb / 1000.0)
}

/// A CSV file that is appended to; the first column is the iteration.
#[derive(Debug)]
struct Table {
    path: PathBuf,
}

impl Table {
    fn open(path: PathBuf, columns: &[&str], resume_at: Option<usize>) -> Result<Self> {
        let mut text = format!("iteration,{}\n", columns.join(","));
        if let (Some(at), Ok(old)) = (resume_at, std::fs::read_to_string(&path)) {
            let width = old.lines().next().map_or(0, |header| header.split(',').count());
            // A line that a cut left short may begin with the start of a number.
            let is_kept = |line: &&str| {
                let mut cells = line.split(',');
                let iteration: Option<usize> = cells.next().and_then(|cell| cell.parse().ok());
                iteration.is_some_and(|iteration| iteration <= at) && cells.count() + 1 == width
            };
            // Older versions wrote fewer columns.
            let padding = ",".repeat((columns.len() + 1).saturating_sub(width));
            old.lines().filter(is_kept).for_each(|line| text.push_str(&format!("{line}{padding}\n")));
        }
        write_atomic(&path, text.as_bytes())?;
        Ok(Self { path })
    }

    fn append(&self, iteration: usize, values: &[f64]) -> Result<()> {
        let mut line = iteration.to_string();
        for value in values {
            let digits = format!("{value:.6}");
            line.push(',');
            line.push_str(digits.trim_end_matches('0').trim_end_matches('.'));
        }
        line.push('\n');
        std::fs::OpenOptions::new()
            .append(true)
            .open(&self.path)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Draws both losses over the iterations.
fn plot(curve: &Table, path: &Path) -> Result<()> {
    let text = std::fs::read_to_string(&curve.path)?;
    let rows: Vec<Vec<f64>> = text
        .lines()
        .skip(1)
        .map(|line| line.split(',').filter_map(|v| v.parse().ok()).collect())
        .filter(|row: &Vec<f64>| row.len() > 3)
        .collect();
    let Some(last) = rows.last() else { return Ok(()) };
    let highest = rows.iter().skip(rows.len() / 50).map(|row| row[2].max(row[3])).fold(0.1, f64::max);
    // Registered once for the process; a second time is refused and changes nothing.
    let _ = register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
    let area = BitMapBackend::new(path, (960, 540)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .set_label_area_size(LabelAreaPosition::Left, 56)
        .set_label_area_size(LabelAreaPosition::Bottom, 44)
        .build_cartesian_2d(0.0..last[0].max(1.0), 0.0..highest * 1.05)?;
    let count = |value: &f64| format!("{value:.0}");
    chart.configure_mesh().light_line_style(WHITE).x_desc("iteration").y_desc("loss").x_label_formatter(&count).draw()?;
    for (column, name, color) in [(2, "classification", BLUE), (3, "boxes", RED)] {
        let line = LineSeries::new(rows.iter().map(|row| (row[0], row[column].min(highest))), color);
        chart.draw_series(line)?.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    area.present().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_goes_on_after_a_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("curve.csv");
        let columns = ["a", "b", "c"];
        // An older header, a line beyond the checkpoint, and one cut within the number 1200.
        std::fs::write(&path, "iteration,a,b\n20,1,2\n40,3,4\n60,5,6\n12").unwrap();
        let table = Table::open(path.clone(), &columns, Some(40)).unwrap();
        table.append(60, &[0.5, 12.0, 1e-4]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "iteration,a,b,c\n20,1,2,\n40,3,4,\n60,0.5,12,0.0001\n");
        Table::open(path.clone(), &columns, None).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "iteration,a,b,c\n");
    }
}
