//! Reference boxes: sizes x aspect ratios at every cell of every level.
//!
//! Paper section 4 ("Anchors"); order and conventions after detectron2 `modeling/anchor_generator.py` and torchvision
//! `models/detection/anchor_utils.py`: levels from the finest, then rows, columns, anchors of the cell. Within a cell
//! the index is ratio-major: `a = ratio_idx x n_scales + scale_idx`.

use crate::detection::BBox;
use serde::{Deserialize, Serialize};

/// How far apart the anchors of neighbouring cells are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorStride {
    /// The level's stride (detectron2).
    #[default]
    Nominal,
    /// Input size over grid size, rounded down (torchvision).
    FromGrid,
}

/// The anchors of a model, as its manifest states them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorConfig {
    /// Side of the square anchor of scale 1, in pixels of the network input, one per level from the finest.
    pub base_sizes: Vec<f32>,
    /// Factors on the base size; the paper has 2^0, 2^(1/3), 2^(2/3).
    pub scales: Vec<f32>,
    /// Height over width; the paper has 1:2, 1:1, 2:1.
    pub aspect_ratios: Vec<f32>,
    /// Where in its cell an anchor's centre lies, in strides: 0 (detectron2, torchvision) or 0.5.
    #[serde(default)]
    pub center_offset: f32,
    /// Round half sizes to whole pixels (torchvision).
    #[serde(default)]
    pub round: bool,
    /// Cut sizes down to whole pixels before the ratio is applied (torchvision's RetinaNet).
    #[serde(default)]
    pub truncate_sizes: bool,
    /// Distance between cells.
    #[serde(default)]
    pub stride: AnchorStride,
}

impl AnchorConfig {
    /// `base` x stride on levels with `strides`, with `n_scales` scales to the octave and the paper's three ratios.
    #[must_use]
    pub fn octaves(base: f32, strides: &[usize], n_scales: u8) -> Self {
        let scale = |i: u8| narrow(libm::exp2(f64::from(i) / f64::from(n_scales)));
        Self {
            base_sizes: strides.iter().map(|&stride| base * small(stride)).collect(),
            scales: (0..n_scales).map(scale).collect(),
            aspect_ratios: vec![0.5, 1.0, 2.0],
            center_offset: 0.0,
            round: false,
            truncate_sizes: false,
            stride: AnchorStride::Nominal,
        }
    }

    /// Anchors in one cell: scales x ratios.
    #[must_use]
    pub const fn n_per_cell(&self) -> usize {
        self.scales.len() * self.aspect_ratios.len()
    }

    /// Widths and heights of the anchors of a cell of level `level_idx`, ratio-major.
    fn cell_sizes(&self, level_idx: usize) -> Vec<(f32, f32)> {
        let base = f64::from(self.base_sizes[level_idx]);
        let mut sizes = Vec::with_capacity(self.n_per_cell());
        for &ratio in &self.aspect_ratios {
            for &scale in &self.scales {
                let mut side = base * f64::from(scale);
                if self.truncate_sizes {
                    side = libm::trunc(side);
                }
                let root = libm::sqrt(f64::from(ratio));
                sizes.push((narrow(side / root), narrow(side * root)));
            }
        }
        sizes
    }
}

/// The anchors of one level: everything [`Self::bbox`] needs, without a box per cell in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelAnchors {
    /// Columns and rows of the feature map.
    pub grid: (usize, usize),
    /// Distance between the centres of neighbouring cells, in x and y, in pixels of the network input.
    pub step: (f32, f32),
    /// Centre of the first cell.
    pub origin: (f32, f32),
    /// Anchors around a centre at 0, ratio-major.
    pub cell_anchors: Vec<BBox>,
}

impl LevelAnchors {
    /// Anchors on this level.
    #[must_use]
    pub fn len(&self) -> usize {
        self.grid.0 * self.grid.1 * self.cell_anchors.len()
    }

    /// Whether the level has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Anchor `a` of the cell in column `x`, row `y`, in pixels of the network input.
    #[must_use]
    pub fn bbox(&self, x: usize, y: usize, a: usize) -> BBox {
        let cell = self.cell_anchors[a];
        let (cx, cy) = (self.origin.0 + small(x) * self.step.0, self.origin.1 + small(y) * self.step.1);
        BBox::new(cx + cell.x1, cy + cell.y1, cx + cell.x2, cy + cell.y2)
    }
}

/// The anchors of every level, from the finest.
#[derive(Debug, Clone, PartialEq)]
pub struct Anchors {
    /// One entry per level.
    pub levels: Vec<LevelAnchors>,
}

impl Anchors {
    /// Anchors of a network with `input` pixels (width, height) and feature maps of `grids` cells at `strides`.
    ///
    /// # Panics
    /// If `config`, `strides` and `grids` differ in their number of levels.
    #[must_use]
    pub fn new(config: &AnchorConfig, input: (usize, usize), strides: &[usize], grids: &[(usize, usize)]) -> Self {
        assert!(config.base_sizes.len() == strides.len() && strides.len() == grids.len(), "one size, stride and grid a level");
        let level = |(level_idx, (&stride, &grid)): (usize, (&usize, &(usize, usize)))| {
            let step = match config.stride {
                AnchorStride::Nominal => (small(stride), small(stride)),
                AnchorStride::FromGrid => (small(input.0 / grid.0.max(1)), small(input.1 / grid.1.max(1))),
            };
            let cell = |&(width, height): &(f32, f32)| {
                let (mut half_w, mut half_h) = (0.5 * width, 0.5 * height);
                if config.round {
                    (half_w, half_h) = (half_w.round_ties_even(), half_h.round_ties_even());
                }
                BBox::new(-half_w, -half_h, half_w, half_h)
            };
            LevelAnchors {
                grid,
                step,
                origin: (config.center_offset * step.0, config.center_offset * step.1),
                cell_anchors: config.cell_sizes(level_idx).iter().map(cell).collect(),
            }
        };
        Self { levels: strides.iter().zip(grids).enumerate().map(level).collect() }
    }

    /// Number of anchors over all levels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.levels.iter().map(LevelAnchors::len).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every anchor in order: level, row, column, anchor of the cell.
    pub fn iter(&self) -> impl Iterator<Item = BBox> + '_ {
        self.levels.iter().flat_map(|level| {
            let (width, height) = level.grid;
            let cells = (0..height).flat_map(move |y| (0..width).map(move |x| (x, y)));
            cells.flat_map(move |(x, y)| (0..level.cell_anchors.len()).map(move |a| level.bbox(x, y, a)))
        })
    }
}

/// Exact: pixels and cells are far below 2^24.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^24")]
const fn small(n: usize) -> f32 {
    n as f32
}

#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
fn narrow(x: f64) -> f32 {
    x as f32
}
