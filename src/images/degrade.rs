//! Pictures made worse, the same way on every machine: how a model fares at night, in rain, out of focus.
//!
//! Integer arithmetic only, on the values of one channel; noise comes from a generator that the picture's own bytes seed, so
//! every picture has its own and always the same. Sizes stay, so labels hold. `docs/training.md` states each formula.

use super::{RgbPicture, decode};
use image::codecs::jpeg::JpegEncoder;

/// A way to make a picture worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Degradation {
    /// Little light and a noisy sensor: `v² / 510 + n`, `n` from -15 to 15, triangular.
    Night,
    /// Out of focus: weights 1 4 6 4 1 in rows and columns, twice; standard deviation 1.4 pixels.
    Blur,
    /// Less contrast (`v x 7 / 8 + 20`) and slanted streaks, one for each 300 pixels, 8 to 23 pixels long, half way to 220.
    Rain,
    /// JPEG of quality 30.
    Jpeg30,
    /// Half the resolution: the mean of 2 x 2 pixels in all four.
    Half,
}

impl Degradation {
    /// All of them, by the name that commands know.
    pub const ALL: [(&'static str, Self); 5] =
        [("night", Self::Night), ("blur", Self::Blur), ("rain", Self::Rain), ("jpeg30", Self::Jpeg30), ("half", Self::Half)];

    /// The picture, made worse.
    ///
    /// # Errors
    /// What the JPEG library says, for [`Self::Jpeg30`].
    pub fn apply(self, picture: &RgbPicture) -> Result<RgbPicture, String> {
        let mut worse = picture.clone();
        match self {
            Self::Night => night(&mut worse),
            Self::Blur => (0..2).for_each(|_| blur(&mut worse)),
            Self::Rain => rain(&mut worse),
            Self::Jpeg30 => return jpeg(picture, 30),
            Self::Half => half(&mut worse),
        }
        Ok(worse)
    }
}

/// Numbers that look random: xorshift64 (Marsaglia 2003), seeded by FNV-1a over bytes.
struct Noise(u64);

impl Noise {
    fn of(bytes: &[u8]) -> Self {
        let seed =
            bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Self(seed | 1)
    }

    /// A number from 0 up to, not including, `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 16) % (end.max(1) as u64)).unwrap_or(0)
    }
}

fn night(picture: &mut RgbPicture) {
    let mut noise = Noise::of(&picture.data);
    for value in &mut picture.data {
        let dark = usize::from(*value).pow(2) / 510;
        *value = saturate((dark + noise.below(16) + noise.below(16)).saturating_sub(15));
    }
}

fn blur(picture: &mut RgbPicture) {
    let RgbPicture { width, height, .. } = *picture;
    let pass = |from: &[u8], n: usize, step: usize, lines: &mut dyn Iterator<Item = usize>| {
        let mut to = from.to_vec();
        for start in lines {
            for i in 0..n {
                let at = |offset: usize| usize::from(from[start + (i + offset).saturating_sub(2).min(n - 1) * step]);
                let sum = at(0) + 4 * at(1) + 6 * at(2) + 4 * at(3) + at(4);
                to[start + i * step] = saturate((sum + 8) / 16);
            }
        }
        to
    };
    let rows = pass(&picture.data, width, 3, &mut (0..height).flat_map(|y| (0..3).map(move |c| y * width * 3 + c)));
    picture.data = pass(&rows, height, 3 * width, &mut (0..3 * width));
}

fn rain(picture: &mut RgbPicture) {
    let mut noise = Noise::of(&picture.data);
    let RgbPicture { width, height, .. } = *picture;
    picture.data.iter_mut().for_each(|value| *value = saturate(usize::from(*value) * 7 / 8 + 20));
    for _ in 0..width * height / 300 {
        let (x, y, len) = (noise.below(width), noise.below(height), 8 + noise.below(16));
        // One pixel to the right for four down.
        for i in (0..len).filter(|i| x + i / 4 < width && y + i < height) {
            let place = ((y + i) * width + x + i / 4) * 3;
            picture.data[place..place + 3].iter_mut().for_each(|value| *value = saturate((usize::from(*value) + 220) / 2));
        }
    }
}

fn jpeg(picture: &RgbPicture, quality: u8) -> Result<RgbPicture, String> {
    let side = |side: usize| u32::try_from(side).map_err(|error| error.to_string());
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode(&picture.data, side(picture.width)?, side(picture.height)?, image::ExtendedColorType::Rgb8)
        .map_err(|error| error.to_string())?;
    decode(&bytes)
}

fn half(picture: &mut RgbPicture) {
    let RgbPicture { width, height, .. } = *picture;
    let from = picture.data.clone();
    for (place, value) in picture.data.iter_mut().enumerate() {
        let (x, y, channel) = (place / 3 % width / 2 * 2, place / 3 / width / 2 * 2, place % 3);
        let at =
            |dx: usize, dy: usize| usize::from(from[((y + dy).min(height - 1) * width + (x + dx).min(width - 1)) * 3 + channel]);
        *value = saturate((at(0, 0) + at(1, 0) + at(0, 1) + at(1, 1) + 2) / 4);
    }
}

fn saturate(value: usize) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize) -> RgbPicture {
        let value = |i: usize| saturate((i * i / 7 + 31 * (i / 96)) % 256);
        RgbPicture { width, height, data: (0..width * height * 3).map(value).collect() }
    }

    #[test]
    fn every_degradation_keeps_the_size_and_is_the_same_twice() {
        for (width, height) in [(1, 1), (2, 3), (5, 4), (33, 47)] {
            for (name, kind) in Degradation::ALL {
                let [a, b] = [0, 1].map(|_| kind.apply(&picture(width, height)).unwrap());
                assert_eq!(a, b, "{name}");
                assert_eq!((a.width, a.height, a.data.len()), (width, height, width * height * 3), "{name}");
            }
        }
    }

    #[test]
    fn formulas_as_documented() {
        let flat = |value: u8| RgbPicture { width: 40, height: 60, data: vec![value; 40 * 60 * 3] };
        let mean = |picture: &RgbPicture| picture.data.iter().map(|&v| usize::from(v)).sum::<usize>() / picture.data.len();
        // 200² / 510 is 78; noise has mean 0 and reaches 15.
        let night = Degradation::Night.apply(&flat(200)).unwrap();
        assert!((77..=79).contains(&mean(&night)) && night.data.iter().all(|v| (63..=93).contains(v)), "{}", mean(&night));
        assert!(night.data.contains(&64) && night.data.contains(&92), "both ends of the noise are reached");
        // What is even stays even, out of focus or at half resolution.
        for kind in [Degradation::Blur, Degradation::Half] {
            assert_eq!(kind.apply(&flat(137)).unwrap(), flat(137), "{kind:?}");
        }
        // 160 x 7 / 8 + 20; streaks are half way to 220, or further where they cross.
        let rain = Degradation::Rain.apply(&flat(160)).unwrap();
        let n_dry = rain.data.iter().filter(|&&v| v == 160).count();
        assert!(rain.data.iter().all(|&v| v == 160 || v >= 190) && n_dry * 10 > rain.data.len() * 8 && n_dry < rain.data.len());
        // One white pixel: 2 x 2 share it; out of focus its middle keeps (6 / 16)⁴ after two passes less than one.
        let mut dot = flat(0);
        dot.data[(20 * 40 + 20) * 3..][..3].fill(255);
        let half = Degradation::Half.apply(&dot).unwrap();
        assert_eq!(half.data.iter().filter(|&&v| v == 64).count(), 12);
        let blur = Degradation::Blur.apply(&dot).unwrap();
        // The square of (1 4 6 4 1) has 70 of 256 in the middle; in two directions.
        assert!((18..=20).contains(&blur.data[(20 * 40 + 20) * 3]), "{}", blur.data[(20 * 40 + 20) * 3]);
        assert_eq!(blur.data[(20 * 40 + 16) * 3], blur.data[(16 * 40 + 20) * 3], "rows and columns alike");
    }
}
