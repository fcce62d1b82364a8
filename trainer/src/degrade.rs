//! What cameras and links do to pictures: darkness, blur, noise, compression. On RGB, `[H, W, 3]`, in place.

use fovea::images;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// `255 x (value / 255) ^ gamma`, times a gain for each of red, green, blue.
pub(crate) fn darken(pixels: &mut [u8], gamma: f32, gains: [f32; 3]) {
    let table = gains.map(|gain| -> [u8; 256] {
        std::array::from_fn(|value| (255.0 * gain * (value as f32 / 255.0).powf(gamma) + 0.5) as u8)
    });
    for pixel in pixels.as_chunks_mut::<3>().0 {
        for (value, table) in pixel.iter_mut().zip(&table) {
            *value = table[usize::from(*value)];
        }
    }
}

/// Mean over `columns` x `rows` pixels, both odd; the picture's edge goes on beyond it.
pub(crate) fn blur(pixels: &mut [u8], width: usize, columns: usize, rows: usize) {
    if columns > 1 {
        pixels.chunks_exact_mut(3 * width).for_each(|row| running_mean(row, 3, columns));
    }
    if rows > 1 {
        running_mean(pixels, 3 * width, rows);
    }
}

/// Every element of `lanes` values becomes the mean of the `len` elements around it.
fn running_mean(values: &mut [u8], lanes: usize, len: usize) {
    let source = values.to_vec();
    let (last, half) = (values.len() / lanes - 1, len / 2);
    // Counted from `half` elements before the first.
    let element = |at: usize| &source[at.saturating_sub(half).min(last) * lanes..][..lanes];
    let mut sums = vec![0_u32; lanes];
    for at in 0..len {
        sums.iter_mut().zip(element(at)).for_each(|(sum, &value)| *sum += u32::from(value));
    }
    let share = 65_536 / len as u32;
    for (at, out) in values.chunks_exact_mut(lanes).enumerate() {
        for ((out, sum), (&old, &new)) in out.iter_mut().zip(&mut sums).zip(element(at).iter().zip(element(at + len))) {
            *out = ((*sum * share + 32_768) >> 16) as u8;
            *sum = *sum + u32::from(new) - u32::from(old);
        }
    }
}

/// Adds noise with this standard deviation to every value. Its shape is the binomial of 16 coins, which is near enough to a
/// Gaussian and costs two random bytes.
pub(crate) fn add_noise(pixels: &mut [u8], deviation: f32, rng: &mut ChaCha8Rng) {
    // 16 coins have a standard deviation of 2.
    let table: [i16; 17] = std::array::from_fn(|heads| ((heads as f32 - 8.0) * 0.5 * deviation).round() as i16);
    let mut random = [0_u8; 1536];
    for values in pixels.chunks_mut(random.len() / 2) {
        rng.fill_bytes(&mut random);
        for (value, coins) in values.iter_mut().zip(random.as_chunks::<2>().0) {
            let heads = u16::from_le_bytes(*coins).count_ones() as usize;
            *value = (i16::from(*value) + table[heads]).clamp(0, 255) as u8;
        }
    }
}

/// The picture after JPEG of a quality of 1 to 100.
pub(crate) fn recompress(pixels: &mut [u8], (width, height): (usize, usize), quality: u8) {
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
    let encoded = encoder.encode(pixels, width as u32, height as u32, ExtendedColorType::Rgb8);
    // In memory and of this size neither step fails.
    if encoded.is_ok()
        && let Ok(picture) = images::decode(&bytes)
        && picture.data.len() == pixels.len()
    {
        pixels.copy_from_slice(&picture.data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const SIZE: (usize, usize) = (64, 48);

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    fn mean_and_deviation(values: &[u8]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        (mean, (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt())
    }

    /// Smooth, so that compression has little to lose.
    fn ramp() -> Vec<u8> {
        (0..SIZE.0 * SIZE.1).flat_map(|at| [(at % SIZE.0 * 3) as u8, (at / SIZE.0 * 4) as u8, 120]).collect()
    }

    #[test]
    fn means_over_a_window_with_the_edge_going_on() {
        let mut row = [0, 0, 0, 90, 0, 0, 255, 255];
        running_mean(&mut row, 1, 3);
        assert_eq!(row, [0, 0, 30, 30, 30, 85, 170, 255]);
        // Two columns of pixels, down the rows.
        let mut columns = [10, 20, 30, 200, 100, 0, 10, 20, 30, 200, 100, 0, 70, 80, 90, 200, 100, 0];
        blur(&mut columns, 2, 1, 3);
        assert_eq!(columns, [10, 20, 30, 200, 100, 0, 30, 40, 50, 200, 100, 0, 50, 60, 70, 200, 100, 0]);
        for len in [3, 5, 7] {
            let mut white = [255; 24];
            blur(&mut white, 4, len, len);
            assert_eq!(white, [255; 24]);
        }
    }

    #[test]
    fn noise_has_its_deviation_and_no_bias() {
        for deviation in [2.0, 8.0, 15.0] {
            let mut pixels = vec![128; SIZE.0 * SIZE.1 * 3];
            add_noise(&mut pixels, deviation, &mut rng(3));
            let (mean, found) = mean_and_deviation(&pixels);
            assert!((mean - 128.0).abs() < 0.5, "mean {mean}");
            assert!((found - f64::from(deviation)).abs() < 0.05 * f64::from(deviation), "{found} for {deviation}");
        }
    }

    #[test]
    fn darkness_follows_the_formula() {
        let mut pixels = [0, 128, 255, 255, 255, 128];
        darken(&mut pixels, 2.0, [1.0, 1.0, 0.5]);
        assert_eq!(pixels, [0, 64, 128, 255, 255, 32]);
    }

    #[test]
    fn compression_loses_more_at_lower_quality() {
        let lost = |quality: u8| {
            let mut pixels = ramp();
            add_noise(&mut pixels, 12.0, &mut rng(1));
            let before = pixels.clone();
            recompress(&mut pixels, SIZE, quality);
            pixels.iter().zip(&before).map(|(&a, &b)| f64::from(a.abs_diff(b))).sum::<f64>() / before.len() as f64
        };
        let (good, bad) = (lost(95), lost(20));
        assert!(good > 0.0 && good < 6.0 && bad > good && bad < 20.0, "quality 95 changes values by {good}, 20 by {bad}");
    }
}
