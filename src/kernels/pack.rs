//! Weights of convolutions in the order in which vector kernels read them.
//!
//! Output channels are cut into blocks of up to a few registers of `i32` lanes, input channels into quads of four bytes:
//! one dot-product instruction multiplies a quad of one pixel with a quad of every lane. A block's weights are
//! `[tap][quad][register][lane][4]`, so that a kernel reads them once, from the first byte to the last.

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
}

impl Scheme {
    /// Channel within a block of `n` registers that register `r`, lane `lane` holds, so that packing 32-bit lanes to
    /// bytes register by register, within groups of `pack_lanes` lanes, leaves channels in order.
    pub(super) const fn channel(&self, n: usize, r: usize, lane: usize) -> usize {
        let (group, within) = (lane / self.pack_lanes, lane % self.pack_lanes);
        group * self.pack_lanes * n + r * self.pack_lanes + within
    }

    /// Cuts `channels` into blocks as even as they can be: their numbers of registers.
    fn cut(&self, channels: usize) -> Vec<usize> {
        let registers = channels.div_ceil(self.lanes);
        let blocks = registers.div_ceil(self.max_registers);
        (0..blocks).map(|idx| (registers * (idx + 1)) / blocks - (registers * idx) / blocks).collect()
    }
}

/// Output channels that one call of a kernel makes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// First output channel.
    pub first: usize,
    /// Registers of output channels.
    pub registers: usize,
    /// Quads of input channels that they read. All but these have weight 0: grouped convolutions.
    pub quads: Range<usize>,
    /// First byte of its weights.
    pub weights: usize,
}

/// The weights of a convolution, packed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PackedWeights {
    pub bytes: AlignedBytes,
    pub blocks: Vec<Block>,
}

impl PackedWeights {
    fn new(spec: &ConvSpec, scheme: Scheme) -> Self {
        let (out_channels, in_per_group, n_taps) = (spec.out_channels(), spec.in_per_group(), spec.window.n_taps());
        let out_per_group = out_channels / spec.groups;
        let (mut bytes, mut blocks, mut first) = (Vec::new(), Vec::new(), 0);
        for registers in scheme.cut(out_channels) {
            let last = out_channels.min(first + registers * scheme.lanes) - 1;
            let channels = first / out_per_group * in_per_group..(last / out_per_group + 1) * in_per_group;
            let quads = channels.start / 4..channels.end.div_ceil(4);
            blocks.push(Block { first, registers, quads: quads.clone(), weights: bytes.len() });
            for tap in 0..n_taps {
                for quad in quads.clone() {
                    for (r, lane) in (0..registers).flat_map(|r| (0..scheme.lanes).map(move |lane| (r, lane))) {
                        let o = first + scheme.channel(registers, r, lane);
                        bytes.extend((4 * quad..4 * quad + 4).map(|i| {
                            let within = i.checked_sub(o / out_per_group * in_per_group).filter(|&i| i < in_per_group);
                            within.filter(|_| o < out_channels).map_or(0, |i| spec.weight(o, i, tap))
                        }));
                    }
                }
            }
            first += registers * scheme.lanes;
        }
        Self { bytes: AlignedBytes::new(&bytes), blocks }
    }

    /// `values[c]` in the order of lanes, `zero` where there is no channel.
    pub(super) fn by_lane<T: Copy>(&self, scheme: Scheme, n: usize, zero: T, value: impl Fn(usize) -> T) -> Vec<T> {
        let mut lanes = Vec::new();
        for block in &self.blocks {
            for (r, lane) in (0..block.registers).flat_map(|r| (0..scheme.lanes).map(move |lane| (r, lane))) {
                let o = block.first + scheme.channel(block.registers, r, lane);
                lanes.push(if o < n { value(o) } else { zero });
            }
        }
        lanes
    }
}

/// Weights that several convolutions share are packed once.
#[derive(Debug, Default)]
pub struct PackCache(HashMap<(usize, usize, Scheme), Arc<PackedWeights>>);

impl PackCache {
    pub(super) fn pack(&mut self, spec: &ConvSpec, scheme: Scheme) -> Arc<PackedWeights> {
        let key = (spec.weights.as_ptr().addr(), spec.groups, scheme);
        self.0.entry(key).or_insert_with(|| Arc::new(PackedWeights::new(spec, scheme))).clone()
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
    /// Bytes from the first tap to each run of quads.
    pub taps: Vec<usize>,
    /// Taps that lie side by side in memory count as one run of so many.
    pub taps_in_run: usize,
    pub weights: Arc<PackedWeights>,
    pub bias: Vec<i32>,
    pub multipliers: Vec<f32>,
    pub zero_point: u8,
    pub lo: u8,
    pub hi: u8,
}

impl PackedConv {
    /// `None` where the layouts do not suit: no quads, or too little halo.
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout, scheme: Scheme, cache: &mut PackCache) -> Option<Self> {
        let window = &spec.window;
        let need = window.halo(input.shape);
        let fits = input.pixel_stride.is_multiple_of(4)
            && output.pixel_stride >= output.shape.c.next_multiple_of(scheme.lanes)
            && need.union(input.halo) == input.halo;
        if !fits {
            return None;
        }
        let weights = cache.pack(spec, scheme);
        let n_quads = input.shape.c.div_ceil(4);
        let is_run = spec.groups == 1 && window.dilation.1 == 1 && input.pixel_stride == 4 * n_quads;
        let taps_in_run = if is_run { window.kernel.1 } else { 1 };
        let taps = (0..window.kernel.0).flat_map(|ky| (0..window.kernel.1).step_by(taps_in_run).map(move |kx| (ky, kx)));
        let taps = taps.map(|(ky, kx)| ky * window.dilation.0 * input.row_stride() + kx * window.dilation.1 * input.pixel_stride);
        let n = spec.out_channels();
        Some(Self {
            input,
            output,
            stride: window.stride,
            lanes: scheme.lanes,
            lead: window.pads[0] * input.row_stride() + window.pads[1] * input.pixel_stride,
            taps: taps.collect(),
            taps_in_run,
            bias: weights.by_lane(scheme, n, 0, |o| spec.folded_bias(o)),
            multipliers: weights.by_lane(scheme, n, 0.0, |o| spec.requant.multipliers[o]),
            weights,
            zero_point: spec.requant.zero_point,
            lo: spec.requant.lo,
            hi: spec.requant.hi,
        })
    }
}
