//! How good detections are: the COCO metrics.

mod coco;
mod metrics;

pub use coco::{CocoAnnotation, CocoCategory, CocoDataset, CocoError, CocoImage, IGNORE_FROM, OBJECT_FROM};
pub use metrics::{
    ClassOutcomes, ClassReport, CocoEvaluator, Counts, EvalError, EvalReport, F1Threshold, MAX_DETECTIONS, Resampling,
};
