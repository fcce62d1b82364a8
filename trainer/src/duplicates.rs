//! Pictures that look the same: perceptual hashes and the pairs that are near.

use fovea::images::RgbPicture;
use std::collections::HashMap;

/// Bits in which the hashes of two pictures of the same thing may differ: re-encoding and resizing change fewer.
pub(crate) const NEAR: u32 = 6;
const GRID: usize = 9;

/// Difference hash: which of two neighbouring cells of a 9 x 9 grid is brighter, along rows and along columns.
///
/// Krawetz, "Kind of like that" (hackerfactor.com, 2013), with the columns as well: 128 bits instead of 64.
pub(crate) fn hash(picture: &RgbPicture) -> u128 {
    let mut sums = [[0_u64; GRID]; GRID];
    let mut counts = [[0_u64; GRID]; GRID];
    for (y, row) in picture.data.chunks_exact(3 * picture.width).enumerate() {
        let gy = y * GRID / picture.height;
        for (x, pixel) in row.as_chunks::<3>().0.iter().enumerate() {
            let gx = x * GRID / picture.width;
            sums[gy][gx] += u64::from(pixel[0]) * 299 + u64::from(pixel[1]) * 587 + u64::from(pixel[2]) * 114;
            counts[gy][gx] += 1;
        }
    }
    let level = |x: usize, y: usize| sums[y][x] / counts[y][x].max(1);
    let mut bits = 0_u128;
    for at in 0..GRID - 1 {
        for along in 0..GRID - 1 {
            bits = bits << 1 | u128::from(level(along, at) < level(along + 1, at));
            bits = bits << 1 | u128::from(level(at, along) < level(at, along + 1));
        }
    }
    bits
}

/// Gives every pair of hashes that differ in at most [`NEAR`] bits, the first place below the second; frames of one camera
/// make more of them than memory holds.
///
/// Of 8 blocks of 16 bits at least two are equal in such a pair, so only pictures that share a block are compared.
pub(crate) fn for_each_pair(hashes: &[u128], mut take: impl FnMut(usize, usize)) {
    const { assert!(NEAR < 8) };
    let block = |hash: u128, block: usize| (hash >> (16 * block)) as u16;
    for at in 0..8 {
        let mut same: HashMap<u16, Vec<usize>> = HashMap::new();
        for (idx, &hash) in hashes.iter().enumerate() {
            let others = same.entry(block(hash, at)).or_default();
            // A pair that shares an earlier block is found there.
            let is_new = |other: &usize| (0..at).all(|earlier| block(hashes[*other], earlier) != block(hash, earlier));
            let is_near = |other: &usize| (hashes[*other] ^ hash).count_ones() <= NEAR;
            others.iter().filter(|other| is_near(other) && is_new(other)).for_each(|&other| take(other, idx));
            others.push(idx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Smooth blobs, drawn at any size.
    fn picture(seed: u64, (width, height): (usize, usize)) -> RgbPicture {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let blobs: Vec<[f32; 4]> = (0..12).map(|_| [(); 4].map(|()| rng.random_range(0.0..1.0))).collect();
        let value = |x: f32, y: f32, c: usize| {
            let blob = |b: &[f32; 4]| (b[2 + c % 2] - 0.5) * (-40.0 * ((x - b[0]).powi(2) + (y - b[1]).powi(2))).exp();
            (128.0 + 300.0 * blobs.iter().map(blob).sum::<f32>()).clamp(0.0, 255.0) as u8
        };
        let at = |i: usize| (i / 3 % width, i / 3 / width, i % 3);
        let data = (0..width * height * 3)
            .map(|i| {
                let (x, y, c) = at(i);
                value((x as f32 + 0.5) / width as f32, (y as f32 + 0.5) / height as f32, c)
            })
            .collect();
        RgbPicture { width, height, data }
    }

    fn pairs(hashes: &[u128]) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for_each_pair(hashes, |a, b| found.push((a, b)));
        found.sort_unstable();
        found
    }

    #[test]
    fn the_same_picture_is_found_after_resizing_and_compression_and_no_other() {
        let mut hashes: Vec<u128> = (0..60).map(|seed| hash(&picture(seed, (160, 120)))).collect();
        hashes.push(hash(&picture(7, (97, 73))));
        let mut compressed = picture(30, (160, 120));
        crate::degrade::recompress(&mut compressed.data, (160, 120), 40);
        hashes.push(hash(&compressed));
        assert_eq!(pairs(&hashes), [(7, 60), (30, 61)]);
    }

    #[test]
    fn blocks_find_every_near_pair() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut hashes: Vec<u128> = (0..300).map(|_| u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64())).collect();
        for n in 0..200 {
            let mut near = hashes[n];
            for _ in 0..n % 9 {
                near ^= 1 << rng.random_range(0..128);
            }
            hashes.push(near);
        }
        let all = |i: usize| (i + 1..hashes.len()).map(move |j| (i, j));
        let wanted: Vec<(usize, usize)> =
            (0..hashes.len()).flat_map(all).filter(|&(i, j)| (hashes[i] ^ hashes[j]).count_ones() <= NEAR).collect();
        assert!(wanted.len() > 100);
        assert_eq!(pairs(&hashes), wanted);
    }
}
