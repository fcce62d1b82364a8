//! Operators that are computed together: their rows are cut into pieces that any thread may take.
//!
//! All operators of a region read and write one arena. [`Region::new`] checks that no output overlaps another output or
//! an input of the region; that is what makes it sound to hand out pieces of the arena to several threads.

use super::{Layout, Pool, RowKernel};
use std::ops::Range;

/// A buffer in the arena: its bytes, where they hold what, and what its halo holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Bytes in the arena.
    pub bytes: Range<usize>,
    /// Where they hold what.
    pub layout: Layout,
    /// Value of the halo.
    pub zero_point: u8,
}

/// A prepared operator with its places.
#[derive(Debug)]
pub struct PlacedKernel {
    /// Prepared for the layouts of these places.
    pub kernel: Box<dyn RowKernel>,
    /// What it reads.
    pub inputs: Vec<Place>,
    /// What it makes.
    pub output: Place,
    /// How long it takes, in multiplications or what takes as long.
    pub work: usize,
}

/// Rows of one operator.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    kernel: usize,
    rows: Range<usize>,
}

/// Most inputs of an operator.
pub const MAX_INPUTS: usize = 8;

/// Pieces for each thread, so that one that is held up does not hold up the others.
const PIECES_PER_THREAD: usize = 4;

/// A piece is not worth handing out below so much work: some microseconds.
const MIN_PIECE_WORK: usize = 600_000;

/// Why operators cannot be computed together, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("operators of one region: {0}")]
pub struct RegionError(String);

/// Operators that do not depend on each other.
#[derive(Debug)]
pub struct Region {
    kernels: Vec<PlacedKernel>,
    pieces: Vec<Piece>,
    arena_len: usize,
}

impl Region {
    /// A region of an arena of `arena_len` bytes, cut for so many threads.
    ///
    /// # Errors
    /// [`RegionError`] if an output overlaps an input or another output, or if a place does not fit its layout or the arena.
    pub fn new(kernels: Vec<PlacedKernel>, arena_len: usize, threads: usize) -> Result<Self, RegionError> {
        let overlap = |a: &Range<usize>, b: &Range<usize>| a.start < b.end && b.start < a.end;
        for (idx, PlacedKernel { inputs, output, .. }) in kernels.iter().enumerate() {
            for place in inputs.iter().chain([output]) {
                if place.bytes.end > arena_len || place.bytes.len() != place.layout.len() {
                    return Err(RegionError(format!("{place:?} in an arena of {arena_len} bytes")));
                }
            }
            if inputs.is_empty() || inputs.len() > MAX_INPUTS {
                return Err(RegionError(format!("{} inputs; 1 to {MAX_INPUTS} are supported", inputs.len())));
            }
            let read = kernels.iter().flat_map(|kernel| &kernel.inputs);
            let written = kernels.iter().enumerate().filter(|(other, _)| *other != idx).map(|(_, kernel)| &kernel.output);
            if let Some(other) = read.chain(written).find(|other| overlap(&other.bytes, &output.bytes)) {
                return Err(RegionError(format!("{:?} is written and {:?} is used", output.bytes, other.bytes)));
            }
        }
        let pieces = cut(&kernels, threads);
        Ok(Self { kernels, pieces, arena_len })
    }

    /// The operators.
    #[must_use]
    pub fn kernels(&self) -> &[PlacedKernel] {
        &self.kernels
    }

    /// Computes every operator.
    ///
    /// # Panics
    /// If `arena` is shorter than stated when the region was made.
    pub fn run(&self, pool: &Pool, arena: &mut [u8]) {
        assert!(arena.len() >= self.arena_len, "the arena that the region was made for");
        let base = Base(arena.as_mut_ptr());
        pool.run(self.pieces.len(), &|idx| {
            let Piece { kernel, rows } = &self.pieces[idx];
            // SAFETY: pieces do not share rows, and `new` checked that no operator reads or writes another's output.
            unsafe { run_rows(&self.kernels[*kernel], base, rows.clone()) };
        });
    }

    /// Computes operator `idx` alone.
    ///
    /// # Panics
    /// If there is no such operator or `arena` is shorter than stated when the region was made.
    pub fn run_one(&self, idx: usize, pool: &Pool, arena: &mut [u8]) {
        assert!(arena.len() >= self.arena_len, "the arena that the region was made for");
        let (base, kernel) = (Base(arena.as_mut_ptr()), &self.kernels[idx]);
        let mine = self.pieces.iter().filter(|piece| piece.kernel == idx);
        let (first, n) = (self.pieces.iter().position(|piece| piece.kernel == idx).unwrap_or(0), mine.count());
        pool.run(n, &|piece| {
            // SAFETY: as in `run`.
            unsafe { run_rows(kernel, base, self.pieces[first + piece].rows.clone()) };
        });
    }
}

/// Start of the arena, for threads that write disjoint pieces of it.
#[derive(Clone, Copy)]
struct Base(*mut u8);

// SAFETY: whoever follows the pointer says why nobody else writes there.
unsafe impl Send for Base {}
// SAFETY: as above.
unsafe impl Sync for Base {}

/// Rows of one operator, with the halo beside them; the first and the last rows take the halo above and below along.
///
/// # Safety
/// `base` is valid for the region's arena; nobody else uses these rows of the output, and nobody writes to the inputs.
unsafe fn run_rows(placed: &PlacedKernel, base: Base, rows: Range<usize>) {
    let Place { bytes, layout, zero_point } = &placed.output;
    let start = if rows.start == 0 { 0 } else { layout.row_offset(rows.start) };
    let end = if rows.end == layout.shape.h { layout.len() } else { layout.row_offset(rows.end) };
    // SAFETY: inside the output's place, whose length is its layout's; the caller vouches for exclusive use.
    let out = unsafe { std::slice::from_raw_parts_mut(base.0.add(bytes.start + start), end - start) };
    let mut inputs: [&[u8]; MAX_INPUTS] = [&[]; MAX_INPUTS];
    for (input, place) in inputs.iter_mut().zip(&placed.inputs) {
        // SAFETY: inside the arena; the caller vouches that nobody writes there.
        *input = unsafe { std::slice::from_raw_parts(base.0.add(place.bytes.start), place.bytes.len()) };
    }
    let (above, rest) = out.split_at_mut(layout.row_offset(rows.start) - start);
    let (body, below) = rest.split_at_mut(rows.len() * layout.row_stride());
    placed.kernel.rows(&inputs[..placed.inputs.len()], rows.start, body);
    layout.fill_sides(body, *zero_point);
    above.fill(*zero_point);
    below.fill(*zero_point);
}

/// Cuts the rows of all operators into pieces of about equal work.
fn cut(kernels: &[PlacedKernel], threads: usize) -> Vec<Piece> {
    let total: usize = kernels.iter().map(|kernel| kernel.work).sum();
    let piece_work = if threads < 2 { usize::MAX } else { (total / (PIECES_PER_THREAD * threads)).max(MIN_PIECE_WORK) };
    let mut pieces = Vec::new();
    for (idx, kernel) in kernels.iter().enumerate() {
        let (n_rows, together) = (kernel.output.layout.shape.h, kernel.kernel.rows_together());
        let n_units = n_rows.div_ceil(together);
        let n_pieces = kernel.work.div_ceil(piece_work).clamp(1, n_units.max(1));
        let row = |i: usize| n_rows.min(n_units * i / n_pieces * together);
        pieces.extend((0..n_pieces).map(|i| Piece { kernel: idx, rows: row(i)..row(i + 1) }));
    }
    pieces
}
