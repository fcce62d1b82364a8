//! Real values to pixels and back, 4 pixels at a time.

use crate::kernels::Layout;
use crate::quant::QuantParams;
use std::arch::aarch64::*;

/// As `Kernels::quantize_planes`, for three planes and pixels of three bytes.
pub(in crate::kernels) fn quantize_rgb_planes(planes: &[f32], params: QuantParams, layout: &Layout, out: &mut [u8]) {
    let (columns, cells) = (layout.shape.w, layout.shape.h * layout.shape.w);
    assert!(planes.len() == 3 * cells && layout.pixel_stride == 3, "three planes, three bytes a pixel");
    for (y, row) in out[layout.body()].chunks_exact_mut(layout.row_stride()).enumerate() {
        let plane = |c: usize| &planes[c * cells + y * columns..][..columns];
        let planes = [plane(0), plane(1), plane(2)];
        let (pixels, _) = row[3 * layout.halo.left..][..3 * columns].as_chunks_mut::<12>();
        // SAFETY: only called through `Kernels`, which vouches for the CPU.
        unsafe { quantize_row(planes, params, pixels) };
        for x in 4 * pixels.len()..columns {
            for c in 0..3 {
                row[3 * (layout.halo.left + x) + c] = params.quantize(planes[c][x]);
            }
        }
    }
}

/// # Safety
/// The CPU has the instruction set.
#[target_feature(enable = "neon")]
unsafe fn quantize_row(planes: [&[f32]; 3], params: QuantParams, out: &mut [[u8; 12]]) {
    let (scale, zero_point) = (vdupq_n_f32(params.scale), vdupq_n_s32(i32::from(params.zero_point)));
    let (lo, hi) = (f32::from(params.zero_point), 255.0 - f32::from(params.zero_point));
    let (lo, hi) = (vdupq_n_f32(-lo), vdupq_n_f32(hi));
    // SAFETY: 16 bytes.
    let three_of_four = unsafe { vld1q_u8([0_u8, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 15, 15, 15].as_ptr()) };
    let [red, green, blue] = planes.map(|plane| plane.as_chunks::<4>().0);
    for (((red, green), blue), out) in red.iter().zip(green).zip(blue).zip(out) {
        let quantize = |plane: &[f32; 4]| {
            // SAFETY: four values.
            let real = unsafe { vld1q_f32(plane.as_ptr()) };
            // The number wins where the other is NaN.
            let steps = vminnmq_f32(vmaxnmq_f32(vdivq_f32(real, scale), lo), hi);
            vreinterpretq_u32_s32(vaddq_s32(vcvtnq_s32_f32(steps), zero_point))
        };
        let (red, green, blue) = (quantize(red), quantize(green), quantize(blue));
        let pixels = vorrq_u32(vorrq_u32(red, vshlq_n_u32::<8>(green)), vshlq_n_u32::<16>(blue));
        // The fourth byte of every pixel goes.
        let packed = vqtbl1q_u8(vreinterpretq_u8_u32(pixels), three_of_four);
        let mut bytes = [0; 16];
        // SAFETY: 16 bytes.
        unsafe { vst1q_u8(bytes.as_mut_ptr(), packed) };
        out.copy_from_slice(&bytes[..12]);
    }
}

/// As `Kernels::dequantize_planes`, for pixels of a multiple of 16 bytes.
pub(in crate::kernels) fn dequantize_planes(values: &[u8], params: QuantParams, layout: &Layout, planes: &mut [f32]) {
    assert!(values.len() >= layout.len() && planes.len() == layout.shape.len(), "pixels and planes of one map");
    // SAFETY: only called through `Kernels`, which vouches for the CPU; the sizes were checked.
    unsafe { dequantize(values, params, layout, planes) };
}

/// # Safety
/// The CPU has the instruction set; the buffers have the sizes of the layout, whose pixels take a multiple of 16 bytes.
#[target_feature(enable = "neon")]
unsafe fn dequantize(values: &[u8], params: QuantParams, layout: &Layout, planes: &mut [f32]) {
    let (columns, cells, channels) = (layout.shape.w, layout.shape.h * layout.shape.w, layout.shape.c);
    let (scale, zero_point) = (vdupq_n_f32(params.scale), vdupq_n_s32(i32::from(params.zero_point)));
    for y in 0..layout.shape.h {
        for x in (0..columns / 4 * 4).step_by(4) {
            for first in (0..channels).step_by(16) {
                // SAFETY: 16 bytes of a pixel inside the map.
                let row = |dx: usize| unsafe { vld1q_u8(values.as_ptr().add(layout.offset(y, x + dx) + first)) };
                for (c, columns_of) in (first..channels).zip(transpose([row(0), row(1), row(2), row(3)]).into_iter().flatten()) {
                    let steps = vsubq_s32(columns_of, zero_point);
                    let real = vmulq_f32(scale, vcvtq_f32_s32(steps));
                    // SAFETY: four columns of the plane's row.
                    unsafe { vst1q_f32(planes.as_mut_ptr().add(c * cells + y * columns + x), real) };
                }
            }
        }
        for x in columns / 4 * 4..columns {
            for (c, &value) in layout.pixel(values, y, x).iter().enumerate() {
                planes[c * cells + y * columns + x] = params.dequantize(value);
            }
        }
    }
}

/// Four rows of 16 bytes to 16 columns of four integers.
#[inline]
#[target_feature(enable = "neon")]
fn transpose(rows: [uint8x16_t; 4]) -> [[int32x4_t; 4]; 4] {
    let (even_lo, even_hi) = (vzip1q_u8(rows[0], rows[2]), vzip2q_u8(rows[0], rows[2]));
    let (odd_lo, odd_hi) = (vzip1q_u8(rows[1], rows[3]), vzip2q_u8(rows[1], rows[3]));
    let quads = [vzip1q_u8(even_lo, odd_lo), vzip2q_u8(even_lo, odd_lo), vzip1q_u8(even_hi, odd_hi), vzip2q_u8(even_hi, odd_hi)];
    quads.map(|quads| {
        let (lo, hi) = (vmovl_u8(vget_low_u8(quads)), vmovl_high_u8(quads));
        [vmovl_u16(vget_low_u16(lo)), vmovl_high_u16(lo), vmovl_u16(vget_low_u16(hi)), vmovl_high_u16(hi)]
            .map(|wide| vreinterpretq_s32_u32(wide))
    })
}
