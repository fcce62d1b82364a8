//! The COCO annotation format, with two additions: which classes of a picture are completely labelled, and scored
//! annotations.
//!
//! Format: <https://cocodataset.org/#format-data>. Category ids need not be contiguous.

use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// Score from which a label that a model made stands for an object.
pub const OBJECT_FROM: f64 = 0.45;
/// Score from which it is ignored, neither object nor background; a label below is none.
pub const IGNORE_FROM: f64 = 0.2;

/// An `annotations.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CocoDataset {
    /// Pictures.
    #[serde(default)]
    pub images: Vec<CocoImage>,
    /// Boxes.
    pub annotations: Vec<CocoAnnotation>,
    /// Classes.
    pub categories: Vec<CocoCategory>,
}

/// A picture.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CocoImage {
    /// Unique number.
    pub id: u64,
    /// Name within the folder `images`.
    pub file_name: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Categories whose every instance is boxed in this picture; absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exhaustive_category_ids: Option<Vec<u32>>,
}

impl CocoImage {
    /// Whether every instance of the category is boxed in this picture.
    #[must_use]
    pub fn is_exhaustive(&self, category_id: u32) -> bool {
        self.exhaustive_category_ids.as_ref().is_none_or(|ids| ids.contains(&category_id))
    }
}

/// A box.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CocoAnnotation {
    /// Unique number.
    #[serde(default)]
    pub id: u64,
    /// Picture.
    pub image_id: u64,
    /// Class.
    pub category_id: u32,
    /// `[x, y, width, height]` in pixels of the picture.
    pub bbox: [f64; 4],
    /// Area of the object in square pixels (of its mask where there is one).
    #[serde(default)]
    pub area: f64,
    /// 1: a region with many instances, to be ignored.
    #[serde(default)]
    pub iscrowd: u8,
    /// Confidence of a label that a model made rather than a person; absent for drawn labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

impl CocoAnnotation {
    /// Whether it is a region to ignore: a crowd, or a doubtful label of a model ([`IGNORE_FROM`] to [`OBJECT_FROM`]);
    /// `None` for a label of a model that is no label.
    #[must_use]
    pub fn is_ignored(&self) -> Option<bool> {
        match self.score {
            Some(score) if score < IGNORE_FROM => None,
            score => Some(self.iscrowd != 0 || score.is_some_and(|score| score < OBJECT_FROM)),
        }
    }
}

/// A class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CocoCategory {
    /// Number that annotations use.
    pub id: u32,
    /// Name, as in a model's labels.
    pub name: String,
}

/// Why a data set cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CocoError {
    /// Not JSON, or not of this form.
    #[error("{0}")]
    Syntax(String),
    /// Two pictures with the same id.
    #[error("image id {0} is used twice")]
    DuplicateImage(u64),
    /// Two categories with the same id.
    #[error("category id {0} is used twice")]
    DuplicateCategory(u32),
    /// An annotation of a picture that is not there.
    #[error("annotation {annotation} names image {image}, which is not in the file")]
    UnknownImage {
        /// Annotation id.
        annotation: u64,
        /// Image id.
        image: u64,
    },
    /// An annotation of a class that is not there.
    #[error("annotation {annotation} names category {category}, which is not in the file")]
    UnknownCategory {
        /// Annotation id.
        annotation: u64,
        /// Category id.
        category: u32,
    },
}

impl CocoDataset {
    /// Reads an `annotations.json` and checks its references. Categories of one name are one class, the first of them: merged
    /// files have such, and exports whose group is named as a class.
    ///
    /// # Errors
    /// [`CocoError`] naming the entry.
    pub fn parse(text: &str) -> Result<Self, CocoError> {
        let mut dataset: Self =
            serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|error| CocoError::Syntax(error.to_string()))?;
        let mut images = HashSet::with_capacity(dataset.images.len());
        if let Some(twice) = dataset.images.iter().find(|image| !images.insert(image.id)) {
            return Err(CocoError::DuplicateImage(twice.id));
        }
        let mut categories = HashSet::with_capacity(dataset.categories.len());
        if let Some(twice) = dataset.categories.iter().find(|category| !categories.insert(category.id)) {
            return Err(CocoError::DuplicateCategory(twice.id));
        }
        for annotation in &dataset.annotations {
            if !images.contains(&annotation.image_id) {
                return Err(CocoError::UnknownImage { annotation: annotation.id, image: annotation.image_id });
            }
            if !categories.contains(&annotation.category_id) {
                return Err(CocoError::UnknownCategory { annotation: annotation.id, category: annotation.category_id });
            }
        }
        dataset.merge_names();
        Ok(dataset)
    }

    /// Leaves one category of each name, with the annotations of all of them.
    fn merge_names(&mut self) {
        let mut first_of: HashMap<String, u32> = HashMap::with_capacity(self.categories.len());
        let mut merged: HashMap<u32, u32> = HashMap::new();
        self.categories.retain(|category| {
            let first = *first_of.entry(category.name.clone()).or_insert(category.id);
            if first != category.id {
                merged.insert(category.id, first);
            }
            first == category.id
        });
        if merged.is_empty() {
            return;
        }
        for annotation in &mut self.annotations {
            annotation.category_id = *merged.get(&annotation.category_id).unwrap_or(&annotation.category_id);
        }
        // A class is known where all its parts are.
        for known in self.images.iter_mut().filter_map(|image| image.exhaustive_category_ids.as_mut()) {
            let all = std::mem::take(known);
            let is_whole = |first: u32| merged.iter().all(|(part, of)| *of != first || all.contains(part));
            *known = all.iter().copied().filter(|id| !merged.contains_key(id) && is_whole(*id)).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_does_not_fit_together_is_named() {
        let image = |id: u64| json!({"id": id, "file_name": "a.png", "width": 9, "height": 9});
        let annotation =
            |image: u64, category: u32| json!({"id": 5, "image_id": image, "category_id": category, "bbox": [1, 1, 2, 2]});
        let car = json!({"id": 3, "name": "car"});
        let read = |images: Value, categories: Value, annotations: Value| {
            let all = json!({"images": images, "categories": categories, "annotations": annotations});
            CocoDataset::parse(&all.to_string()).map(|dataset| dataset.images.len())
        };
        assert_eq!(read(json!([image(1), image(2)]), json!([car]), json!([annotation(2, 3)])), Ok(2));
        assert_eq!(read(json!([image(1), image(1)]), json!([car]), json!([])), Err(CocoError::DuplicateImage(1)));
        let twice = json!([car, {"id": 3, "name": "bus"}]);
        assert_eq!(read(json!([image(1)]), twice, json!([])), Err(CocoError::DuplicateCategory(3)));
        let strange = read(json!([image(1)]), json!([car]), json!([annotation(2, 3)]));
        assert_eq!(strange, Err(CocoError::UnknownImage { annotation: 5, image: 2 }));
        let strange = read(json!([image(1)]), json!([car]), json!([annotation(1, 4)]));
        assert_eq!(strange, Err(CocoError::UnknownCategory { annotation: 5, category: 4 }));
        assert!(matches!(CocoDataset::parse("{"), Err(CocoError::Syntax(_))));
    }

    #[test]
    fn categories_of_one_name_are_one_class() {
        let image = |id: u64, known: Value| json!({"id": id, "file_name": "a.png", "width": 9, "height": 9, "exhaustive_category_ids": known});
        let boxed = |id: u64, category: u32| json!({"id": id, "image_id": 1, "category_id": category, "bbox": [1, 1, 2, 2]});
        let all = json!({
            "images": [image(1, json!([3, 4, 9])), image(2, json!([3, 9])), image(3, json!([4])), image(4, Value::Null)],
            "categories": [{"id": 3, "name": "car"}, {"id": 9, "name": "bus"}, {"id": 4, "name": "car"}],
            "annotations": [boxed(1, 3), boxed(2, 4), boxed(3, 9)],
        });
        let dataset = CocoDataset::parse(&all.to_string()).unwrap();
        let names: Vec<(u32, &str)> = dataset.categories.iter().map(|category| (category.id, category.name.as_str())).collect();
        assert_eq!(names, [(3, "car"), (9, "bus")]);
        assert_eq!(dataset.annotations.iter().map(|annotation| annotation.category_id).collect::<Vec<_>>(), [3, 3, 9]);
        let known: Vec<Option<Vec<u32>>> = dataset.images.into_iter().map(|image| image.exhaustive_category_ids).collect();
        assert_eq!(known, [Some(vec![3, 9]), Some(vec![9]), Some(vec![]), None]);
    }
}
