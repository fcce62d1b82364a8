//! The inner loops of the network: integer operators on `u8` activations, channels innermost.
//!
//! [`OpSpec`] says what an operator computes and [`scalar`] is the specification in code: plain loops whose results every
//! other instruction set must reproduce bit for bit. [`Kernels::prepare`] packs weights for one instruction set and gives
//! back a [`RowKernel`], whose rows may be computed by any thread in any order. `docs/kernels.md` says how to add one.

#[cfg(target_arch = "aarch64")]
mod aarch64;
pub mod edges;
mod layout;
#[expect(unsafe_code, reason = "calls vector kernels: see the safety comments")]
mod maxpool;
mod op;
mod pack;
#[expect(unsafe_code, reason = "a job is borrowed from the caller who waits for it: see the module's documentation")]
mod pool;
pub mod postprocess;
mod preprocess;
#[expect(unsafe_code, reason = "a list of lines is a list of values")]
mod reals;
#[expect(unsafe_code, reason = "threads write disjoint pieces of one arena: see the safety comments")]
mod region;
pub mod scalar;
mod then;
#[expect(unsafe_code, reason = "calls vector kernels: see the safety comments")]
mod tiles;
mod turn;
#[expect(unsafe_code, reason = "calls vector kernels: see the safety comments")]
mod winograd;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use layout::{Halo, Layout, Shape, Window};
pub use op::{AddTerm, ConvSpec, OpSpec, Requantization, RowKernel, Table};
pub use pack::PackCache;
pub use pool::Pool;
pub use preprocess::{Component, Grid, PictureKernel, PictureSpec, PlaneSpec, TapTable};
pub use reals::Reals;
pub use region::{MAX_INPUTS, Place, PlacedKernel, Region, RegionError};

use std::sync::OnceLock;

/// An instruction set with kernels of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// Plain loops: every CPU.
    Scalar,
    /// x86-64 with AVX2.
    Avx2,
    /// x86-64 with AVX2 and its byte dot product (AVX-VNNI).
    AvxVnni,
    /// x86-64 with AVX-512 and its byte dot product (F, BW, VL, DQ, VNNI).
    Avx512Vnni,
    /// Arm with Advanced SIMD: every 64-bit Arm.
    Neon,
    /// Arm with the byte dot product (`FEAT_DotProd`).
    Dotprod,
    /// Arm with the byte dot product and the byte matrix product (`FEAT_I8MM`).
    I8mm,
}

impl Isa {
    /// All that this build knows, the best last.
    pub const ALL: &[Self] = &[Self::Scalar, Self::Avx2, Self::AvxVnni, Self::Avx512Vnni, Self::Neon, Self::Dotprod, Self::I8mm];

    /// Those in this build that this CPU has, the best last.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ALL.iter().copied().filter(|isa| isa.is_available()).collect()
    }

    fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86_64::avx2::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => x86_64::avxvnni::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => x86_64::avx512vnni::is_available(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => aarch64::neon::is_available(),
            #[cfg(target_arch = "aarch64")]
            Self::Dotprod => aarch64::dotprod::is_available(),
            #[cfg(target_arch = "aarch64")]
            Self::I8mm => aarch64::i8mm::is_available(),
            _ => false,
        }
    }

    /// Its own kernel for an operator, where it has one beyond the plain loops. This CPU must have it.
    fn prepare(self, op: &OpSpec, inputs: &[Layout], output: Layout, cache: &mut PackCache) -> Option<Box<dyn RowKernel>> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86_64::avx2::prepare(op, inputs, output, cache),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => x86_64::avxvnni::prepare(op, inputs, output, cache),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => x86_64::avx512vnni::prepare(op, inputs, output, cache),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => aarch64::neon::prepare(op, inputs, output, cache),
            #[cfg(target_arch = "aarch64")]
            Self::Dotprod => aarch64::dotprod::prepare(op, inputs, output, cache),
            #[cfg(target_arch = "aarch64")]
            Self::I8mm => aarch64::i8mm::prepare(op, inputs, output, cache),
            _ => {
                let _ = (op, inputs, output, cache);
                None
            }
        }
    }

    /// Name in reports and in `FOVEA_ISA`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512Vnni => "avx512vnni",
            Self::Neon => "neon",
            Self::Dotprod => "dotprod",
            Self::I8mm => "i8mm",
        }
    }
}

/// The kernels of one instruction set. That one exists is the proof that this CPU has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    isa: Isa,
}

/// What [`Kernels::choose`] was told.
static CHOSEN: OnceLock<Kernels> = OnceLock::new();

impl Default for Kernels {
    /// Those that were chosen for the process, else the best that this CPU has.
    fn default() -> Self {
        *CHOSEN.get_or_init(Self::best)
    }
}

impl Kernels {
    /// The kernels of `isa`; `None` if this CPU does not have it.
    #[must_use]
    pub fn new(isa: Isa) -> Option<Self> {
        isa.is_available().then_some(Self { isa })
    }

    /// The best that this CPU has.
    #[must_use]
    pub fn best() -> Self {
        Self { isa: Isa::available().last().copied().unwrap_or(Isa::Scalar) }
    }

    /// Makes these the default of the process. Only the first choice counts: gives whichever holds from now on.
    pub fn choose(self) -> Self {
        *CHOSEN.get_or_init(|| self)
    }

    /// Their instruction set.
    #[must_use]
    pub const fn isa(self) -> Isa {
        self.isa
    }

    /// Multiplies numbers in registers for some ten microseconds and gives how many multiplications that was: what one thread
    /// can reach at most with these kernels' own dot product. 0 where that is not known.
    #[must_use]
    pub fn saturate(self) -> usize {
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86_64::avx2::saturate(),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => x86_64::avxvnni::saturate(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => x86_64::avx512vnni::saturate(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => aarch64::neon::saturate(),
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod => aarch64::dotprod::saturate(),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => aarch64::i8mm::saturate(),
            _ => 0,
        }
    }

    /// Prepares an operator for buffers of these layouts. What this instruction set has no kernel for is done by the
    /// next lower one; the label says so.
    ///
    /// # Panics
    /// If layouts and operator contradict each other ([`OpSpec::fits`]); the loader makes layouts that do not.
    #[must_use]
    pub fn prepare(self, op: &OpSpec, inputs: &[Layout], output: Layout, cache: &mut PackCache) -> Box<dyn RowKernel> {
        assert!(op.fits(inputs, output), "{} of {inputs:?} into {output:?}", op.name());
        if let OpSpec::ConvAdd { conv, terms, zero_point, lo, hi } = op {
            let sum = OpSpec::AddTo { terms: *terms, zero_point: *zero_point, lo: *lo, hi: *hi };
            let first = self.prepare(&OpSpec::Conv(conv.clone()), &inputs[..1], output, cache);
            let second = self.prepare(&sum, &inputs[1..], output, cache);
            return Box::new(then::Then { first, second, output });
        }
        let lower = Isa::ALL.iter().rev().skip_while(|&&isa| isa != self.isa).filter(|isa| isa.is_available());
        let kernel = lower.copied().find_map(|isa| isa.prepare(op, inputs, output, cache));
        kernel.unwrap_or_else(|| scalar::prepare(op, inputs, output))
    }
}
