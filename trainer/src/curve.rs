//! The training curve, as CSV and as a picture.

use crate::fit::Losses;
use crate::package::write_atomic;
use anyhow::{Context, Result};
use plotters::prelude::*;
use plotters::style::register_font;
use std::io::Write;
use std::path::{Path, PathBuf};

const HEADER: &str = "iteration,lr,cls_loss,box_loss,grad_norm,images_per_s";

/// A `curve.csv` that is appended to.
#[derive(Debug)]
pub(crate) struct Curve {
    path: PathBuf,
}

impl Curve {
    /// Starts a curve, or goes on with one: lines after iteration `resume_at` belong to what is repeated and go.
    pub(crate) fn open(path: &Path, resume_at: Option<usize>) -> Result<Self> {
        let mut text = format!("{HEADER}\n");
        if let (Some(at), Ok(old)) = (resume_at, std::fs::read_to_string(path)) {
            let is_kept = |line: &&str| line.split(',').next().and_then(|n| n.parse().ok()).is_some_and(|n: usize| n <= at);
            old.lines().filter(is_kept).for_each(|line| text.push_str(&format!("{line}\n")));
        }
        write_atomic(path, text.as_bytes())?;
        Ok(Self { path: path.to_owned() })
    }

    /// Adds a line.
    pub(crate) fn append(&self, iteration: usize, lr: f64, mean: Losses, rate: f64) -> Result<()> {
        let mut file =
            std::fs::OpenOptions::new().append(true).open(&self.path).with_context(|| self.path.display().to_string())?;
        writeln!(file, "{iteration},{lr:.6},{:.5},{:.5},{:.4},{rate:.2}", mean.cls, mean.bbox, mean.norm)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// As [`Self::plot`]; a picture that cannot be drawn does not stop the training.
    pub(crate) fn plot_or_warn(&self, path: &Path) {
        if let Err(error) = self.plot(path) {
            eprintln!("warning: the training curve was not drawn: {error:#}");
        }
    }

    /// Draws both losses over the iterations.
    fn plot(&self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(&self.path)?;
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(1)
            .map(|line| line.split(',').filter_map(|v| v.parse().ok()).collect())
            .filter(|row: &Vec<f64>| row.len() == 6)
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
}
