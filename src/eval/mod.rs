//! How good detections are: the COCO metrics.

mod coco;

pub use coco::{CocoAnnotation, CocoCategory, CocoDataset, CocoError, CocoImage};
