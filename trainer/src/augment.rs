//! Random views of labelled pictures: flip, scale, crop, aspect, colour, mosaic of four; darkness, blur, noise, compression.
//!
//! Everything is drawn from a generator seeded with the sample's number, so that a resumed run sees the same pictures.

use crate::data::{Example, Label, LabelKind};
use crate::degrade::{add_noise, blur, darken, recompress};
use fovea::detection::BBox;
use fovea::images::RgbPicture;
use fovea::preprocess::PAD_VALUE;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How far augmentation goes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Augmentation {
    /// Probability of a mirrored picture.
    pub(crate) flip: f32,
    /// Range of the scale relative to the letterbox.
    pub(crate) scale: [f32; 2],
    /// Width over height changes by at most `exp(±aspect)`.
    pub(crate) aspect: f32,
    /// Strength of colour changes, 0 to 1.
    pub(crate) color: f32,
    /// Probability of four pictures in one.
    pub(crate) mosaic: f32,
    /// Probability of a dark, noisy picture. A file without this key or the next three means 0.
    #[serde(default)]
    pub(crate) night: f32,
    /// Probability of blur: out of focus or moved.
    #[serde(default)]
    pub(crate) blur: f32,
    /// Probability of sensor noise.
    #[serde(default)]
    pub(crate) noise: f32,
    /// Probability of a further JPEG compression.
    #[serde(default)]
    pub(crate) jpeg: f32,
}

impl Default for Augmentation {
    fn default() -> Self {
        Self {
            scale: [0.55, 1.7],
            aspect: 0.15,
            color: 0.4,
            mosaic: 0.5,
            night: 0.1,
            blur: 0.1,
            noise: 0.1,
            jpeg: 0.15,
            ..Self::FLIP_ONLY
        }
    }
}

impl Augmentation {
    /// Whether samples can be drawn with these settings.
    pub(crate) fn is_possible(&self) -> bool {
        let [low, high] = self.scale;
        [self.flip, self.mosaic, self.color, self.night, self.blur, self.noise, self.jpeg].iter().all(|p| (0.0..=1.0).contains(p))
            && low > 0.0
            && low <= high
            && high.is_finite()
            && (0.0..=2.0).contains(&self.aspect)
    }

    /// The paper's: horizontal flip only.
    pub(crate) const FLIP_ONLY: Self =
        Self { flip: 0.5, scale: [1.0, 1.0], aspect: 0.0, color: 0.0, mosaic: 0.0, night: 0.0, blur: 0.0, noise: 0.0, jpeg: 0.0 };
}

/// A part of a sample with its own knowledge of what is background.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    /// Where, in pixels of the network input.
    pub(crate) area: BBox,
    /// For each class whether what has no box is background.
    pub(crate) is_known: Vec<bool>,
}

/// A network input with its labels.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// RGB, `[H, W, 3]`.
    pub(crate) pixels: Vec<u8>,
    /// Boxes in pixels of the network input.
    pub(crate) labels: Vec<Label>,
    /// Regions, which cover the input.
    pub(crate) regions: Vec<Region>,
}

/// A picture laid on the canvas: `x_canvas = origin.0 + x x scale.0`, mirrored where `flip`.
#[derive(Debug, Clone, Copy)]
struct Placement {
    scale: (f32, f32),
    origin: (f32, f32),
    flip: bool,
    clip: (usize, usize, usize, usize),
}

/// Draws one sample of `(width, height)` pixels; `examples[first]` is in it, others join it in a mosaic.
pub(crate) fn sample(
    examples: &[Example],
    first: usize,
    size: (usize, usize),
    how: &Augmentation,
    rng: &mut ChaCha8Rng,
) -> Sample {
    let (width, height) = size;
    let mut sample = Sample { pixels: vec![PAD_VALUE; width * height * 3], labels: Vec::new(), regions: Vec::new() };
    if rng.random_range(0.0..1.0) < how.mosaic {
        let cx = (rng.random_range(0.3..0.7) * width as f32) as usize;
        let cy = (rng.random_range(0.3..0.7) * height as f32) as usize;
        for quarter in 0..4 {
            let example = &examples[if quarter == 0 { first } else { rng.random_range(0..examples.len()) }];
            let (is_right, is_low) = (quarter % 2 == 1, quarter / 2 == 1);
            let (x0, x1) = if is_right { (cx, width) } else { (0, cx) };
            let (y0, y1) = if is_low { (cy, height) } else { (0, cy) };
            let fill = ((x1 - x0) as f32 / example.picture.width as f32).max((y1 - y0) as f32 / example.picture.height as f32);
            let scale = jitter(fill * 0.85, [how.scale[0].max(0.7), how.scale[1].min(1.5)], how.aspect, rng);
            let (w, h) = (example.picture.width as f32 * scale.0, example.picture.height as f32 * scale.1);
            // The inner corner touches the centre, shifted inwards by a random part of what does not fit.
            let slack = |room: f32, len: f32, rng: &mut ChaCha8Rng| {
                if len > room { rng.random_range(0.0..1.0) * (len - room) } else { 0.0 }
            };
            let (sx, sy) = (slack((x1 - x0) as f32, w, rng), slack((y1 - y0) as f32, h, rng));
            let origin = (
                if is_right { x0 as f32 - sx } else { x1 as f32 - w + sx },
                if is_low { y0 as f32 - sy } else { y1 as f32 - h + sy },
            );
            let flip = rng.random_range(0.0..1.0) < how.flip;
            place(&mut sample, example, width, &Placement { scale, origin, flip, clip: (x0, y0, x1, y1) });
        }
    } else {
        let example = &examples[first];
        let fit = (width as f32 / example.picture.width as f32).min(height as f32 / example.picture.height as f32);
        let scale = jitter(fit, how.scale, how.aspect, rng);
        let (w, h) = (example.picture.width as f32 * scale.0, example.picture.height as f32 * scale.1);
        let is_fixed = how.scale[0] >= how.scale[1];
        let mut offset = |room: f32| room * if is_fixed { 0.5 } else { rng.random_range(0.0..1.0) };
        let origin = (offset(width as f32 - w), offset(height as f32 - h));
        let flip = rng.random_range(0.0..1.0) < how.flip;
        place(&mut sample, example, width, &Placement { scale, origin, flip, clip: (0, 0, width, height) });
    }
    if how.color > 0.0 && rng.random_range(0.0..1.0) < 0.8 {
        change_colors(&mut sample.pixels, how.color, rng);
    }
    degrade(&mut sample.pixels, size, how, rng);
    sample
}

fn jitter(base: f32, range: [f32; 2], aspect: f32, rng: &mut ChaCha8Rng) -> (f32, f32) {
    let factor = if range[0] < range[1] { rng.random_range(range[0].ln()..range[1].ln()).exp() } else { range[0] };
    let stretch = if aspect > 0.0 { rng.random_range(-aspect..aspect).exp().sqrt() } else { 1.0 };
    (base * factor * stretch, base * factor / stretch)
}

fn place(sample: &mut Sample, example: &Example, width: usize, placement: &Placement) {
    draw(&mut sample.pixels, width, &example.picture, placement);
    let (x0, y0, x1, y1) = placement.clip;
    let area = BBox::new(x0 as f32, y0 as f32, x1 as f32, y1 as f32);
    for label in &example.labels {
        let mut b = label.bbox;
        if placement.flip {
            let w = example.picture.width as f32;
            (b.x1, b.x2) = (w - b.x2, w - b.x1);
        }
        let ((sx, sy), (ox, oy)) = (placement.scale, placement.origin);
        let whole = BBox::new(ox + b.x1 * sx, oy + b.y1 * sy, ox + b.x2 * sx, oy + b.y2 * sy);
        let seen = BBox::new(whole.x1.max(area.x1), whole.y1.max(area.y1), whole.x2.min(area.x2), whole.y2.min(area.y2));
        if seen.width() < 1.0 || seen.height() < 1.0 {
            continue;
        }
        let is_clear = seen.area() >= 0.3 * whole.area() && seen.width() >= 3.0 && seen.height() >= 3.0;
        sample.labels.push(Label { bbox: seen, kind: if is_clear { label.kind } else { LabelKind::Ignore }, ..*label });
    }
    sample.regions.push(Region { area, is_known: example.is_known.clone() });
}

/// Source samples of one canvas coordinate: where they start and their weights, which sum to 1.
struct Taps {
    start: usize,
    weights: Vec<f32>,
}

/// Area filter when shrinking, else bilinear, as preprocessing does it; in floats, as augmentation needs no exact bits.
fn taps(coordinate: usize, origin: f32, scale: f32, len: usize, flip: bool) -> Taps {
    let (mut a, mut b) = ((coordinate as f32 - origin) / scale, (coordinate as f32 + 1.0 - origin) / scale);
    if flip {
        (a, b) = (len as f32 - b, len as f32 - a);
    }
    if scale < 1.0 {
        let (a, b) = (a.clamp(0.0, len as f32 - 0.01), b.clamp(0.01, len as f32));
        let (start, end) = (a as usize, (b.ceil() as usize).clamp(a as usize + 1, len));
        let mut weights: Vec<f32> = (start..end).map(|i| (b.min(i as f32 + 1.0) - a.max(i as f32)).max(1e-6)).collect();
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
        Taps { start, weights }
    } else {
        let center = (0.5 * (a + b) - 0.5).clamp(0.0, len as f32 - 1.0);
        let start = (center as usize).min(len.saturating_sub(2));
        let part = center - start as f32;
        Taps { start, weights: if len == 1 { vec![1.0] } else { vec![1.0 - part, part] } }
    }
}

fn draw(canvas: &mut [u8], canvas_width: usize, picture: &RgbPicture, placement: &Placement) {
    let Placement { scale, origin, flip, clip } = *placement;
    let range = |origin: f32, extent: f32, lo: usize, hi: usize| {
        let from = (origin.round().max(lo as f32) as usize).min(hi);
        from..((origin + extent).round().max(from as f32) as usize).clamp(from, hi)
    };
    let columns = range(origin.0, picture.width as f32 * scale.0, clip.0, clip.2);
    let rows = range(origin.1, picture.height as f32 * scale.1, clip.1, clip.3);
    let column_taps: Vec<Taps> = columns.clone().map(|x| taps(x, origin.0, scale.0, picture.width, flip)).collect();
    let row_len = picture.width * 3;
    let mut line = vec![0.0_f32; row_len];
    for y in rows {
        let vertical = taps(y, origin.1, scale.1, picture.height, false);
        line.fill(0.0);
        for (k, &weight) in vertical.weights.iter().enumerate() {
            let source = &picture.data[(vertical.start + k) * row_len..][..row_len];
            for (sum, &value) in line.iter_mut().zip(source) {
                *sum += weight * f32::from(value);
            }
        }
        let out = &mut canvas[(y * canvas_width + columns.start) * 3..(y * canvas_width + columns.end) * 3];
        for (pixel, taps) in out.chunks_exact_mut(3).zip(&column_taps) {
            let mut sums = [0.5_f32; 3];
            for (&weight, source) in taps.weights.iter().zip(line[taps.start * 3..].chunks_exact(3)) {
                for (sum, &value) in sums.iter_mut().zip(source) {
                    *sum += weight * value;
                }
            }
            for (value, sum) in pixel.iter_mut().zip(sums) {
                *value = sum as u8;
            }
        }
    }
}

/// Saturation, brightness, contrast, and a tint.
fn change_colors(pixels: &mut [u8], strength: f32, rng: &mut ChaCha8Rng) {
    let saturation = if rng.random_range(0.0..1.0) < 0.05 { 0.0 } else { 1.0 + rng.random_range(-1.5..1.5) * strength };
    let contrast = 1.0 + rng.random_range(-1.0..1.0) * strength;
    let brightness = rng.random_range(-60.0..60.0) * strength;
    let tint = [(); 3].map(|()| 1.0 + rng.random_range(-0.2..0.2) * strength);
    for pixel in pixels.chunks_exact_mut(3) {
        let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(f32::from);
        let luma = 0.299 * r + 0.587 * g + 0.114 * b;
        for ((value, color), tint) in pixel.iter_mut().zip([r, g, b]).zip(tint) {
            let saturated = luma + (color - luma) * saturation;
            *value = (((saturated - 128.0) * contrast + 128.0 + brightness) * tint + 0.5) as u8;
        }
    }
}

/// Each of them with its own probability, in the order in which they happen to a picture on its way.
fn degrade(pixels: &mut [u8], size: (usize, usize), how: &Augmentation, rng: &mut ChaCha8Rng) {
    if happens(how.night, rng) {
        // Street lamps have little blue.
        let gains = [1.0, rng.random_range(0.8..1.0), rng.random_range(0.55..1.0)];
        darken(pixels, rng.random_range(1.6..3.2), gains);
        add_noise(pixels, rng.random_range(2.0..10.0), rng);
    }
    if happens(how.blur, rng) {
        // Out of focus, or moved along the rows or the columns.
        let len = 3 + 2 * rng.random_range(0..3);
        let (columns, rows) = [(len, len), (len, 1), (1, len)][rng.random_range(0..3)];
        blur(pixels, size.0, columns, rows);
    }
    if happens(how.noise, rng) {
        add_noise(pixels, rng.random_range(3.0..15.0), rng);
    }
    if happens(how.jpeg, rng) {
        recompress(pixels, size, rng.random_range(25..75));
    }
}

/// Draws nothing where the probability is 0.
fn happens(probability: f32, rng: &mut ChaCha8Rng) -> bool {
    probability > 0.0 && rng.random_range(0.0..1.0) < probability
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    /// A grey picture with one white rectangle, labelled.
    fn example(width: usize, height: usize, rectangle: (usize, usize, usize, usize)) -> Example {
        let mut data = vec![60_u8; width * height * 3];
        let (x1, y1, x2, y2) = rectangle;
        for y in y1..y2 {
            data[(y * width + x1) * 3..(y * width + x2) * 3].fill(255);
        }
        let bbox = BBox::new(x1 as f32, y1 as f32, x2 as f32, y2 as f32);
        let labels = vec![Label { bbox, class: 0, kind: LabelKind::Object }];
        Example { picture: RgbPicture { width, height, data }, labels, is_known: vec![true] }
    }

    /// Smallest box around the white pixels of a canvas.
    fn white_box(pixels: &[u8], width: usize) -> Option<(f32, f32, f32, f32)> {
        let mut found: Option<(usize, usize, usize, usize)> = None;
        for (at, pixel) in pixels.chunks_exact(3).enumerate().filter(|(_, pixel)| pixel[0] > 190) {
            let (x, y) = (at % width, at / width);
            let _ = pixel;
            found = Some(found.map_or((x, y, x + 1, y + 1), |(a, b, c, d)| (a.min(x), b.min(y), c.max(x + 1), d.max(y + 1))));
        }
        found.map(|(a, b, c, d)| (a as f32, b as f32, c as f32, d as f32))
    }

    #[test]
    fn labels_stay_on_their_pixels() {
        let examples = [example(160, 120, (20, 30, 90, 80))];
        let how = Augmentation { scale: [0.55, 1.7], aspect: 0.15, ..Augmentation::FLIP_ONLY };
        let mut n_checked = 0;
        for seed in 0..200 {
            let sample = sample(&examples, 0, (208, 128), &how, &mut ChaCha8Rng::seed_from_u64(seed));
            let (Some((x1, y1, x2, y2)), Some(label)) = (white_box(&sample.pixels, 208), sample.labels.first()) else { continue };
            n_checked += 1;
            for (got, want) in label.bbox.to_array().into_iter().zip([x1, y1, x2, y2]) {
                assert!((got - want).abs() <= 1.5, "seed {seed}: label {:?}, pixels {:?}", label.bbox, (x1, y1, x2, y2));
            }
        }
        assert!(n_checked > 150, "only {n_checked} samples show the rectangle");
    }

    #[test]
    fn a_mosaic_knows_what_each_quarter_knows() {
        let mut examples = [example(100, 100, (10, 10, 60, 60)), example(100, 100, (10, 10, 60, 60))];
        examples[1].is_known = vec![false];
        let how = Augmentation { mosaic: 1.0, color: 0.0, ..Augmentation::default() };
        let sample = sample(&examples, 0, (128, 96), &how, &mut ChaCha8Rng::seed_from_u64(5));
        assert_eq!(sample.regions.len(), 4);
        let area: f32 = sample.regions.iter().map(|region| region.area.area()).sum();
        assert!((area - 128.0 * 96.0).abs() < 1.0, "the quarters cover the input: {area}");
        assert_eq!(sample.regions[0].is_known, [true]);
        assert_eq!(sample.pixels.len(), 128 * 96 * 3);
    }

    #[test]
    fn the_paper_only_mirrors() {
        let examples = [example(208, 128, (20, 30, 90, 80))];
        let boxes: std::collections::BTreeSet<String> = (0..20)
            .map(|seed| {
                let sample = sample(&examples, 0, (208, 128), &Augmentation::FLIP_ONLY, &mut ChaCha8Rng::seed_from_u64(seed));
                format!("{:?}", sample.labels[0].bbox.to_array().map(f32::round))
            })
            .collect();
        let want = ["[118.0, 30.0, 188.0, 80.0]", "[20.0, 30.0, 90.0, 80.0]"];
        assert_eq!(boxes.into_iter().collect::<Vec<_>>(), want);
    }

    #[test]
    fn what_happens_to_a_picture_follows_the_seed() {
        let all = Augmentation { night: 1.0, blur: 1.0, noise: 1.0, jpeg: 1.0, ..Augmentation::FLIP_ONLY };
        let size = (64, 48);
        let ramp: Vec<u8> = (0..64 * 48).flat_map(|at| [(at % 64 * 3) as u8, (at / 64 * 4) as u8, 120]).collect();
        let made = |how: &Augmentation, seed: u64| {
            let mut pixels = ramp.clone();
            degrade(&mut pixels, size, how, &mut ChaCha8Rng::seed_from_u64(seed));
            pixels
        };
        assert_eq!(made(&all, 1), made(&all, 1));
        assert_ne!(made(&all, 1), made(&all, 2));
        assert_eq!(made(&Augmentation::FLIP_ONLY, 1), ramp);
    }
}
