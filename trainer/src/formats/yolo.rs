//! YOLO text labels: a file a picture, a line a box, `class cx cy w h` as shares of the picture's sides.
//!
//! Lines with a sixth number have it as score; lines with an odd number of more are polygons, whose bounds are taken.
//! A picture without a file, or with an empty one, has no objects. Labels are found as Ultralytics does it: in the path of
//! the pictures, the last `images` becomes `labels`. Names are in data.yaml or classes.txt, beside them or above.

use super::{Labelled, Reader, Writer, edges, read as read_text, size_of, write as write_text};
use crate::request::Request;
use anyhow::{Context, Result, anyhow, bail};
use fovea::eval::CocoDataset;
use saphyr_parser::{Event, Parser, StrInput};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

const NAME_FILES: [&str; 5] = ["data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names"];

/// Folder of the pictures and folder of the labels; `dir` is the folder above both, or the one of the pictures.
pub(super) fn labels_of(dir: &Path) -> Option<(PathBuf, PathBuf)> {
    if dir.join("images").is_dir() && dir.join("labels").is_dir() {
        return Some((dir.join("images"), dir.join("labels")));
    }
    let parts: Vec<Component<'_>> = dir.components().collect();
    let at = parts.iter().rposition(|part| part.as_os_str() == "images")?;
    let labels = parts[..at].iter().collect::<PathBuf>().join("labels").join(parts[at + 1..].iter().collect::<PathBuf>());
    (dir.is_dir() && labels.is_dir()).then(|| (dir.to_owned(), labels))
}

pub(super) fn read(dir: &Path) -> Result<Labelled> {
    let (pictures, labels) = labels_of(dir).ok_or_else(|| {
        Request(format!("{}: no folders images/ and labels/; labels of a/images/b are in a/labels/b", dir.display()))
    })?;
    if pictures != dir && ["train", "val"].iter().all(|part| pictures.join(part).is_dir()) {
        let (dir, pictures) = (dir.display(), pictures.display());
        say!("warning: {dir} is read as one, train and val together; for one of them name {pictures}/train or {pictures}/val");
    }
    let Names { names, is_pose } = names_of(&labels, dir)?;
    let mut reader = Reader::default();
    for name in &names {
        reader.category(name);
    }
    let (mut n_pictures, mut used) = (0_usize, HashSet::new());
    for picture in crate::files::list_pictures(&pictures)? {
        n_pictures += 1;
        let (width, height) = size_of(&pictures.join(&picture))?;
        let path = labels.join(&picture).with_extension("txt");
        let image = reader.image(picture, (width, height));
        if !path.is_file() {
            continue;
        }
        used.insert(path.clone());
        for (number, line) in (1..).zip(read_text(&path)?.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let values: Option<Vec<f64>> = line.split_whitespace().map(|value| value.parse().ok()).collect();
            let fault = |what: &str| anyhow!("{}:{number}: {what}: {line:?}", path.display());
            let values = values.ok_or_else(|| fault("not numbers"))?;
            let (bbox, score) = match *values {
                // Key points follow the box.
                [_, cx, cy, w, h, ..] if is_pose => ([cx - w / 2.0, cy - h / 2.0, cx + w / 2.0, cy + h / 2.0], None),
                [_, cx, cy, w, h] => ([cx - w / 2.0, cy - h / 2.0, cx + w / 2.0, cy + h / 2.0], None),
                [_, cx, cy, w, h, score] => ([cx - w / 2.0, cy - h / 2.0, cx + w / 2.0, cy + h / 2.0], Some(score)),
                [_, ref points @ ..] if points.len() >= 6 && points.len() % 2 == 0 => (bounds(points), None),
                _ => bail!(fault("expected `class cx cy w h`, with a score or not, or a polygon")),
            };
            let class = values[0];
            let name = names.get(class as usize).filter(|_| class >= 0.0 && class.fract() == 0.0);
            let name = name.ok_or_else(|| fault(&format!("class {class}, there are {} names", names.len())))?;
            let category = reader.category(name);
            let (w, h) = (width as f64, height as f64);
            reader.add(image, category, [bbox[0] * w, bbox[1] * h, bbox[2] * w, bbox[3] * h]).score = score;
        }
    }
    warn_of_strays(dir, &labels, n_pictures, &used)?;
    Ok(reader.finish(pictures, true))
}

/// Pictures and labels that do not find each other are often a folder with another name.
fn warn_of_strays(dir: &Path, labels: &Path, n_pictures: usize, used: &HashSet<PathBuf>) -> Result<()> {
    if used.len() < n_pictures {
        let n_without = n_pictures - used.len();
        say!("{}: {n_without} of {n_pictures} pictures have no file of labels, so nothing to find", dir.display());
    }
    let stray = strays(labels, used)?;
    if let Some(first) = stray.first() {
        let (dir, n) = (dir.display(), stray.len());
        say!("warning: {dir}: {n} files of labels have no picture that is read (JPEG, PNG or WebP), {first} for one");
    }
    Ok(())
}

/// Files of labels below `labels` that are not `used`, but for those that name the classes.
fn strays(labels: &Path, used: &HashSet<PathBuf>) -> Result<Vec<String>> {
    let is_names = |name: &str| NAME_FILES.iter().any(|names| Path::new(name).file_name().is_some_and(|file| file == *names));
    let all = crate::files::list_files(labels, &["txt"])?;
    Ok(all.into_iter().filter(|name| !is_names(name) && !used.contains(&labels.join(name))).collect())
}

fn bounds(points: &[f64]) -> [f64; 4] {
    points
        .chunks_exact(2)
        .fold([f64::MAX, f64::MAX, f64::MIN, f64::MIN], |b, p| [b[0].min(p[0]), b[1].min(p[1]), b[2].max(p[0]), b[3].max(p[1])])
}

/// What a file of names says.
struct Names {
    names: Vec<String>,
    /// Lines of labels have a box and key points.
    is_pose: bool,
}

/// Class names, from the first file of names in the folder of the labels, the data set's, or the three above it.
fn names_of(labels: &Path, dir: &Path) -> Result<Names> {
    let folders = std::iter::once(labels).chain(dir.ancestors().take(4));
    let path = folders.flat_map(|folder| NAME_FILES.iter().map(|name| folder.join(name))).find(|path| path.is_file());
    let path = path.ok_or_else(|| {
        Request(format!("{}: no class names; write them into {}, one a line", dir.display(), dir.join("classes.txt").display()))
    })?;
    let text = read_text(&path)?;
    let names = if path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml") {
        yaml_names(&text).with_context(|| path.display().to_string())?
    } else {
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    match names.is_empty() {
        true => bail!("{}: no class names", path.display()),
        false => Ok(Names { names, is_pose: text.lines().any(|line| line.starts_with("kpt_shape:")) }),
    }
}

/// YAML, as far as it matters here.
enum Node {
    Text(String),
    List(Vec<Self>),
    Map(Vec<(Self, Self)>),
}

impl Node {
    /// The next node; `None` where a list, a map or the text ends.
    fn next(events: &mut Parser<'_, StrInput<'_>>, depth: usize) -> Result<Option<Self>> {
        if depth > 32 {
            bail!("nested too deeply");
        }
        while let Some(event) = events.next() {
            return Ok(Some(match event?.0 {
                Event::Scalar(text, ..) => Self::Text(text.into_owned()),
                Event::Alias(_) => bail!("aliases (*name) are not supported"),
                Event::SequenceStart(..) => {
                    let mut list = Vec::new();
                    while let Some(node) = Self::next(events, depth + 1)? {
                        list.push(node);
                    }
                    Self::List(list)
                }
                Event::MappingStart(..) => {
                    let mut map = Vec::new();
                    while let Some(key) = Self::next(events, depth + 1)? {
                        map.push((key, Self::next(events, depth + 1)?.ok_or_else(|| anyhow!("a key without value"))?));
                    }
                    Self::Map(map)
                }
                Event::SequenceEnd | Event::MappingEnd | Event::DocumentEnd | Event::StreamEnd => return Ok(None),
                Event::Nothing | Event::StreamStart | Event::DocumentStart(_) => continue,
            }));
        }
        Ok(None)
    }

    fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

/// `names:` as a list, or as a map from number to name.
fn yaml_names(text: &str) -> Result<Vec<String>> {
    let Some(Node::Map(keys)) = Node::next(&mut Parser::new_from_str(text), 0)? else { bail!("not a map of keys and values") };
    let names = keys.iter().find(|(key, _)| key.text() == Some("names")).map(|(_, value)| value);
    let found: Option<Vec<&str>> = match names {
        Some(Node::List(list)) => list.iter().map(Node::text).collect(),
        Some(Node::Map(map)) => (0..map.len())
            .map(|n| map.iter().find(|(key, _)| key.text().and_then(|key| key.parse().ok()) == Some(n))?.1.text())
            .collect(),
        Some(Node::Text(_)) | None => None,
    };
    let found = found.ok_or_else(|| anyhow!("no `names` that are a list of names or a map from 0, 1, … to names"))?;
    Ok(found.into_iter().map(str::to_owned).collect())
}

pub(super) fn write(dir: &Path, coco: &CocoDataset) -> Result<()> {
    let writer = Writer::new(coco);
    let class_of = |id: u32| coco.categories.iter().position(|category| category.id == id);
    for image in &coco.images {
        let (width, height) = (f64::from(image.width), f64::from(image.height));
        let mut text = String::new();
        for annotation in writer.boxes(image).iter().filter(|annotation| annotation.iscrowd == 0) {
            let Some(class) = class_of(annotation.category_id) else { continue };
            let [x1, y1, x2, y2] = edges(annotation);
            let (cx, cy) = ((x1 + x2) / 2.0 / width, (y1 + y2) / 2.0 / height);
            let _ = writeln!(text, "{class} {cx:.6} {cy:.6} {:.6} {:.6}", (x2 - x1) / width, (y2 - y1) / height);
        }
        write_text(&dir.join("labels").join(&image.file_name).with_extension("txt"), &text)?;
    }
    // A string of JSON is a string of YAML.
    let names: Result<Vec<String>, _> = coco.categories.iter().map(|category| serde_json::to_string(&category.name)).collect();
    let names: String = names?.iter().enumerate().map(|(class, name)| format!("  {class}: {name}\n")).collect();
    write_text(&dir.join("data.yaml"), &format!("path: .\ntrain: images\nval: images\nnames:\n{names}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea::images::{RgbPicture, save};

    #[test]
    fn names_in_every_form() {
        for (text, wanted) in [
            ("nc: 2\nnames: ['cat', dog]\n", vec!["cat", "dog"]),
            ("names:\n  - 7\n  - \"a: b\"\n", vec!["7", "a: b"]),
            ("train: x\nnames:\n  1: dog\n  0: cat\n", vec!["cat", "dog"]),
        ] {
            assert_eq!(yaml_names(text).unwrap(), wanted, "{text}");
        }
        for text in ["nc: 2\n", "names: 3\n", "names:\n  5: dog\n", "names: [a\n"] {
            assert!(yaml_names(text).is_err(), "{text}");
        }
    }

    /// A split as Ultralytics lays it out, with boxes, scores, polygons, and a picture without labels.
    #[test]
    fn lines_of_every_kind() {
        let dir = tempfile::tempdir().unwrap();
        let (pictures, labels) = (dir.path().join("images/train"), dir.path().join("labels/train"));
        for folder in [&pictures, &labels] {
            std::fs::create_dir_all(folder).unwrap();
        }
        for name in ["a.png", "b.png"] {
            save(&pictures.join(name), &RgbPicture { width: 100, height: 50, data: vec![0; 15_000] }).unwrap();
        }
        std::fs::write(dir.path().join("data.yaml"), "names: [cat, dog]\n").unwrap();
        let text = "1 0.5 0.5 0.2 0.4\n\n0 0.25 0.5 0.5 1 0.875\n0 0.1 0.2 0.3 0.2 0.2 0.8\n";
        std::fs::write(labels.join("a.txt"), text).unwrap();
        let coco = read(&pictures).unwrap().coco;
        let got: Vec<(u32, [i64; 4], Option<f64>)> =
            coco.annotations.iter().map(|a| (a.category_id, a.bbox.map(|v| v.round() as i64), a.score)).collect();
        assert_eq!(got, [(2, [40, 15, 20, 20], None), (1, [0, 0, 50, 50], Some(0.875)), (1, [10, 10, 20, 30], None)]);
        assert_eq!(coco.images.len(), 2);
        // With key points, and a mark of the encoding in front.
        std::fs::write(dir.path().join("data.yaml"), "\u{feff}names: [cat, dog]\nkpt_shape: [2, 2]\n").unwrap();
        std::fs::write(labels.join("a.txt"), "\u{feff}1 0.5 0.5 0.2 0.4 0.9 0.9 0.1 0.1\n").unwrap();
        let coco = read(&pictures).unwrap().coco;
        assert_eq!(coco.annotations[0].bbox.map(|v| v.round() as i64), [40, 15, 20, 20]);
        std::fs::write(dir.path().join("data.yaml"), "names: [cat, dog]\n").unwrap();
        for (line, part) in
            [("0 0.5 0.5 0.2", "expected"), ("2 0.5 0.5 0.2 0.4", "there are 2 names"), ("a 1 1 1 1", "not numbers")]
        {
            std::fs::write(labels.join("a.txt"), format!("0 0.5 0.5 0.1 0.1\n{line}\n")).unwrap();
            let error = format!("{:#}", read(&pictures).unwrap_err());
            assert!(error.contains("a.txt:2") && error.contains(part), "{error}");
        }
    }

    #[test]
    fn labels_without_a_picture_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.txt", "more/b.txt", "c.txt", "classes.txt"] {
            std::fs::create_dir_all(dir.path().join("more")).unwrap();
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let used = HashSet::from([dir.path().join("a.txt")]);
        assert_eq!(strays(dir.path(), &used).unwrap(), ["c.txt", "more/b.txt"]);
    }
}
