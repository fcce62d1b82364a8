//! COCO metrics of a network in libtorch, through the same preprocessing and postprocessing as at run time.

use crate::data::{Folder, class_by_category, progress};
use crate::model::{Mode, Model};
use crate::request::Request;
use crate::spec::ModelSpec;
use anyhow::Result;
use fovea::detection::Detection;
use fovea::eval::{CocoEvaluator, CocoImage, EvalReport};
use fovea::frame::Letterbox;
use fovea::pipeline::detector::to_frame;
use fovea::postprocess::Postprocessor;
use fovea::preprocess::Preprocessor;
use fovea::retinanet::{HeadData, HeadOutputs, LevelHeads};
use rayon::prelude::*;
use tch::{Kind, Tensor};

/// Pictures that go through the network together.
const BATCH: usize = 16;

/// Measures a network on a data set; `limit` takes the first pictures only.
pub(crate) fn evaluate(model: &Model, spec: &ModelSpec, folder: &Folder, limit: Option<usize>) -> Result<EvalReport> {
    Ok(detect_all(model, spec, folder, limit)?.0.summarize())
}

/// A data set without any class of the model measures nothing.
pub(crate) fn check_classes(folder: &Folder, spec: &ModelSpec) -> Result<()> {
    if class_by_category(&folder.coco, &spec.classes).is_empty() {
        let names: Vec<&str> = folder.coco.categories.iter().map(|category| category.name.as_str()).collect();
        return Err(Request(format!(
            "{}: none of the model's classes is there: it has {names:?}, the model {:?}; names must be equal",
            folder.dir.display(),
            spec.classes
        ))
        .into());
    }
    Ok(())
}

/// Pictures with what was found in them.
pub(crate) type Found = Vec<(CocoImage, Vec<Detection>)>;

/// Detections of every picture of a data set, and the evaluator that has them.
pub(crate) fn detect_all(
    model: &Model,
    spec: &ModelSpec,
    folder: &Folder,
    limit: Option<usize>,
) -> Result<(CocoEvaluator, Found)> {
    check_classes(folder, spec)?;
    let mut all = Vec::new();
    let mut coco = folder.coco.clone();
    coco.images.truncate(limit.unwrap_or(usize::MAX));
    coco.categories.retain(|category| spec.classes.contains(&category.name));
    let kept: std::collections::HashSet<u64> = coco.images.iter().map(|image| image.id).collect();
    coco.annotations.retain(|annotation| kept.contains(&annotation.image_id));
    let mut evaluator = CocoEvaluator::new(&coco);
    let category_of = categories(folder, spec);
    let post = Postprocessor::new(&spec.manifest("", ""));
    let bar = progress(coco.images.len(), "evaluating");
    for images in coco.images.chunks(BATCH) {
        for (image, found) in images.iter().zip(detect(model, spec, folder, images, &post)?) {
            let scored: Vec<(u32, f64, [f64; 4])> = found
                .iter()
                .filter_map(|d| {
                    let [x1, y1, x2, y2] = d.bbox.to_array().map(f64::from);
                    Some((category_of[d.class_id.index()]?, f64::from(d.score), [x1, y1, x2 - x1, y2 - y1]))
                })
                .collect();
            evaluator.add(image.id, &scored)?;
            all.push((image.clone(), found));
        }
        bar.inc(images.len() as u64);
    }
    bar.finish_and_clear();
    Ok((evaluator, all))
}

/// Category id of each class of the model; `None` where the data set does not have it.
fn categories(folder: &Folder, spec: &ModelSpec) -> Vec<Option<u32>> {
    let mut category_of = vec![None; spec.classes.len()];
    for (category, class) in class_by_category(&folder.coco, &spec.classes) {
        category_of[class] = Some(category);
    }
    category_of
}

fn detect(
    model: &Model,
    spec: &ModelSpec,
    folder: &Folder,
    images: &[CocoImage],
    post: &Postprocessor,
) -> Result<Vec<Vec<Detection>>> {
    let size = (spec.width, spec.height);
    let inputs: Result<Vec<(Vec<u8>, Letterbox)>> = images
        .par_iter()
        .map(|image| {
            let picture = folder.picture(image)?;
            let mut pixels = vec![0; size.0 * size.1 * 3];
            let picture = picture.as_picture();
            let letterbox = Preprocessor::new(size).run(&picture, &mut pixels);
            Ok((pixels, letterbox))
        })
        .collect();
    let inputs = inputs?;
    let pixels: Vec<u8> = inputs.iter().flat_map(|(pixels, _)| pixels.iter().copied()).collect();
    let shape = [inputs.len() as i64, size.1 as i64, size.0 as i64, 3];
    let batch = Tensor::from_data_size(&pixels, &shape, Kind::Uint8).to_device(model.device());
    let outputs = tch::no_grad(|| model.forward(&batch, Mode::EVAL));
    let mut levels = Vec::with_capacity(outputs.len());
    for output in &outputs {
        let grid = (output.cls.size()[2] as usize, output.cls.size()[1] as usize);
        levels.push((grid, flat(&output.cls)?, flat(&output.bbox)?));
    }
    let found = inputs.par_iter().enumerate().map_init(
        || post.clone(),
        |post, (n, (_, letterbox))| {
            let of = |values: &'_ [f32]| {
                let len = values.len() / inputs.len();
                n * len..(n + 1) * len
            };
            let heads = levels
                .iter()
                .map(|(grid, cls, bbox)| LevelHeads {
                    grid: *grid,
                    cls_logits: HeadData::Float(&cls[of(cls)]),
                    bbox_deltas: HeadData::Float(&bbox[of(bbox)]),
                })
                .collect();
            let mut found = Vec::new();
            post.run(&HeadOutputs { levels: heads }, &mut found);
            to_frame(letterbox, &mut found);
            found
        },
    );
    Ok(found.collect())
}

fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(Vec::<f32>::try_from(&tensor.to_device(tch::Device::Cpu).contiguous().reshape([-1]))?)
}

/// The metrics in one line a person reads.
pub(crate) fn summary(report: &EvalReport) -> String {
    let percent = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{:.1}", 100.0 * v));
    let classes: Vec<String> = report.per_class.iter().map(|(name, class)| format!("{name} {}", percent(class.ap50))).collect();
    format!("AP {} AP50 {} AP75 {} | AP50: {}", percent(report.ap), percent(report.ap50), percent(report.ap75), classes.join(" "))
}
