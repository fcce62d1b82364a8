//! Open Images: a CSV of boxes as shares of the picture's sides, a CSV of class names, and a CSV of labels that people have
//! verified for whole pictures.
//!
//! A class is completely boxed in a picture if it has boxes there (Kuznetsova et al. 2020, section 2.2), or if somebody looked for it
//! and did not find it; of other classes nothing is known, of one that is verified but has no box neither.

use super::{Labelled, Reader, Writer, by_stem, csv, edges, read as read_text, size_of, stem, write as write_text};
use anyhow::{Result, anyhow};
use fovea::eval::CocoDataset;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// The CSV of boxes.
pub(super) fn boxes_of(dir: &Path) -> Option<PathBuf> {
    csvs_with(dir, true).into_iter().next()
}

/// CSVs with labels of pictures, and with boxes or without, in the order of their names. Labels that a machine made say nothing for certain.
fn csvs_with(dir: &Path, has_boxes: bool) -> Vec<PathBuf> {
    let names = crate::files::list_files(dir, &["csv"]).unwrap_or_default();
    let names = names.into_iter().filter(|name| has_boxes || !name.contains("machine-imagelabels"));
    let is_such = |path: &PathBuf| {
        // The files have millions of lines; the first one tells.
        let mut header = String::new();
        let is_read = File::open(path).and_then(|file| BufReader::new(file).read_line(&mut header)).is_ok();
        let columns = csv::rows(&header).pop().unwrap_or_default();
        let has = |column: &str| columns.iter().any(|found| found == column);
        is_read && has("ImageID") && has("LabelName") && has("XMin") == has_boxes
    };
    names.map(|name| dir.join(name)).filter(is_such).collect()
}

/// Rows of a CSV, with access by column name.
struct Table {
    path: PathBuf,
    columns: HashMap<String, usize>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Rows on pictures in `files`, by their id: the CSVs are of millions, a folder has a part of them.
    fn read<T>(path: &Path, files: &HashMap<String, T>) -> Result<Self> {
        let (mut columns, mut rows): (Option<HashMap<String, usize>>, _) = (None, Vec::new());
        csv::each_row(&read_text(path)?, |row| {
            match &columns {
                None => columns = Some(row.into_iter().zip(0..).collect()),
                Some(columns) => {
                    let id = columns.get("ImageID").and_then(|&column| row.get(column));
                    if id.is_some_and(|id| files.contains_key(id)) {
                        rows.push(row);
                    }
                }
            }
            true
        });
        Ok(Self { path: path.to_owned(), columns: columns.unwrap_or_default(), rows })
    }

    fn text<'a>(&self, row: &'a [String], column: &str) -> Option<&'a str> {
        row.get(*self.columns.get(column)?).map(String::as_str)
    }

    fn number(&self, row: &[String], column: &str) -> Result<f64> {
        let found = self.text(row, column).and_then(|text| text.parse().ok());
        found.ok_or_else(|| anyhow!("{}: `{column}` is not a number in the row {}", self.path.display(), row.join(",")))
    }
}

pub(super) fn read(dir: &Path) -> Result<Labelled> {
    let paths = csvs_with(dir, true);
    if paths.is_empty() {
        return Err(anyhow!("{}: no CSV with the columns ImageID, LabelName, XMin", dir.display()));
    }
    let pictures = if dir.join("images").is_dir() { dir.join("images") } else { dir.to_owned() };
    let files = by_stem(&pictures)?;
    // One for each split, whose pictures may lie together.
    let tables: Vec<Table> = paths.iter().map(|path| Table::read(path, &files)).collect::<Result<_>>()?;
    let names = class_names(dir, &paths)?;
    let mut reader = Reader::default();
    let mut categories: BTreeMap<&str, u32> = BTreeMap::new();
    let mut image_of: HashMap<String, (u64, (f64, f64))> = HashMap::new();
    let mut picture = |reader: &mut Reader, id: &str, file: &String| -> Result<(u64, (f64, f64))> {
        if let Some(known) = image_of.get(id) {
            return Ok(*known);
        }
        let (width, height) = size_of(&pictures.join(file))?;
        let new = (reader.image(file.clone(), (width, height)), (width as f64, height as f64));
        image_of.insert(id.to_owned(), new);
        Ok(new)
    };
    let mut verified: HashMap<u64, BTreeSet<u32>> = HashMap::new();
    for (boxes, row) in tables.iter().flat_map(|boxes| boxes.rows.iter().map(move |row| (boxes, row))) {
        let (Some(id), Some(label)) = (boxes.text(row, "ImageID"), boxes.text(row, "LabelName")) else { continue };
        let Some(file) = files.get(id) else { continue };
        let (image, (w, h)) = picture(&mut reader, id, file)?;
        let category =
            *categories.entry(label).or_insert_with(|| reader.category(names.get(label).map_or(label, String::as_str)));
        let edge = |column: &str| boxes.number(row, column);
        let bbox = [edge("XMin")? * w, edge("YMin")? * h, edge("XMax")? * w, edge("YMax")? * h];
        let is_group = boxes.text(row, "IsGroupOf") == Some("1");
        let score = boxes.number(row, "Confidence").ok().filter(|score| (0.0..1.0).contains(score));
        let annotation = reader.add(image, category, bbox);
        (annotation.iscrowd, annotation.score) = (u8::from(is_group), score);
        verified.entry(image).or_default().insert(category);
    }
    for path in csvs_with(dir, false) {
        let labels = Table::read(&path, &files)?;
        for row in &labels.rows {
            let (Some(id), Some(label)) = (labels.text(row, "ImageID"), labels.text(row, "LabelName")) else { continue };
            // Classes that somebody looked for and did not find. One that is there has its boxes above, or is not complete.
            let is_absent = labels.number(row, "Confidence")? == 0.0;
            let (Some(&category), Some(file), true) = (categories.get(label), files.get(id), is_absent) else { continue };
            verified.entry(picture(&mut reader, id, file)?.0).or_default().insert(category);
        }
    }
    for image in &mut reader.coco.images {
        image.exhaustive_category_ids = verified.get(&image.id).map(|ids| ids.iter().copied().collect());
    }
    Ok(reader.finish(pictures, false))
}

/// Names by label: from the CSV of two columns that begins with a label such as `/m/01g317`.
fn class_names(dir: &Path, boxes: &[PathBuf]) -> Result<HashMap<String, String>> {
    for name in crate::files::list_files(dir, &["csv"])? {
        let path = dir.join(name);
        if boxes.contains(&path) {
            continue;
        }
        let text = read_text(&path)?;
        // Newer ones have a header.
        let (mut n_rows, mut is_it) = (0, false);
        csv::each_row(&text, |row| {
            n_rows += 1;
            is_it |= row.len() == 2 && row[0].starts_with('/');
            n_rows < 2
        });
        if is_it {
            return Ok(csv::rows(&text)
                .into_iter()
                .filter_map(|row| <[String; 2]>::try_from(row).ok())
                .map(|[id, name]| (id, name))
                .collect());
        }
    }
    Ok(HashMap::new())
}

pub(super) fn write(dir: &Path, coco: &CocoDataset) -> Result<()> {
    let writer = Writer::new(coco);
    let label = |id: u32| format!("/fovea/{id}");
    let mut boxes = csv::line(["ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", "IsGroupOf"]);
    let mut verified = csv::line(["ImageID", "Source", "LabelName", "Confidence"]);
    for image in &coco.images {
        let id = stem(&image.file_name);
        let share = |value: f64, side: u32| format!("{:.6}", value / f64::from(side));
        for annotation in writer.boxes(image) {
            let [x1, y1, x2, y2] = edges(annotation);
            let score = annotation.score.unwrap_or(1.0).to_string();
            let [x1, x2] = [x1, x2].map(|x| share(x, image.width));
            let [y1, y2] = [y1, y2].map(|y| share(y, image.height));
            let group = annotation.iscrowd.to_string();
            boxes += &csv::line([&*id, "fovea", &label(annotation.category_id), &score, &x1, &x2, &y1, &y2, &group]);
        }
        for category in coco.categories.iter().filter(|category| image.is_exhaustive(category.id)) {
            let is_present = writer.boxes(image).iter().any(|annotation| annotation.category_id == category.id);
            verified += &csv::line([&*id, "fovea", &label(category.id), if is_present { "1" } else { "0" }]);
        }
    }
    let names: String = coco.categories.iter().map(|category| csv::line([&*label(category.id), &category.name])).collect();
    write_text(&dir.join("annotations-bbox.csv"), &boxes)?;
    write_text(&dir.join("imagelabels.csv"), &verified)?;
    write_text(&dir.join("class-descriptions.csv"), &names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea::images::{RgbPicture, save};

    /// Rows as Open Images V7 publishes them, of more pictures than there are.
    #[test]
    fn verified_labels_say_what_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["0001eeaf.png", "0002aaaa.png", "0003bbbb.png"] {
            save(&dir.path().join(name), &RgbPicture { width: 200, height: 100, data: vec![0; 60_000] }).unwrap();
        }
        let files = [
            (
                "validation-annotations-bbox.csv",
                "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n\
                 0001eeaf,xclick,/m/01g317,1,0.25,0.5,0.1,0.9,0,0,0,0,0\n0001eeaf,xclick,/m/0k4j,1,0,1,0.5,1,0,0,1,0,0\n",
            ),
            (
                "train-annotations-bbox.csv",
                "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n\
                 0003bbbb,xclick,/m/0k4j,1,0,0.5,0,0.5,0,0,0,0,0\n\
                 ffffffff,xclick,/m/01bjv,1,0.25,0.5,0.1,0.9,0,0,0,0,0\n",
            ),
            ("class-descriptions-boxable.csv", "LabelName,DisplayName\n/m/01g317,Person\n/m/0k4j,Car\n/m/01bjv,Bus\n"),
            (
                "validation-annotations-human-imagelabels-boxable.csv",
                "ImageID,Source,LabelName,Confidence\n0001eeaf,verification,/m/01g317,1\n0001eeaf,verification,/m/01bjv,0\n\
                 0002aaaa,verification,/m/01g317,0\n0003bbbb,verification,/m/01g317,1\n",
            ),
        ];
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let coco = read(dir.path()).unwrap().coco;
        let got: Vec<([i64; 4], u8)> = coco.annotations.iter().map(|a| (a.bbox.map(|v| v.round() as i64), a.iscrowd)).collect();
        assert_eq!(got, [([0, 0, 100, 50], 0), ([50, 10, 50, 80], 0), ([0, 50, 200, 50], 1)]);
        let names: Vec<&str> = coco.categories.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["Car", "Person"]);
        // The splits' CSVs count together. Nobody is in the second picture; somebody is in the third, but where is not said.
        let known: Vec<(&str, &Option<Vec<u32>>)> =
            coco.images.iter().map(|image| (&*image.file_name, &image.exhaustive_category_ids)).collect();
        let some = |ids: &[u32]| Some(ids.to_vec());
        assert_eq!(known, [("0003bbbb.png", &some(&[1])), ("0001eeaf.png", &some(&[1, 2])), ("0002aaaa.png", &some(&[2]))]);
    }
}
