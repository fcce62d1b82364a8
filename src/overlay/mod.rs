//! Draws detections on a picture: boxes, class names with scores, the number of the frame.
//!
//! In: a [`PictureMut`] of any of the seven formats and [`Detection`]s in its pixels. OpenCV draws on the planes
//! themselves, nothing is converted: luma at full size, chroma at half size. Rectangles lie on even coordinates, so
//! that luma and chroma of one edge agree. Text is luma only: the label below it already has the colour. Sizes follow
//! the picture: the same detections are readable at 320 pixels and at 4K. A label stays inside the picture; one that
//! does not fit is shortened, then left out.

mod color;
mod mat;

use crate::detection::Detection;
use crate::frame::{PictureMut, PixelFormat, PlaneMut};
use color::{BLACK, Rgb, WHITE};
use opencv::core::{Point, Rect, Scalar, Size};
use opencv::imgproc::{FILLED, FONT_HERSHEY_SIMPLEX, LINE_8, LINE_AA, get_text_size, put_text, rectangle};
use std::fmt::Write;

/// OpenCV could not draw; the picture may be drawn on in part.
#[derive(Debug, thiserror::Error)]
#[error("drawing failed: {0}")]
pub struct OverlayError(String);

impl From<opencv::Error> for OverlayError {
    fn from(error: opencv::Error) -> Self {
        Self(error.message)
    }
}

/// Draws; keeps its buffers from picture to picture.
#[derive(Debug, Default)]
pub struct Overlay {
    text: String,
    /// Ink of one label, where a format has no luma plane of its own.
    ink: Vec<u8>,
}

/// Sizes in pixels that suit a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measures {
    /// Width of box edges, even.
    line: i32,
    /// Hershey font scale, stroke width, and space around the text.
    font_scale: f64,
    stroke: i32,
    margin: i32,
}

/// Height of a capital letter of the Hershey fonts at scale 1.
const CAP_HEIGHT: f64 = 21.0;

impl Measures {
    fn of(width: i32, height: i32) -> Self {
        let short = width.min(height);
        let cap_height = f64::from(short / 55).max(9.0);
        Self {
            line: even(short / 240).max(2),
            font_scale: cap_height / CAP_HEIGHT,
            stroke: (short / 400).max(1),
            margin: (short / 200).max(2),
        }
    }

    fn text_size(&self, text: &str) -> opencv::Result<TextSize> {
        let mut baseline = 0;
        let Size { width, height } = get_text_size(text, FONT_HERSHEY_SIMPLEX, self.font_scale, self.stroke, &mut baseline)?;
        Ok(TextSize { width: width + 2 * self.margin, height: height + baseline + 2 * self.margin, ascent: height + self.margin })
    }
}

/// A label with its margins.
struct TextSize {
    width: i32,
    height: i32,
    /// From the top to the line that letters stand on.
    ascent: i32,
}

const fn even(x: i32) -> i32 {
    x & !1
}

impl Overlay {
    /// Nothing is drawn yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Draws `detections`, the best on top, with names from `labels`, and `frame_number` in the corner.
    ///
    /// # Errors
    /// [`OverlayError`] if OpenCV fails.
    pub fn draw(
        &mut self,
        picture: &mut PictureMut<'_>,
        detections: &[Detection],
        labels: &[String],
        frame_number: Option<u64>,
    ) -> Result<(), OverlayError> {
        let measures = Measures::of(side(picture.width), side(picture.height));
        for detection in detections.iter().rev() {
            let color = Rgb::of_class(detection.class_id.index());
            if let Some(bbox) = rect_of(detection, picture, measures.line) {
                draw_box(picture, bbox, measures.line, color)?;
                self.draw_label(picture, bbox, measures, detection, labels)?;
            }
        }
        if let Some(frame_number) = frame_number {
            self.text.clear();
            let _ = write!(self.text, "{frame_number}");
            let size = measures.text_size(&self.text)?;
            self.draw_text(picture, (0, 0), &size, measures, BLACK)?;
        }
        Ok(())
    }

    fn draw_label(
        &mut self,
        picture: &mut PictureMut<'_>,
        bbox: Rect,
        measures: Measures,
        detection: &Detection,
        labels: &[String],
    ) -> opencv::Result<()> {
        let name = labels.get(detection.class_id.index()).map_or("?", String::as_str);
        let (width, height) = (side(picture.width), side(picture.height));
        self.text.clear();
        let _ = write!(self.text, "{name} {:.2}", detection.score);
        let mut size = measures.text_size(&self.text)?;
        if size.width > width {
            self.text.truncate(name.len());
            size = measures.text_size(&self.text)?;
        }
        if size.width > width || size.height > height {
            return Ok(());
        }
        let above = bbox.y - size.height;
        let y = if above >= 0 { above } else { bbox.y.min(height - size.height) };
        let x = bbox.x.min(width - size.width);
        self.draw_text(picture, (even(x.max(0)), even(y.max(0))), &size, measures, Rgb::of_class(detection.class_id.index()))
    }

    /// Draws `self.text` on a ground of `color`, its upper left corner at `(x, y)`, if it fits.
    fn draw_text(
        &mut self,
        picture: &mut PictureMut<'_>,
        (x, y): (i32, i32),
        size: &TextSize,
        measures: Measures,
        color: Rgb,
    ) -> opencv::Result<()> {
        let (width, height) = (side(picture.width), side(picture.height));
        if x + size.width > width || y + size.height > height {
            return Ok(());
        }
        let ground = Rect::new(x, y, size.width, size.height);
        fill(picture, ground, color)?;
        let ink = if color == BLACK { WHITE } else { color.ink() };
        let origin = Point::new(x + measures.margin, y + size.ascent);
        let Measures { font_scale, stroke, .. } = measures;
        let write = |mat: &mut opencv::boxed_ref::BoxedRefMut<'_, opencv::core::Mat>, origin, text: &str, ink| {
            put_text(mat, text, origin, FONT_HERSHEY_SIMPLEX, font_scale, ink, stroke, LINE_AA, false)
        };
        if picture.format == PixelFormat::Yuy2 {
            let (rows, cols) = (index(size.height), index(size.width));
            self.ink.clear();
            self.ink.resize(rows * cols, 0);
            let mut scratch = PlaneMut { data: &mut self.ink, stride_bytes: cols };
            let mut mat = mat::over_plane(&mut scratch, rows, cols, 1)?;
            write(&mut mat, Point::new(measures.margin, size.ascent), &self.text, Scalar::all(255.0))?;
            drop(mat);
            let [luma, _, _] = ink.yuv(picture.color);
            let plane = picture.plane_mut(0);
            for (row, ink) in self.ink.chunks_exact(cols).enumerate() {
                let start = plane.stride_bytes * (index(y) + row) + 2 * index(x);
                for (sample, &coverage) in plane.data[start..].iter_mut().step_by(2).zip(ink) {
                    *sample = blend(*sample, luma, coverage);
                }
            }
            return Ok(());
        }
        let layer = layers(picture.format)[0];
        let scalar = layer.scalar(ink, picture);
        let mut mat = mat_of(picture, 0, layer)?;
        write(&mut mat, origin, &self.text, scalar)
    }
}

/// `ground` covered by `ink` to `coverage` of 255.
fn blend(ground: u8, ink: u8, coverage: u8) -> u8 {
    let (ground, ink, coverage) = (u32::from(ground), u32::from(ink), u32::from(coverage));
    u8::try_from((ground * (255 - coverage) + ink * coverage + 127) / 255).unwrap_or(u8::MAX)
}

/// What a plane holds.
#[derive(Debug, Clone, Copy)]
struct Layer {
    samples: Samples,
    /// Pixels of the picture to one sample, across and down.
    per_sample: (usize, usize),
}

#[derive(Debug, Clone, Copy)]
enum Samples {
    Luma,
    CbCr,
    Cb,
    Cr,
    /// Two pixels: `Y Cb Y Cr`.
    Yuyv,
    Rgb,
    Rgba,
    Bgrx,
    Gray,
}

const fn layers(format: PixelFormat) -> &'static [Layer] {
    const fn full(samples: Samples) -> Layer {
        Layer { samples, per_sample: (1, 1) }
    }
    const fn half(samples: Samples) -> Layer {
        Layer { samples, per_sample: (2, 2) }
    }
    match format {
        PixelFormat::Nv12 => const { &[full(Samples::Luma), half(Samples::CbCr)] },
        PixelFormat::I420 => const { &[full(Samples::Luma), half(Samples::Cb), half(Samples::Cr)] },
        PixelFormat::Yuy2 => const { &[Layer { samples: Samples::Yuyv, per_sample: (2, 1) }] },
        PixelFormat::Rgb => const { &[full(Samples::Rgb)] },
        PixelFormat::Rgba => const { &[full(Samples::Rgba)] },
        PixelFormat::Bgrx => const { &[full(Samples::Bgrx)] },
        PixelFormat::Gray8 => const { &[full(Samples::Gray)] },
    }
}

impl Layer {
    const fn channels(self) -> i32 {
        match self.samples {
            Samples::Luma | Samples::Cb | Samples::Cr | Samples::Gray => 1,
            Samples::CbCr => 2,
            Samples::Rgb => 3,
            Samples::Yuyv | Samples::Rgba | Samples::Bgrx => 4,
        }
    }

    /// A colour in the samples of this plane.
    fn scalar(self, color: Rgb, picture: &PictureMut<'_>) -> Scalar {
        let [y, cb, cr] = color.yuv(picture.color);
        let [r, g, b] = color.0;
        let samples = match self.samples {
            Samples::Luma => [y, 0, 0, 0],
            Samples::CbCr => [cb, cr, 0, 0],
            Samples::Cb => [cb, 0, 0, 0],
            Samples::Cr => [cr, 0, 0, 0],
            Samples::Yuyv => [y, cb, y, cr],
            Samples::Rgb | Samples::Rgba => [r, g, b, 255],
            Samples::Bgrx => [b, g, r, 255],
            Samples::Gray => [color.gray(), 0, 0, 0],
        };
        let [a, b, c, d] = samples.map(f64::from);
        Scalar::new(a, b, c, d)
    }
}

fn mat_of<'a>(
    picture: &'a mut PictureMut<'_>,
    plane_idx: usize,
    layer: Layer,
) -> opencv::Result<opencv::boxed_ref::BoxedRefMut<'a, opencv::core::Mat>> {
    let (rows, cols) = (picture.height.div_ceil(layer.per_sample.1), picture.width.div_ceil(layer.per_sample.0));
    mat::over_plane(picture.plane_mut(plane_idx), rows, cols, layer.channels())
}

/// Fills a rectangle on every plane. It lies inside the picture; its corner is on even coordinates.
fn fill(picture: &mut PictureMut<'_>, rect: Rect, color: Rgb) -> opencv::Result<()> {
    for (plane_idx, &layer) in layers(picture.format).iter().enumerate() {
        let (dx, dy) = (side(layer.per_sample.0), side(layer.per_sample.1));
        let (x, y) = (rect.x / dx, rect.y / dy);
        let (right, bottom) = ((rect.x + rect.width + dx - 1) / dx, (rect.y + rect.height + dy - 1) / dy);
        let scalar = layer.scalar(color, picture);
        let mut mat = mat_of(picture, plane_idx, layer)?;
        rectangle(&mut mat, Rect::new(x, y, right - x, bottom - y), scalar, FILLED, LINE_8, 0)?;
    }
    Ok(())
}

/// The four edges of a box.
fn draw_box(picture: &mut PictureMut<'_>, bbox: Rect, line: i32, color: Rgb) -> opencv::Result<()> {
    let Rect { x, y, width, height } = bbox;
    let (line_x, line_y) = (line.min(width), line.min(height));
    fill(picture, Rect::new(x, y, width, line_y), color)?;
    fill(picture, Rect::new(x, even(y + height - line_y), width, line_y.min(height)), color)?;
    fill(picture, Rect::new(x, y, line_x, height), color)?;
    fill(picture, Rect::new(even(x + width - line_x), y, line_x.min(width), height), color)
}

/// The box in whole pixels inside the picture, its corners on even coordinates where there is room; `None` where
/// nothing of it is in the picture.
fn rect_of(detection: &Detection, picture: &PictureMut<'_>, line: i32) -> Option<Rect> {
    let (width, height) = (side(picture.width), side(picture.height));
    #[expect(clippy::cast_possible_truncation, reason = "clamped to the picture before")]
    let at = |position: f32, limit: i32| f64::from(position).clamp(0.0, f64::from(limit)).round() as i32;
    let bbox = &detection.bbox;
    let sides = [bbox.x1, bbox.y1, bbox.x2, bbox.y2];
    if sides.iter().any(|side| side.is_nan()) || bbox.x2 <= 0.0 || bbox.y2 <= 0.0 {
        return None;
    }
    let (x, y) = (even(at(bbox.x1, width)), even(at(bbox.y1, height)));
    if x >= width || y >= height {
        return None;
    }
    // A box is at least as large as its edges.
    let far = |start: i32, end: i32, limit: i32| (even(end + 1).max(start + line)).min(limit);
    let (right, bottom) = (far(x, at(bbox.x2, width), width), far(y, at(bbox.y2, height), height));
    Some(Rect::new(x, y, right - x, bottom - y))
}

fn side(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn index(n: i32) -> usize {
    usize::try_from(n).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detection::{BBox, ClassId};
    use crate::frame::{ColorInfo, ColorMatrix, ColorRange, PictureRef, PlaneRef};
    use crate::images::{self, RgbPicture};
    use crate::preprocess::Preprocessor;

    /// A picture in memory, rows padded.
    struct Canvas {
        format: PixelFormat,
        size: (usize, usize),
        color: ColorInfo,
        planes: [(Vec<u8>, usize); 3],
    }

    impl Canvas {
        /// A dark grey picture.
        fn new(format: PixelFormat, (width, height): (usize, usize), color: ColorInfo) -> Self {
            let planes = [0, 1, 2].map(|plane_idx| {
                let Some(size) = format.plane_size(plane_idx, width, height) else { return (Vec::new(), 0) };
                let stride_bytes = size.row_bytes + 5;
                let chroma = plane_idx > 0;
                let sample = |i: usize| if chroma || format == PixelFormat::Yuy2 && i % 2 == 1 { 128 } else { 60 };
                let row = (0..stride_bytes).map(sample);
                (row.cycle().take(stride_bytes * size.rows).collect(), stride_bytes)
            });
            Self { format, size: (width, height), color, planes }
        }

        fn draw(&mut self, detections: &[Detection], frame_number: Option<u64>) {
            let [a, b, c] = &mut self.planes;
            let planes = [a, b, c].map(|(data, stride_bytes)| PlaneMut { data, stride_bytes: *stride_bytes });
            let mut picture = PictureMut::new(self.format, self.size.0, self.size.1, self.color, planes).unwrap();
            let labels = ["person".to_owned(), "bicycle".to_owned(), "car".to_owned()];
            Overlay::new().draw(&mut picture, detections, &labels, frame_number).unwrap();
        }

        /// The picture as RGB: preprocessing at scale 1, the pads cut off.
        fn rgb(&self) -> RgbPicture {
            let planes = [0, 1, 2].map(|i| PlaneRef { data: &self.planes[i].0, stride_bytes: self.planes[i].1 });
            let (width, height) = self.size;
            let picture = PictureRef::new(self.format, width, height, self.color, planes).unwrap();
            let mut data = vec![0; width * height * 3];
            let letterbox = Preprocessor::new(self.size).run(&picture, &mut data);
            assert_eq!(letterbox.resized, self.size);
            RgbPicture { width, height, data }
        }

        fn padding_is_untouched(&self) -> bool {
            (0..self.format.n_planes()).all(|plane_idx| {
                let size = self.format.plane_size(plane_idx, self.size.0, self.size.1).unwrap();
                let (data, stride_bytes) = &self.planes[plane_idx];
                let fresh = Self::new(self.format, self.size, self.color);
                let pads =
                    |data: &[u8]| data.chunks(*stride_bytes).flat_map(|row| row[size.row_bytes..].to_vec()).collect::<Vec<_>>();
                pads(data) == pads(&fresh.planes[plane_idx].0)
            })
        }
    }

    fn detection(class: u16, bbox: [f32; 4]) -> Detection {
        let [x1, y1, x2, y2] = bbox;
        Detection { bbox: BBox::new(x1, y1, x2, y2), class_id: ClassId(class), score: 0.87 }
    }

    fn pixel(picture: &RgbPicture, x: usize, y: usize) -> [u8; 3] {
        let at = 3 * (y * picture.width + x);
        [picture.data[at], picture.data[at + 1], picture.data[at + 2]]
    }

    fn is_near(found: [u8; 3], want: [u8; 3], tolerance: u8) -> bool {
        found.iter().zip(want).all(|(&a, b)| a.abs_diff(b) <= tolerance)
    }

    /// To look at the pictures, compile with `FOVEA_OVERLAY_DIR` set to a folder.
    fn keep(name: &str, picture: &RgbPicture) {
        if let Some(folder) = option_env!("FOVEA_OVERLAY_DIR") {
            images::save(&std::path::Path::new(folder).join(format!("{name}.png")), picture).unwrap();
        }
    }

    const COLORS: [ColorInfo; 2] = [
        ColorInfo { matrix: ColorMatrix::Bt601, range: ColorRange::Limited },
        ColorInfo { matrix: ColorMatrix::Bt709, range: ColorRange::Full },
    ];

    #[test]
    fn the_same_picture_in_every_format() {
        for format in PixelFormat::ALL {
            for color in COLORS {
                let mut canvas = Canvas::new(format, (321, 241), color);
                canvas.draw(&[detection(0, [40.0, 60.0, 120.0, 200.0]), detection(2, [200.0, 100.0, 321.0, 241.0])], Some(42));
                assert!(canvas.padding_is_untouched(), "{format}");
                let picture = canvas.rgb();
                keep(&format!("{format}-{:?}", color.matrix), &picture);
                for (class, x, y) in [(0, 41, 130), (0, 80, 61), (0, 119, 130), (0, 80, 199), (2, 201, 170), (2, 260, 101)] {
                    let want = Rgb::of_class(class);
                    let want = if format == PixelFormat::Gray8 { [want.gray(); 3] } else { want.0 };
                    // An edge is one sample of chroma wide, and the conversion interpolates between samples.
                    let tolerance = if format.is_yuv() { 64 } else { 2 };
                    assert!(
                        is_near(pixel(&picture, x, y), want, tolerance),
                        "{format} {color:?} ({x}, {y}): {:?}",
                        pixel(&picture, x, y)
                    );
                }
                // Inside and outside the boxes nothing changes.
                let fresh = Canvas::new(format, (321, 241), color).rgb();
                for (x, y) in [(80, 130), (260, 170), (160, 220), (30, 130)] {
                    assert_eq!(pixel(&picture, x, y), pixel(&fresh, x, y), "{format} ({x}, {y})");
                }
                // Dark letters on the light label of a person, above the box.
                let label = (44..100).flat_map(|x| (46..58).map(move |y| (x, y)));
                let dark = label.filter(|&(x, y)| pixel(&picture, x, y)[1] < 90).count();
                assert!((30..500).contains(&dark), "{format}: {dark} dark pixels");
            }
        }
    }

    #[test]
    fn any_size_and_any_box() {
        let boxes = [
            [-50.0, -50.0, 9999.0, 9999.0],
            [0.0, 0.0, 0.0, 0.0],
            [5.0, 5.0, 5.2, 5.2],
            [9000.0, 9000.0, 9999.0, 9999.0],
            [-20.0, 1.0, -10.0, 2.0],
            [f32::NAN, 0.0, 1.0, 1.0],
            [f32::NEG_INFINITY, f32::NEG_INFINITY, f32::INFINITY, f32::INFINITY],
        ];
        let detections = boxes.map(|bbox| detection(1, bbox));
        for format in PixelFormat::ALL {
            for size in [(1, 1), (2, 1), (1, 7), (3, 3), (17, 9), (50, 31), (321, 241)] {
                let mut canvas = Canvas::new(format, size, COLORS[0]);
                canvas.draw(&detections, Some(u64::MAX));
                assert!(canvas.padding_is_untouched(), "{format} {size:?}");
            }
        }
    }

    #[test]
    fn readable_from_320_pixels_to_4k() {
        for (width, height) in [(320, 180), (1920, 1080), (3840, 2160)] {
            let mut canvas = Canvas::new(PixelFormat::Nv12, (width, height), COLORS[1]);
            #[expect(clippy::cast_precision_loss, reason = "sides of a picture")]
            let (w, h) = (width as f32, height as f32);
            canvas.draw(
                &[
                    detection(0, [0.1 * w, 0.3 * h, 0.3 * w, 0.9 * h]),
                    detection(1, [0.4 * w, 0.0, 0.6 * w, 0.5 * h]),
                    detection(2, [0.9 * w, 0.4 * h, w, 0.8 * h]),
                ],
                Some(1234),
            );
            keep(&format!("size-{width}"), &canvas.rgb());
            let measures = Measures::of(side(width), side(height));
            let text = measures.text_size("person 0.87").unwrap();
            // Letters of at least 9 pixels; a label of a 15th to a quarter of the width.
            assert!(
                text.height >= 13 && text.width * 15 >= side(width) && text.width * 4 <= side(width) + 120,
                "{width}: {}",
                text.width
            );
            assert!(measures.line >= 2 && measures.line % 2 == 0);
        }
    }
}
