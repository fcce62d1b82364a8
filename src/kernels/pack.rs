//! Weights of convolutions in the order in which vector kernels read them.
//!
//! Output channels are cut into blocks of up to a few registers of `i32` lanes, input channels into quads of four bytes:
//! one dot-product instruction multiplies a quad of one pixel with a quad of every lane. A block's weights are
//! `[tap][quad][register][lane][4]`, so that a kernel reads them once, from the first byte to the last.
//!
//! Where there is no dot product ([`Products::Pairs`]), each quad of a block is packed in one of two ways. Bytes
//! `[register][lane][4]`, for an instruction that adds neighbouring products in 16 bits and saturates, where that can
//! happen for no input; else words `[bytes 0 and 2, bytes 1 and 3][register][lane][2]`. Quads of bytes come first,
//! those whose weights are all 0 not at all.
//!
//! [`Products::Transformed`] are the weights of Winograd's 3x3 convolution (Lavin and Gray 2016, arXiv 1509.09308) that makes
//! 4 x 4 pixels with 36 products instead of 144: words `[position][pair of channels][register][lane][2]`.
//!
//! Where an instruction takes more bytes of a lane at once, `[8]` or `[16]` stands for `[4]`, and the last bytes of the taps that lie
//! side by side in memory are filled up with 0.

use super::{ConvSpec, Layout};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// One cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
struct Line([i8; 64]);

/// Bytes that start at a multiple of 64: a vector load that crosses a cache line costs twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AlignedBytes(Vec<Line>);

impl AlignedBytes {
    fn new(bytes: &[i8]) -> Self {
        let line = |chunk: &[i8]| {
            let mut line = Line([0; 64]);
            line.0[..chunk.len()].copy_from_slice(chunk);
            line
        };
        Self(bytes.chunks(64).map(line).collect())
    }

    pub(super) fn as_ptr(&self) -> *const i8 {
        self.0.as_ptr().cast()
    }

    /// All of them, line by line; the last is filled up with 0.
    #[cfg(target_arch = "aarch64")]
    pub(super) fn lines(&self) -> impl Iterator<Item = &[i8; 64]> {
        self.0.iter().map(|line| &line.0)
    }
}

/// How an instruction set wants its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Scheme {
    /// `i32` lanes of a register.
    pub lanes: usize,
    /// Registers of output channels in one block, at most.
    pub max_registers: usize,
    /// Lanes that one byte-packing instruction keeps together: the lane of channel `c` follows from it, see [`Scheme::channel`].
    pub pack_lanes: usize,
    /// Whether the last register of a block may be used by half, its lanes in order of channels.
    pub halves: bool,
    /// What one multiplication takes.
    pub products: Products,
}

/// What one multiplication of an instruction set takes.
#[allow(dead_code, reason = "no architecture has all of them")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Products {
    /// Four bytes for each lane: a dot product.
    Quads,
    /// Four bytes for each lane where no pair of products leaves 16 bits, else two words.
    Pairs,
    /// Two words for each lane, of transformed weights.
    Transformed,
    /// One word for each lane, of transformed weights.
    TransformedSingles,
    /// Four signed bytes for each lane: a dot product.
    SignedQuads,
    /// Eight bytes for each lane: a matrix product.
    Octets,
    /// Sixteen signed bytes for each lane, in two products of eight.
    SignedSixteens,
}

impl Products {
    /// What the kernel subtracts from activations before it multiplies: 128 where it takes them as signed bytes.
    const fn origin(self) -> u8 {
        match self {
            Self::Quads | Self::Pairs | Self::Transformed | Self::TransformedSingles | Self::Octets => 0,
            Self::SignedQuads | Self::SignedSixteens => 128,
        }
    }

    /// Quads that are packed side by side.
    const fn depth(self) -> usize {
        match self {
            Self::Quads | Self::Pairs | Self::Transformed | Self::TransformedSingles | Self::SignedQuads => 1,
            Self::Octets => 2,
            Self::SignedSixteens => 4,
        }
    }
}

impl Scheme {
    /// Channel that register `r`, lane `lane` of a block holds, counted from the block's first: such that packing 32-bit
    /// lanes to bytes register by register, within groups of `pack_lanes` lanes, leaves channels in order. `None` where it
    /// holds none.
    fn channel(&self, block: &Block, r: usize, lane: usize) -> Option<usize> {
        let full = block.registers - usize::from(block.has_half);
        if r == full {
            return (lane < self.lanes / 2).then_some(full * self.lanes + lane);
        }
        let (group, within) = (lane / self.pack_lanes, lane % self.pack_lanes);
        Some(group * self.pack_lanes * full + r * self.pack_lanes + within)
    }

    /// Cuts `channels` into blocks as even as they can be: their numbers of registers, and whether the last is used by half.
    fn cut(&self, channels: usize) -> Vec<(usize, bool)> {
        let per_register = if self.halves { 2 } else { 1 };
        let units = channels.div_ceil(self.lanes / per_register);
        let blocks = units.div_ceil(self.max_registers * per_register);
        // The larger first: they start at whole registers.
        let sizes = (0..blocks).map(|idx| units / blocks + usize::from(idx < units % blocks));
        sizes.map(|units| (units.div_ceil(per_register), !units.is_multiple_of(per_register))).collect()
    }
}

/// Output channels that one call of a kernel makes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// First output channel.
    pub first: usize,
    /// Registers of output channels, a half one included.
    pub registers: usize,
    /// Whether only the lower half of the last register is used.
    pub has_half: bool,
    /// Quads of input channels that they read. All but these have weight 0: grouped convolutions.
    pub quads: Range<usize>,
    /// First byte of its weights.
    pub weights: usize,
    /// Tap and quad of its weights in their order, where that is not every tap with every quad.
    pub order: Vec<(usize, usize)>,
    /// How many of these, from the first on, are bytes; the others are words.
    pub n_bytes: usize,
}

/// The weights of a convolution, packed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PackedWeights {
    pub bytes: AlignedBytes,
    pub blocks: Vec<Block>,
}

impl PackedWeights {
    /// `taps_in_run` taps lie side by side in memory.
    fn new(spec: &ConvSpec, scheme: Scheme, taps_in_run: usize) -> Self {
        let (out_channels, in_per_group, n_taps) = (spec.out_channels(), spec.in_per_group(), spec.window.n_taps());
        let out_per_group = out_channels / spec.groups;
        let (mut bytes, mut blocks, mut first) = (Vec::new(), Vec::new(), 0);
        for (registers, has_half) in scheme.cut(out_channels) {
            let channels = registers * scheme.lanes - if has_half { scheme.lanes / 2 } else { 0 };
            let last = out_channels.min(first + channels) - 1;
            let read = first / out_per_group * in_per_group..(last / out_per_group + 1) * in_per_group;
            let quads = read.start / 4..read.end.div_ceil(4);
            let (weights, order) = (bytes.len(), Vec::new());
            let mut block = Block { first, registers, has_half, quads: quads.clone(), weights, order, n_bytes: 0 };
            // In a run of several taps, channels follow one another without a gap from tap to tap.
            let run_quads = if taps_in_run > 1 { 0..(taps_in_run * in_per_group).div_ceil(4) } else { quads.clone() };
            let n_run_quads = run_quads.len();
            let all = (0..n_taps).step_by(taps_in_run).flat_map(|tap| run_quads.clone().map(move |quad| (tap, quad)));
            let all = all.map(|(tap, quad)| {
                let lanes = (0..registers).flat_map(|r| (0..scheme.lanes).map(move |lane| (r, lane)));
                let weights = lanes.map(|(r, lane)| {
                    let o = scheme.channel(&block, r, lane).map(|c| first + c).filter(|&o| o < out_channels);
                    [0, 1, 2, 3].map(|i| {
                        let at = (4 * quad + i).checked_sub(o? / out_per_group * in_per_group)?;
                        let is_there = at < taps_in_run * in_per_group;
                        is_there.then(|| spec.weight(o.unwrap_or_default(), at % in_per_group, tap + at / in_per_group))
                    })
                });
                let weights = weights.map(|quad| quad.map(Option::unwrap_or_default));
                ((tap, quad), weights.collect::<Vec<[i8; 4]>>())
            });
            match scheme.products {
                Products::Quads | Products::SignedQuads => bytes.extend(all.flat_map(|(_, weights)| weights.into_flattened())),
                Products::Octets | Products::SignedSixteens => {
                    let all: Vec<_> = all.map(|(_, weights)| weights).collect();
                    let depth = scheme.products.depth();
                    for side_by_side in all.chunks(n_run_quads).flat_map(|run| run.chunks(depth)) {
                        for lane in 0..registers * scheme.lanes {
                            bytes.extend((0..depth).flat_map(|i| side_by_side.get(i).map_or([0; 4], |quad| quad[lane])));
                        }
                    }
                }
                Products::Pairs => {
                    let used = all.filter(|(_, weights)| weights.iter().flatten().any(|&w| w != 0)).collect::<Vec<_>>();
                    let (small, large): (Vec<_>, Vec<_>) = used.into_iter().partition(|(_, weights)| pairs_fit(weights));
                    block.n_bytes = small.len();
                    block.order = small.iter().chain(&large).map(|(at, _)| *at).collect();
                    bytes.extend(small.into_iter().flat_map(|(_, weights)| weights.into_flattened()));
                    bytes.extend(large.iter().flat_map(|(_, weights)| words(weights)));
                }
                Products::Transformed | Products::TransformedSingles => {
                    let all: Vec<_> = all.map(|(_, weights)| weights).collect();
                    let in_lane = if scheme.products == Products::Transformed { 2 } else { 1 };
                    bytes.extend(transformed(&all, quads.len(), in_lane));
                }
            }
            blocks.push(block);
            first += channels;
        }
        Self { bytes: AlignedBytes::new(&bytes), blocks }
    }

    /// `values[c]` in the order of lanes, `zero` where there is no channel.
    pub(super) fn by_lane<T: Copy>(&self, scheme: Scheme, n: usize, zero: T, value: impl Fn(usize) -> T) -> Vec<T> {
        let mut lanes = Vec::new();
        for block in &self.blocks {
            for (r, lane) in (0..block.registers).flat_map(|r| (0..scheme.lanes).map(move |lane| (r, lane))) {
                let o = scheme.channel(block, r, lane).map(|c| block.first + c).filter(|&o| o < n);
                lanes.push(o.map_or(zero, &value));
            }
        }
        lanes
    }
}

/// Whether `x0 w0 + x1 w1` of neighbouring bytes stays within 16 bits for all `x`: 255 x 128 does.
pub(super) fn pairs_fit(weights: &[[i8; 4]]) -> bool {
    let sum = |pair: &[i8], of: fn(i16) -> i16| pair.iter().map(|&w| of(i16::from(w))).sum::<i16>();
    weights
        .iter()
        .flat_map(|quad| quad.chunks_exact(2))
        .all(|pair| sum(pair, |w| w.max(0)) <= 128 && sum(pair, |w| (-w).max(0)) <= 128)
}

/// Words of bytes 0 and 2 of every lane, then those of bytes 1 and 3.
pub(super) fn words(weights: &[[i8; 4]]) -> impl Iterator<Item = i8> {
    let half = |idx: usize| weights.iter().flat_map(move |quad| [quad[idx], quad[idx + 2]]);
    half(0).chain(half(1)).flat_map(|w| i16::from(w).to_le_bytes().map(u8::cast_signed))
}

/// Rows of `G` of Winograd's F(4, 3) times 24, 6, 6, 24, 24 and 6: integers, of which no transformed weight leaves 16 bits (49 x 128).
const WINOGRAD_G: [[i16; 3]; 6] = [[6, 0, 0], [-1, -1, -1], [-1, 1, -1], [1, 2, 4], [1, -2, 4], [0, 0, 6]];

/// Words of `G w G^T` of 3x3 weights `[tap][quad][lane][4]`: `[position][channels][lane][in_lane]`, `in_lane` being 1 or 2 channels.
fn transformed(weights: &[Vec<[i8; 4]>], n_quads: usize, in_lane: usize) -> Vec<i8> {
    let n_lanes = weights.first().map_or(0, Vec::len);
    let row_of = |row: [i16; 3], values: [i16; 3]| row.iter().zip(values).map(|(g, value)| g * value).sum::<i16>();
    let mut words = vec![0_i16; 36 * n_quads * 4 * n_lanes];
    for (quad, lane, i) in (0..n_quads).flat_map(|quad| (0..n_lanes).flat_map(move |lane| (0..4).map(move |i| (quad, lane, i)))) {
        let w = |ky: usize, kx: usize| i16::from(weights[(3 * ky + kx) * n_quads + quad][lane][i]);
        let rows = WINOGRAD_G.map(|g| [0, 1, 2].map(|kx| row_of(g, [w(0, kx), w(1, kx), w(2, kx)])));
        for (position, value) in rows.iter().flat_map(|&row| WINOGRAD_G.map(|g| row_of(g, row))).enumerate() {
            let group = (4 * (position * n_quads + quad) + i) / in_lane;
            words[(group * n_lanes + lane) * in_lane + i % in_lane] = value;
        }
    }
    words.into_iter().flat_map(|w| w.to_le_bytes().map(u8::cast_signed)).collect()
}

/// Weights that several convolutions share are packed once.
#[derive(Debug, Default)]
pub struct PackCache(HashMap<PackKey, Packed>);

/// What the order of packed weights depends on.
#[derive(Debug, PartialEq, Eq, Hash)]
struct PackKey {
    address: usize,
    kernel: (usize, usize),
    out_channels: usize,
    groups: usize,
    taps_in_run: usize,
    scheme: Scheme,
}

/// Packed weights, and those that they were: as long as these live, their address is nobody else's.
#[derive(Debug)]
struct Packed {
    _weights: Arc<[i8]>,
    packed: Arc<PackedWeights>,
}

impl PackCache {
    pub(super) fn pack(&mut self, spec: &ConvSpec, scheme: Scheme, taps_in_run: usize) -> Arc<PackedWeights> {
        // Single quads that do not straddle taps lie in the same order whatever the run.
        let is_same = scheme.products.depth() == 1 && spec.in_per_group().is_multiple_of(4);
        let taps_in_run = if is_same { 1 } else { taps_in_run };
        let key = PackKey {
            address: spec.weights.as_ptr().addr(),
            kernel: spec.window.kernel,
            out_channels: spec.out_channels(),
            groups: spec.groups,
            taps_in_run,
            scheme,
        };
        let pack =
            || Packed { _weights: Arc::clone(&spec.weights), packed: Arc::new(PackedWeights::new(spec, scheme, taps_in_run)) };
        Arc::clone(&self.0.entry(key).or_insert_with(pack).packed)
    }
}

/// A convolution with packed weights, for kernels that walk over it tile by tile ([`super::tiles`]).
#[derive(Debug)]
pub(super) struct PackedConv {
    pub input: Layout,
    pub output: Layout,
    pub stride: (usize, usize),
    /// `i32` lanes of a register.
    pub lanes: usize,
    /// Offset of the window's first tap from the pixel under it, in bytes before it.
    pub lead: usize,
    /// Bytes from the first tap to each run of quads, block by block where they differ.
    pub taps: Vec<usize>,
    /// Which of these are a block's.
    pub taps_of_block: Vec<Range<usize>>,
    /// Quads of a run, where taps lie side by side in memory; else a run is one tap with the quads of its block.
    pub quads_in_run: Option<usize>,
    pub weights: Arc<PackedWeights>,
    pub bias: Vec<i32>,
    pub multipliers: Vec<f32>,
    pub zero_point: u8,
    pub lo: u8,
    pub hi: u8,
    /// No accumulator times its multiplier can leave the range of `i32`, and the output has no limits of its own: what
    /// saturating packs do is all that is left of the clamp.
    pub is_plain: bool,
}

impl PackedConv {
    /// `None` where the layouts do not suit: no quads, or too little halo.
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout, scheme: Scheme, cache: &mut PackCache) -> Option<Self> {
        let window = &spec.window;
        let need = window.halo(input.shape);
        let fits = output.pixel_stride >= output.shape.c.next_multiple_of(scheme.lanes) && need.union(input.halo) == input.halo;
        if !fits {
            return None;
        }
        let are_quads = scheme.products != Products::Pairs;
        let is_run = are_quads && spec.groups == 1 && window.dilation.1 == 1 && input.pixel_stride == input.shape.c;
        let taps_in_run = if is_run { window.kernel.1 } else { 1 };
        let weights = cache.pack(spec, scheme, taps_in_run);
        let tap =
            |ky: usize, kx: usize| ky * window.dilation.0 * input.row_stride() + kx * window.dilation.1 * input.pixel_stride;
        let (mut taps, mut taps_of_block) = (Vec::new(), Vec::new());
        if are_quads {
            taps.extend((0..window.kernel.0).flat_map(|ky| (0..window.kernel.1).step_by(taps_in_run).map(move |kx| tap(ky, kx))));
            taps_of_block.resize(weights.blocks.len(), 0..taps.len());
        } else {
            for block in &weights.blocks {
                let first = taps.len();
                let place = |&(idx, quad): &(usize, usize)| {
                    tap(idx / window.kernel.1, idx % window.kernel.1) + 4 * (quad - block.quads.start)
                };
                taps.extend(block.order.iter().map(place));
                taps_of_block.push(first..taps.len());
            }
        }
        let n = spec.out_channels();
        Some(Self {
            input,
            output,
            stride: window.stride,
            lanes: scheme.lanes,
            lead: window.pads[0] * input.row_stride() + window.pads[1] * input.pixel_stride,
            taps,
            taps_of_block,
            quads_in_run: is_run.then(|| (taps_in_run * input.shape.c).div_ceil(4)),
            bias: weights.by_lane(scheme, n, 0, |o| spec.folded_bias_from(scheme.products.origin(), o)),
            multipliers: weights.by_lane(scheme, n, 0.0, |o| spec.requant.multipliers[o]),
            weights,
            zero_point: spec.requant.zero_point,
            lo: spec.requant.lo,
            hi: spec.requant.hi,
            is_plain: spec.requant.lo == 0 && spec.requant.hi == u8::MAX && is_bounded(spec),
        })
    }
}

/// Whether `accumulator x multiplier` stays within `i32` whatever the input, with room for the rounding of both.
pub(super) fn is_bounded(spec: &ConvSpec) -> bool {
    let per_channel = spec.in_per_group() * spec.window.n_taps();
    let reach = |o: usize| {
        let weights = &spec.weights[o * per_channel..][..per_channel];
        255 * weights.iter().map(|&w| i64::from(w).abs()).sum::<i64>() + i64::from(spec.bias[o]).abs()
    };
    #[expect(clippy::cast_precision_loss, reason = "a bound with a factor of two to spare")]
    (0..spec.out_channels()).all(|o| reach(o) as f64 * f64::from(spec.requant.multipliers[o]) < 1e9)
}
