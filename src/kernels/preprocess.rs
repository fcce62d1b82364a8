//! From rows of a picture to rows of red, green, blue: weighted rows, weighted columns and colour matrix in one pass
//! (`docs/preprocess.md`). [`scalar`] is the specification.
//!
//! Vector kernels share the frame below and bring the three loops. What they do not do: multiply 8-bit samples by 14-bit
//! weights. A weight is cut into `128 x high + low`, and because seven bits are dropped after the sum,
//! `(sum of weight x sample + 64) >> 7 = sum of high x sample + ((sum of low x sample + 64) >> 7)` exactly: two sums of 16 bits.

#[cfg(target_arch = "aarch64")]
use super::aarch64::neon;
use super::scalar::{self, ColorCoefficients, Taps, WEIGHT_BITS};
#[cfg(target_arch = "x86_64")]
use super::x86_64::{avx2, avx512vnni};
use super::{Isa, Kernels};
use crate::frame::PlaneRef;
use std::fmt::Debug;

/// What every output sample along one axis is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TapTable {
    /// First sample, and where its weights begin.
    first: Vec<(usize, usize)>,
    weights: Vec<u16>,
}

impl TapTable {
    /// Appends an output sample: weights from sample `start` on, adding up to `1 << WEIGHT_BITS`.
    ///
    /// # Panics
    /// If the weights add up to something else.
    pub fn push(&mut self, start: usize, weights: impl IntoIterator<Item = u16>) {
        let begin = self.weights.len();
        self.first.push((start, begin));
        self.weights.extend(weights);
        let sum: u32 = self.weights[begin..].iter().map(|&weight| u32::from(weight)).sum();
        assert_eq!(sum, 1 << WEIGHT_BITS, "weights of one output sample add up");
    }

    /// Number of output samples.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.first.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// The same output samples in the opposite order.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let mut reversed = Self::default();
        for taps in (0..self.len()).rev().map(|idx| self.taps(idx)) {
            reversed.push(taps.start, taps.weights.iter().copied());
        }
        reversed
    }

    /// What output sample `idx` is made of.
    #[must_use]
    pub fn taps(&self, idx: usize) -> Taps<'_> {
        let (start, begin) = self.first[idx];
        let end = self.first.get(idx + 1).map_or(self.weights.len(), |next| next.1);
        Taps { start, weights: &self.weights[begin..end] }
    }
}

/// One plane of the pictures.
#[derive(Debug, Clone)]
pub struct PlaneSpec {
    /// Bytes of a row without padding.
    pub row_bytes: usize,
    /// Which rows make an output row.
    pub rows: TapTable,
}

/// Where the samples of a component begin.
#[derive(Debug, Clone, Copy)]
pub struct Component {
    /// Which plane.
    pub plane_idx: usize,
    /// Bytes from the start of a row to the first sample.
    pub offset: usize,
}

/// Components whose samples lie alike.
#[derive(Debug, Clone)]
pub struct Grid {
    /// Bytes from one sample to the next.
    pub step: usize,
    /// Which samples make an output sample.
    pub columns: TapTable,
    /// Those components.
    pub components: Vec<Component>,
}

/// What is computed for pictures of one format and size.
#[derive(Debug, Clone)]
pub struct PictureSpec {
    /// One to three.
    pub planes: Vec<PlaneSpec>,
    /// One grid of grey or of red, green, blue; or one of luma and one of the two chroma components.
    pub grids: Vec<Grid>,
}

impl PictureSpec {
    /// Output rows and columns.
    fn output(&self) -> (usize, usize) {
        (self.planes[0].rows.len(), self.grids[0].columns.len())
    }

    fn components(&self) -> impl Iterator<Item = (&Grid, Component)> {
        self.grids.iter().flat_map(|grid| grid.components.iter().map(move |&component| (grid, component)))
    }

    /// # Panics
    /// If the parts contradict each other.
    fn check(&self) {
        let (n_rows, n_columns) = self.output();
        assert!((1..=3).contains(&self.planes.len()) && self.planes.iter().all(|plane| plane.rows.len() == n_rows));
        let members: Vec<usize> = self.grids.iter().map(|grid| grid.components.len()).collect();
        assert!(matches!(members[..], [1 | 3] | [1, 2]), "grey, RGB, or luma and chroma: {members:?}");
        for (grid, component) in self.components() {
            assert!(grid.columns.len() == n_columns, "grids of one output");
            let row_bytes = self.planes[component.plane_idx].row_bytes;
            for taps in (0..n_columns).map(|x| grid.columns.taps(x)) {
                let last = taps.start + taps.weights.len() - 1;
                assert!(component.offset + last * grid.step < row_bytes, "sample {last} of {row_bytes} bytes");
            }
        }
    }
}

/// [`PictureSpec`] prepared for one instruction set.
pub trait PictureKernel: Debug + Send + Sync {
    /// Computes output row `y` from the planes of a picture: three bytes a pixel. Luma and chroma go through `matrix`, which
    /// is not looked at otherwise.
    ///
    /// # Panics
    /// If a plane has too few bytes or `rgb` another length.
    fn row(&mut self, y: usize, planes: [PlaneRef<'_>; 3], matrix: &ColorCoefficients, rgb: &mut [u8]);
}

impl Kernels {
    /// Prepares the preprocessing of pictures of one format and size.
    ///
    /// # Panics
    /// If the parts of the specification contradict each other.
    #[must_use]
    pub fn prepare_picture(self, spec: &PictureSpec) -> Box<dyn PictureKernel> {
        spec.check();
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => Box::new(Fused::<avx2::PictureLoops>::new(spec)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Box::new(Fused::<avx512vnni::PictureLoops>::new(spec)),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::Dotprod | Isa::I8mm => Box::new(Fused::<neon::PictureLoops>::new(spec)),
            _ => Box::new(scalar::Picture::new(spec)),
        }
    }
}

/// Two rows and their weights; both may be one row.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowPair {
    pub(super) rows: [usize; 2],
    /// Sum at most `1 << WEIGHT_BITS`, each below it.
    #[cfg_attr(target_arch = "x86_64", expect(dead_code, reason = "for unsigned multiplications"))]
    pub(super) weights: [u16; 2],
    /// `weight = 128 x high + low`, twice each pair. High parts are not negative and add up to at most 128; low parts are
    /// -63 to 127 and their magnitudes add up to at most 128: `255 x 128` fits 16 bits.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for signed multiplications"))]
    pub(super) high: [i8; 4],
    pub(super) low: [i8; 4],
}

impl RowPair {
    fn new(rows: [usize; 2], weights: [u16; 2]) -> Self {
        let [a, b] = weights.map(|weight| {
            // A low part of 64 or less, except where the high part would be 128.
            let high = ((weight + 63) / 128).min(127);
            let low = i32::from(weight) - 128 * i32::from(high);
            (i8::try_from(high).expect("at most 127"), i8::try_from(low).expect("at most 127"))
        });
        Self { rows, weights, high: [a.0, b.0, a.0, b.0], low: [a.1, b.1, a.1, b.1] }
    }
}

impl RowPair {
    /// Whether the weights have no low parts: a half, a quarter, an eighth.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "multiplications by 0 are few there"))]
    pub(super) fn is_coarse(&self) -> bool {
        self.low == [0; 4]
    }
}

/// Pairs of rows for every output row.
#[derive(Debug)]
struct RowTable {
    /// Where the pairs of an output row begin; one more at the end.
    begins: Vec<usize>,
    pairs: Vec<RowPair>,
}

impl RowTable {
    fn new(rows: &TapTable) -> Self {
        let mut table = Self { begins: vec![0], pairs: Vec::new() };
        for idx in 0..rows.len() {
            let taps = rows.taps(idx);
            let used: Vec<(usize, u16)> =
                (taps.start..).zip(taps.weights.iter().copied()).filter(|&(_, weight)| weight > 0).collect();
            table.pairs.extend(used.chunks(2).map(|pair| match *pair {
                [a, b] => RowPair::new([a.0, b.0], [a.1, b.1]),
                // One row counts as two halves: a weight of 1 << 14 has no high part of seven bits.
                _ => RowPair::new([pair[0].0; 2], [pair[0].1 / 2, pair[0].1 - pair[0].1 / 2]),
            }));
            table.begins.push(table.pairs.len());
        }
        table
    }

    fn pairs(&self, idx: usize) -> &[RowPair] {
        &self.pairs[self.begins[idx]..self.begins[idx + 1]]
    }
}

/// Values beyond the last sample that loops may read and write.
pub(super) const SLACK: usize = 128;

/// The loops of an instruction set.
pub(super) trait Loops: Debug + Send + Sync + 'static {
    /// The columns of a [`Grid`], prepared.
    type Columns: Debug + Send + Sync;

    fn prepare(grid: &Grid) -> Self::Columns;

    /// Weighted rows: `mid[..row_bytes]` from rows of `row_bytes` bytes, `stride` apart. `mid` has [`SLACK`] more values, which
    /// may be overwritten. Of the plane no byte outside of those rows is read.
    fn down(plane: &[u8], stride: usize, row_bytes: usize, pairs: &[RowPair], mid: &mut [u16]);

    /// Weighted columns and colour. `mids` begin at the first sample of a component; those that a grid of one does not have
    /// are not looked at.
    fn across(columns: &[Self::Columns], mids: [&[u16]; 3], matrix: &ColorCoefficients, rgb: &mut [u8]);
}

/// Down and across, row by row: what lies between stays in the nearest cache.
#[derive(Debug)]
struct Fused<L: Loops> {
    rows: Vec<(usize, RowTable)>,
    columns: Vec<L::Columns>,
    /// Plane and offset of the components.
    components: Vec<Component>,
    n_columns: usize,
    mids: [Vec<u16>; 3],
}

impl<L: Loops> Fused<L> {
    fn new(spec: &PictureSpec) -> Self {
        let mid = |plane_idx: usize| spec.planes.get(plane_idx).map_or(0, |plane| plane.row_bytes + SLACK + ALIGNED);
        Self {
            rows: spec.planes.iter().map(|plane| (plane.row_bytes, RowTable::new(&plane.rows))).collect(),
            columns: spec.grids.iter().map(L::prepare).collect(),
            components: spec.components().map(|(_, component)| component).collect(),
            n_columns: spec.output().1,
            mids: [0, 1, 2].map(|plane_idx| vec![0; mid(plane_idx)]),
        }
    }
}

/// Values of 64 bytes.
const ALIGNED: usize = 32;

/// From the first value whose address is a multiple of 64 bytes.
fn aligned(mid: &[u16]) -> usize {
    mid.as_ptr().align_offset(64).min(ALIGNED)
}

impl<L: Loops> PictureKernel for Fused<L> {
    fn row(&mut self, y: usize, planes: [PlaneRef<'_>; 3], matrix: &ColorCoefficients, rgb: &mut [u8]) {
        assert_eq!(rgb.len(), 3 * self.n_columns, "three bytes a pixel");
        for (((row_bytes, table), plane), mid) in self.rows.iter().zip(planes).zip(&mut self.mids) {
            let from = aligned(mid);
            L::down(plane.data, plane.stride_bytes, *row_bytes, table.pairs(y), &mut mid[from..]);
        }
        let mut mids: [&[u16]; 3] = [&[]; 3];
        for (samples, component) in mids.iter_mut().zip(&self.components) {
            let mid = &self.mids[component.plane_idx];
            *samples = &mid[aligned(mid) + component.offset..];
        }
        L::across(&self.columns, mids, matrix, rgb);
    }
}

/// What one vector of output samples takes from one register of consecutive values.
#[derive(Debug)]
pub(super) struct Window {
    /// First value.
    pub(super) offset: usize,
    /// Per round and output sample two values of the window and their weights; those that are not needed have weight 0.
    pub(super) rounds: Vec<Vec<[(usize, u16); 2]>>,
}

/// Covers the taps of `outputs` by windows of `len` values with at most `max_rounds` each.
pub(super) fn windows(grid: &Grid, outputs: std::ops::Range<usize>, len: usize, max_rounds: usize) -> Vec<Window> {
    let mut left: Vec<Vec<(usize, u16)>> = outputs
        .map(|x| {
            // Outputs beyond the last have no taps.
            let taps = if x < grid.columns.len() { grid.columns.taps(x) } else { Taps { start: 0, weights: &[] } };
            let samples = (taps.start..).map(|sample| sample * grid.step);
            samples.zip(taps.weights.iter().copied()).filter(|&(_, weight)| weight > 0).collect()
        })
        .collect();
    let mut windows = Vec::new();
    while let Some(offset) = left.iter().flatten().map(|&(at, _)| at).min() {
        let mut rounds = Vec::new();
        while rounds.len() < max_rounds {
            let mut is_used = false;
            let picks = left.iter_mut().map(|taps| {
                let n = taps.iter().take(2).take_while(|&&(at, _)| at < offset + len).count();
                is_used |= n > 0;
                let mut picked = [(0, 0); 2];
                for (pick, (at, weight)) in picked.iter_mut().zip(taps.drain(..n)) {
                    *pick = (at - offset, weight);
                }
                picked
            });
            let picks = picks.collect();
            if !is_used {
                break;
            }
            rounds.push(picks);
        }
        windows.push(Window { offset, rounds });
    }
    windows
}

/// What loops check before they trust their pointers: each of `mids` has the values that its columns reach. `columns` are reach
/// and number of blocks of each grid.
pub(super) fn check_columns(columns: &[(usize, usize)], mids: [&[u16]; 3], n_blocks: usize) {
    let (first, last) = (columns[0], columns[columns.len() - 1]);
    assert!(columns.iter().all(|&(_, n)| n == n_blocks), "{n_blocks} blocks: {columns:?}");
    assert!(mids[0].len() >= first.0, "{} values, {} are read", mids[0].len(), first.0);
    for mid in mids[1..].iter().filter(|mid| !mid.is_empty() || columns.len() == 2) {
        assert!(mid.len() >= last.0, "{} values, {} are read", mid.len(), last.0);
    }
}

/// Rows that loops may trust: each has `row_bytes` bytes in the plane, and `mid` has room.
pub(super) fn check_rows(plane: &[u8], stride: usize, row_bytes: usize, pairs: &[RowPair], mid: &[u16]) {
    assert!(mid.len() >= row_bytes + SLACK, "room for whole registers");
    let last = pairs.iter().map(|pair| pair.rows[0].max(pair.rows[1])).max().unwrap_or(0);
    let end = last.checked_mul(stride).and_then(|start| start.checked_add(row_bytes));
    assert!(end.is_some_and(|end| end <= plane.len()), "row {last} of {row_bytes} bytes");
}

/// Columns in blocks of eight outputs, four in each half of a register: for registers whose bytes can be picked within 16.
#[derive(Debug)]
pub(super) struct Halves {
    pub(super) rounds: Vec<HalvesRound>,
    /// Where the rounds of a block end.
    pub(super) ends: Vec<usize>,
    /// Values that are read at most.
    pub(super) reach: usize,
}

/// Two values for each of eight outputs.
#[derive(Debug)]
#[repr(align(32))]
pub(super) struct HalvesRound {
    /// Bytes of the two windows, each counted from its own beginning.
    pub(super) from: [u8; 32],
    pub(super) weights: [u16; 16],
    /// First values of the windows.
    pub(super) offsets: [usize; 2],
}

impl Halves {
    pub(super) const LANES: usize = 8;

    /// Values of a window.
    const WINDOW: usize = 8;

    /// `place` says where in half a register the first or second value of an output goes.
    pub(super) fn new(grid: &Grid, place: impl Fn(usize, usize) -> usize) -> Self {
        let mut columns = Self { rounds: Vec::new(), ends: Vec::new(), reach: Self::WINDOW };
        for first in (0..grid.columns.len()).step_by(Self::LANES) {
            let halves = [first, first + 4].map(|first| windows(grid, first..first + 4, Self::WINDOW, 1));
            for i in 0..halves[0].len().max(halves[1].len()) {
                let mut round = HalvesRound { from: [0; 32], weights: [0; 16], offsets: [0; 2] };
                for (half, window) in halves.iter().enumerate() {
                    let Some(window) = window.get(i) else { continue };
                    round.offsets[half] = window.offset;
                    columns.reach = columns.reach.max(window.offset + Self::WINDOW);
                    for (output, picks) in window.rounds.iter().flatten().enumerate() {
                        for (nth, &(from, weight)) in picks.iter().enumerate() {
                            let (at, from) = (8 * half + place(output, nth), u8::try_from(2 * from).expect("within a window"));
                            (round.from[2 * at], round.from[2 * at + 1]) = (from, from + 1);
                            round.weights[at] = weight;
                        }
                    }
                }
                columns.rounds.push(round);
            }
            columns.ends.push(columns.rounds.len());
        }
        columns
    }
}
