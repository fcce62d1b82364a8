//! `fovea-train data stats`.

use crate::data::Folder;
use crate::figure::{self, Area, COLORS};
use anyhow::Result;
use fovea::frame::Letterbox;
use plotters::prelude::*;
use std::collections::HashMap;
use std::path::PathBuf;

/// Size of a panel in pixels; the figure has two by two.
const PANEL: (i32, i32) = (640, 420);

/// Arguments of `fovea-train data stats`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  fovea-train data stats --data mydata/train --out train.png")]
pub(crate) struct Args {
    /// The data set.
    #[arg(long)]
    data: PathBuf,
    /// PNG file to write.
    #[arg(long)]
    out: PathBuf,
    /// Input width that sizes are given for.
    #[arg(long, default_value_t = 416, value_parser = super::data_check::side)]
    width: usize,
    /// Input height that sizes are given for.
    #[arg(long, default_value_t = 256, value_parser = super::data_check::side)]
    height: usize,
}

/// Bars with their names, and what they count.
struct Panel {
    title: String,
    bars: Vec<(String, usize)>,
}

impl Args {
    /// Draws.
    pub(crate) fn run(self) -> Result<()> {
        figure::prepare(&self.out)?;
        let folder = Folder::open(&self.data)?;
        let panels = panels(&folder, (self.width, self.height));
        for panel in &panels {
            println!("{}", panel.title);
            panel.bars.iter().for_each(|(name, n)| println!("  {name:<20} {n:>8}"));
        }
        figure::draw(&self.out, (2 * PANEL.0 as u32, 2 * PANEL.1 as u32), |area| {
            for (at, panel) in (0..).zip(&panels) {
                draw(area, (at % 2 * PANEL.0, at / 2 * PANEL.1), panel)?;
            }
            Ok(())
        })
    }
}

fn panels(folder: &Folder, size: (usize, usize)) -> [Panel; 4] {
    let coco = &folder.coco;
    let net_per_frame: HashMap<u64, (f64, f64)> = coco
        .images
        .iter()
        .filter(|image| image.width > 0 && image.height > 0)
        .map(|image| {
            let (sx, sy) = Letterbox::new((image.width as usize, image.height as usize), size).frame_per_net();
            (image.id, (1.0 / f64::from(sx), 1.0 / f64::from(sy)))
        })
        .collect();
    let mut by_class: HashMap<u32, usize> = HashMap::new();
    let mut by_picture: HashMap<u64, usize> = HashMap::new();
    let (mut sides, mut ratios) = (Vec::new(), Vec::new());
    for annotation in &coco.annotations {
        let [_, _, w, h] = annotation.bbox;
        let Some((sx, sy)) = net_per_frame.get(&annotation.image_id).filter(|_| w > 0.0 && h > 0.0) else { continue };
        *by_class.entry(annotation.category_id).or_default() += 1;
        *by_picture.entry(annotation.image_id).or_default() += 1;
        sides.push((w * sx * h * sy).sqrt());
        ratios.push(h / w);
    }
    let count =
        |n: usize, most: usize| coco.images.iter().filter(|i| by_picture.get(&i.id).copied().unwrap_or(0).min(most) == n).count();
    let classes = coco.categories.iter().map(|c| (c.name.clone(), by_class.get(&c.id).copied().unwrap_or(0))).collect();
    let numbers = (0..=12).map(|n| (if n == 12 { "12 and more".to_owned() } else { n.to_string() }, count(n, 12))).collect();
    [
        Panel { title: format!("Boxes by class: {} in {} pictures", coco.annotations.len(), coco.images.len()), bars: classes },
        Panel { title: "Boxes by picture".to_owned(), bars: numbers },
        Panel {
            title: format!("Root of the area, pixels at {}x{}", size.0, size.1),
            bars: histogram(&sides, &[4.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0]),
        },
        Panel {
            title: "Height over width".to_owned(),
            bars: histogram(&ratios, &[0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0]),
        },
    ]
}

/// How many values lie below the first edge, between each two, and above the last.
fn histogram(values: &[f64], edges: &[f64]) -> Vec<(String, usize)> {
    let bin = |value: f64| edges.iter().take_while(|edge| value >= **edge).count();
    let name = |bin: usize| match bin {
        0 => format!("below {}", edges[0]),
        n if n == edges.len() => format!("from {}", edges[n - 1]),
        n => format!("{} – {}", edges[n - 1], edges[n]),
    };
    (0..=edges.len()).map(|n| (name(n), values.iter().filter(|value| bin(**value) == n).count())).collect()
}

fn draw(area: &Area<'_>, (x, y): (i32, i32), panel: &Panel) -> Result<()> {
    figure::text(area, &panel.title, (x + 16, y + 24), 18)?;
    let most = panel.bars.iter().map(|(_, n)| *n).max().unwrap_or(0).max(1);
    let pitch = ((PANEL.1 - 60) / panel.bars.len().max(1) as i32).clamp(1, 32);
    let font = (pitch - 6).clamp(7, 15);
    for (row, (name, n)) in (0..).zip(&panel.bars) {
        let (top, left) = (y + 48 + row * pitch, x + 140);
        let right = left + (*n as f64 / most as f64 * f64::from(PANEL.0 - 230)) as i32;
        area.draw(&Rectangle::new([(left, top), (right, top + pitch - 4)], COLORS[0].filled()))?;
        let short: String = name.chars().take(16).collect();
        figure::text(area, &short, (x + 16, top + pitch / 2 - 2), font)?;
        figure::text(area, &n.to_string(), (right + 6, top + pitch / 2 - 2), font)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_half_open_and_count_everything() {
        let got = histogram(&[0.1, 0.25, 0.3, 1.0, 9.0], &[0.25, 1.0]);
        let wanted = [("below 0.25", 1), ("0.25 – 1", 2), ("from 1", 2)].map(|(name, n)| (name.to_owned(), n));
        assert_eq!(got, wanted);
    }
}
