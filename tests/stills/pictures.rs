//! Picture files of every kind that cameras and tools write.

use fovea::images;
use image::{DynamicImage, GrayAlphaImage, ImageBuffer, ImageFormat, Luma, LumaA, RgbImage, Rgba, RgbaImage};
use std::io::Cursor;

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).expect("it can be encoded");
    bytes.into_inner()
}

/// A 6x4 picture: red on the left, blue on the right.
fn halves() -> RgbImage {
    RgbImage::from_fn(6, 4, |x, _| if x < 3 { image::Rgb([255, 0, 0]) } else { image::Rgb([0, 0, 255]) })
}

#[test]
fn all_kinds_are_read_as_rgb() {
    let rgba = RgbaImage::from_pixel(5, 3, Rgba([10, 20, 30, 7]));
    let gray16 = ImageBuffer::<Luma<u16>, _>::from_pixel(5, 3, Luma([0x8080]));
    let gray_alpha = GrayAlphaImage::from_pixel(5, 3, LumaA([77, 0]));
    for (picture, format, want) in [
        (DynamicImage::from(rgba.clone()), ImageFormat::Png, [10, 20, 30]),
        (DynamicImage::from(rgba), ImageFormat::WebP, [10, 20, 30]),
        (DynamicImage::from(gray16), ImageFormat::Png, [128, 128, 128]),
        (DynamicImage::from(gray_alpha), ImageFormat::Png, [77, 77, 77]),
    ] {
        let read = images::decode(&encoded(&picture, format)).expect("it can be read");
        assert_eq!((read.width, read.height), (5, 3));
        assert!(read.data.as_chunks::<3>().0.iter().all(|pixel| *pixel == want), "{format:?}: {:?}", &read.data[..3]);
    }
}

/// EXIF orientation 6: the camera was turned, the picture has to be turned clockwise.
#[test]
fn the_orientation_that_a_camera_noted_is_applied() {
    let jpeg = encoded(&DynamicImage::from(halves()), ImageFormat::Jpeg);
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
    let len = u16::try_from(exif.len() + 2).expect("short").to_be_bytes();
    let mut turned = vec![0xFF, 0xD8, 0xFF, 0xE1, len[0], len[1]];
    turned.append(&mut exif);
    turned.extend_from_slice(&jpeg[2..]);
    let (plain, turned) = (images::decode(&jpeg).expect("a picture"), images::decode(&turned).expect("a picture"));
    assert_eq!((plain.width, plain.height), (6, 4));
    assert_eq!((turned.width, turned.height), (4, 6));
    let is_red = |pixel: &[u8]| pixel[0] > 150 && pixel[2] < 100;
    assert!(is_red(&plain.data[..3]) && !is_red(&plain.data[15..18]), "red on the left");
    assert!(is_red(&turned.data[9..12]) && !is_red(&turned.data[60..63]), "left has become top");
}

#[test]
fn what_is_saved_is_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let picture = images::RgbPicture { width: 6, height: 4, data: halves().into_raw() };
    let path = folder.path().join("a.png");
    images::save(&path, &picture).expect("it can be written");
    assert_eq!(images::open(&path).expect("it can be read"), picture);
    let error = images::save(&folder.path().join("none/a.png"), &picture).expect_err("no such folder").to_string();
    assert!(error.contains("none/a.png"), "{error}");
}
