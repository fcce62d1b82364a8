//! Figures: what the plots of this program have in common.

use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use std::path::Path;

/// An empty picture.
pub(crate) type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Colours of lines, told apart in print and by people who do not see all colours (Okabe and Ito 2008).
pub(crate) const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
    RGBColor(170, 160, 30),
];

/// Draws a picture of `size` pixels into a PNG file.
pub(crate) fn draw(path: &Path, size: (u32, u32), with: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<()> {
    register();
    let area = BitMapBackend::new(path, size).into_drawing_area();
    area.fill(&WHITE)?;
    with(&area)?;
    area.present().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
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

/// A line of text, its left end and middle at `at`.
pub(crate) fn text(area: &Area<'_>, text: &str, at: (i32, i32), size: i32) -> Result<()> {
    area.draw(&Text::new(text.to_owned(), (at.0, at.1 - size / 2), ("sans-serif", size)))?;
    Ok(())
}
