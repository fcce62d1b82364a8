//! Figures: what the plots of this program have in common.

use crate::request::Request;
use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use std::ops::Range;
use std::path::Path;

/// An empty picture.
pub(crate) type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Colours of lines, told apart in print and by people who do not see all colours (Okabe and Ito 2008).
pub(crate) const COLORS: [RGBColor; 10] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
    RGBColor(170, 160, 30),
    RGBColor(140, 80, 40),
    RGBColor(0, 0, 0),
];

/// Draws a picture of `size` pixels into a PNG file.
pub(crate) fn draw(path: &Path, size: (u32, u32), with: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<()> {
    register();
    prepare(path)?;
    let area = BitMapBackend::new(path, size).into_drawing_area();
    area.fill(&WHITE)?;
    with(&area)?;
    area.present().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// Makes the folder of a picture that will be written; refuses a name that is not one of a picture.
pub(crate) fn prepare(path: &Path) -> Result<()> {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    if !extension.is_some_and(|extension| ["png", "jpg", "jpeg"].contains(&&*extension)) {
        return Err(Request(format!("{}: a picture is written as .png or .jpg", path.display())).into());
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Draws over RGB pixels of a picture of `size`.
pub(crate) fn draw_over(pixels: &mut [u8], size: (u32, u32), with: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<()> {
    register();
    let area = BitMapBackend::with_buffer(pixels, size).into_drawing_area();
    with(&area)?;
    Ok(area.present()?)
}

/// Makes the font known. Once for the process; a second time is refused and changes nothing.
fn register() {
    let _ = register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
}

/// A line with its name.
#[derive(Debug)]
pub(crate) struct Line {
    /// What the legend says.
    pub(crate) name: String,
    /// Points, by x.
    pub(crate) points: Vec<(f64, f64)>,
}

/// An axis.
#[derive(Debug)]
pub(crate) struct Axis<'a> {
    /// What it is.
    pub(crate) name: &'a str,
    /// Ends.
    pub(crate) range: Range<f64>,
}

/// Lines over one pair of axes.
pub(crate) fn lines(
    area: &Area<'_>,
    title: &str,
    x: Axis<'_>,
    y: Axis<'_>,
    lines: &[Line],
    legend: SeriesLabelPosition,
) -> Result<()> {
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(title, ("sans-serif", 17))
        .set_label_area_size(LabelAreaPosition::Left, 52)
        .set_label_area_size(LabelAreaPosition::Bottom, 40)
        .build_cartesian_2d(x.range, y.range)?;
    chart.configure_mesh().light_line_style(WHITE).x_desc(x.name).y_desc(y.name).draw()?;
    for (line, &color) in lines.iter().zip(COLORS.iter().cycle()) {
        let style = color.stroke_width(2);
        let drawn = chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        drawn.label(&line.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    chart.configure_series_labels().position(legend).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    Ok(())
}

/// A line of text, its left end and middle at `at`.
pub(crate) fn text(area: &Area<'_>, text: &str, at: (i32, i32), size: i32) -> Result<()> {
    area.draw(&Text::new(text.to_owned(), (at.0, at.1 - size / 2), ("sans-serif", size)))?;
    Ok(())
}
