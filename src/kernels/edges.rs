//! Where a network begins and ends: pictures and real values in, dense or real values out.

#[cfg(target_arch = "aarch64")]
use super::aarch64::neon;
#[cfg(target_arch = "x86_64")]
use super::x86_64::{avx2, avx512vnni};
use super::{Isa, Kernels, Layout, Table};
use crate::quant::QuantParams;

/// The loops of an instruction set.
struct Edges {
    /// Three planes to pixels of three bytes.
    quantize_rgb_planes: fn(&[f32], QuantParams, &Layout, &mut [u8]),
    /// Pixels of a multiple of 16 bytes to planes.
    dequantize_planes: fn(&[u8], QuantParams, &Layout, &mut [f32]),
}

impl Isa {
    /// `None`: the plain loops.
    const fn edges(self) -> Option<Edges> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::AvxVnni => {
                Some(Edges { quantize_rgb_planes: avx2::quantize_rgb_planes, dequantize_planes: avx2::dequantize_planes })
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => Some(Edges {
                quantize_rgb_planes: avx512vnni::quantize_rgb_planes,
                dequantize_planes: avx512vnni::dequantize_planes,
            }),
            #[cfg(target_arch = "aarch64")]
            Self::Neon | Self::Dotprod | Self::I8mm => {
                Some(Edges { quantize_rgb_planes: neon::quantize_rgb_planes, dequantize_planes: neon::dequantize_planes })
            }
            _ => None,
        }
    }
}

/// Whether pixels are RGB without gaps.
const fn is_rgb_picture(layout: &Layout) -> bool {
    layout.shape.c == 3 && layout.pixel_stride == 3
}

impl Kernels {
    /// Real values `[C, H, W]` to quantised pixels ([`QuantParams::quantize`]); the halo is left as it is.
    ///
    /// # Panics
    /// If a buffer has another size than the layout says.
    pub fn quantize_planes(self, planes: &[f32], params: QuantParams, layout: &Layout, out: &mut [u8]) {
        assert!(planes.len() == layout.shape.len() && out.len() >= layout.len(), "planes and pixels of one picture");
        if is_rgb_picture(layout)
            && let Some(edges) = self.isa.edges()
        {
            return (edges.quantize_rgb_planes)(planes, params, layout, out);
        }
        let (columns, cells) = (layout.shape.w, layout.shape.h * layout.shape.w);
        for (y, row) in out[layout.body()].chunks_exact_mut(layout.row_stride()).enumerate() {
            for (x, pixel) in layout.pixels_mut(row).enumerate() {
                for (c, value) in pixel.iter_mut().enumerate() {
                    *value = params.quantize(planes[c * cells + y * columns + x]);
                }
            }
        }
    }

    /// Dense bytes `[H, W, C]` to pixels, through a table for each channel where there are some; the halo is left as it is.
    ///
    /// # Panics
    /// If a buffer has another size than the layout says.
    pub fn spread_pixels(self, dense: &[u8], tables: Option<&[Table; 3]>, layout: &Layout, out: &mut [u8]) {
        assert!(dense.len() == layout.shape.len() && out.len() >= layout.len(), "bytes and pixels of one picture");
        let dense_rows = dense.chunks_exact(layout.shape.w * layout.shape.c);
        for (dense, row) in dense_rows.zip(out[layout.body()].chunks_exact_mut(layout.row_stride())) {
            if tables.is_none() && layout.pixel_stride == layout.shape.c {
                row[layout.halo.left * layout.pixel_stride..][..dense.len()].copy_from_slice(dense);
                continue;
            }
            for (pixel, out) in dense.chunks_exact(layout.shape.c).zip(layout.pixels_mut(row)) {
                match tables {
                    None => out.copy_from_slice(pixel),
                    Some(tables) => {
                        for ((out, &value), table) in out.iter_mut().zip(pixel).zip(tables) {
                            *out = table[usize::from(value)];
                        }
                    }
                }
            }
        }
    }

    /// Pixels to dense bytes `[H, W, C]`.
    ///
    /// # Panics
    /// If a buffer has another size than the layout says.
    pub fn gather_pixels(self, values: &[u8], layout: &Layout, dense: &mut [u8]) {
        let channels = layout.shape.c;
        assert!(dense.len() == layout.shape.len() && values.len() >= layout.len(), "bytes and pixels of one map");
        let rows = values[layout.body()].chunks_exact(layout.row_stride());
        for (row, dense) in rows.zip(dense.chunks_exact_mut(layout.shape.w * channels)) {
            let pixels = row[layout.halo.left * layout.pixel_stride..].chunks_exact(layout.pixel_stride);
            for (pixel, dense) in pixels.zip(dense.chunks_exact_mut(channels)) {
                dense.copy_from_slice(&pixel[..channels]);
            }
        }
    }

    /// Pixels to real values `[C, H, W]` ([`QuantParams::dequantize`]).
    ///
    /// # Panics
    /// If a buffer has another size than the layout says.
    pub fn dequantize_planes(self, values: &[u8], params: QuantParams, layout: &Layout, planes: &mut [f32]) {
        assert!(planes.len() == layout.shape.len() && values.len() >= layout.len(), "planes and pixels of one map");
        assert!(layout.pixel_stride >= layout.shape.c, "pixels that hold their channels");
        if layout.pixel_stride.is_multiple_of(16)
            && let Some(edges) = self.isa.edges()
        {
            return (edges.dequantize_planes)(values, params, layout, planes);
        }
        let (columns, cells) = (layout.shape.w, layout.shape.h * layout.shape.w);
        for y in 0..layout.shape.h {
            for x in 0..columns {
                for (c, &value) in layout.pixel(values, y, x).iter().enumerate() {
                    planes[c * cells + y * columns + x] = params.dequantize(value);
                }
            }
        }
    }
}
