//! Pascal VOC: an XML file a picture, as the VOC challenges, labelImg and Roboflow write it.
//!
//! Pixels count from 1 and both ends belong to a box (VOC2012 development kit, section 5.2), so `xmin - 1` to `xmax` is the
//! half-open range. `difficult` objects are not counted in VOC's own evaluation: here they are regions to ignore.
//! A data set is the folder, or a list of names `ImageSets/Main/*.txt` in it for one split.

use super::{Labelled, Reader, Writer, by_stem, edges, escaped, read as read_text, size_of, stem, write as write_text};
use anyhow::{Context, Result, anyhow};
use fovea::eval::CocoDataset;
use roxmltree::{Document, Node};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Folder of the data set, folder of its XML files, folder of its pictures.
fn folders(dir: &Path) -> (PathBuf, PathBuf) {
    let root = if dir.is_file() { dir.ancestors().nth(3).unwrap_or(dir) } else { dir };
    let of = |name: &str| if root.join(name).is_dir() { root.join(name) } else { root.to_owned() };
    let pictures = if root.join("JPEGImages").is_dir() { of("JPEGImages") } else { of("images") };
    (of("Annotations"), pictures)
}

fn xml_files(dir: &Path) -> Result<Vec<String>> {
    crate::files::list_files(dir, &["xml"])
}

/// Whether there are labels of this format.
pub(super) fn is_here(dir: &Path) -> bool {
    let is_list = dir.is_file() && dir.parent().is_some_and(|parent| parent.ends_with("ImageSets/Main"));
    is_list || (dir.is_dir() && xml_files(&folders(dir).0).is_ok_and(|files| !files.is_empty()))
}

pub(super) fn read(dir: &Path) -> Result<Labelled> {
    let (annotations, pictures) = folders(dir);
    let names = by_stem(&pictures)?;
    let listed: Option<HashSet<String>> = match dir.is_file() {
        true => Some(read_text(dir)?.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect()),
        false => None,
    };
    let mut reader = Reader::default();
    for file in xml_files(&annotations)? {
        let stem = stem(&file);
        if listed.as_ref().is_some_and(|listed| !listed.contains(&stem)) {
            continue;
        }
        let path = annotations.join(&file);
        let text = read_text(&path)?;
        let document = Document::parse(&text).with_context(|| path.display().to_string())?;
        let root = document.root_element();
        let named = child(root, "filename").and_then(|node| node.text()).map(|name| super::stem(name.trim()));
        let picture = names.get(&stem).or_else(|| names.get(&named?));
        let picture = picture.ok_or_else(|| anyhow!("{}: no picture of this name in {}", path.display(), pictures.display()))?;
        let size = child(root, "size").and_then(|size| Some((number(size, "width")?, number(size, "height")?)));
        let size = match size {
            Some((width, height)) if width > 0.0 && height > 0.0 => (width as usize, height as usize),
            _ => size_of(&pictures.join(picture))?,
        };
        let image = reader.image(picture.clone(), size);
        for object in root.children().filter(|node| node.has_tag_name("object")) {
            let found = object_of(object);
            let (name, [x1, y1, x2, y2]) =
                found.ok_or_else(|| anyhow!("{}: an object without name or bndbox", path.display()))?;
            let category = reader.category(name);
            let is_difficult = number(object, "difficult").is_some_and(|value| value != 0.0);
            let bbox = [(x1 - 1.0).max(0.0), (y1 - 1.0).max(0.0), x2, y2];
            reader.add(image, category, bbox).iscrowd = u8::from(is_difficult);
        }
    }
    Ok(reader.finish(pictures, false))
}

fn object_of<'a>(object: Node<'a, '_>) -> Option<(&'a str, [f64; 4])> {
    let bndbox = child(object, "bndbox")?;
    let edge = |name: &str| number(bndbox, name);
    Some((child(object, "name")?.text()?.trim(), [edge("xmin")?, edge("ymin")?, edge("xmax")?, edge("ymax")?]))
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn number(node: Node<'_, '_>, name: &str) -> Option<f64> {
    child(node, name)?.text()?.trim().parse().ok()
}

pub(super) fn write(dir: &Path, coco: &CocoDataset) -> Result<()> {
    let writer = Writer::new(coco);
    for image in &coco.images {
        let mut xml = format!(
            "<annotation>\n  <filename>{}</filename>\n  <size><width>{}</width><height>{}</height><depth>3</depth></size>\n",
            escaped(&image.file_name),
            image.width,
            image.height
        );
        for annotation in writer.boxes(image) {
            let [x1, y1, x2, y2] = edges(annotation);
            let _ = writeln!(
                xml,
                "  <object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{x2}</xmax>\
                 <ymax>{y2}</ymax></bndbox></object>",
                escaped(writer.name(annotation.category_id)),
                annotation.iscrowd,
                x1 + 1.0,
                y1 + 1.0,
            );
        }
        xml.push_str("</annotation>\n");
        write_text(&dir.join("Annotations").join(stem(&image.file_name) + ".xml"), &xml)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea::images::{RgbPicture, save};

    /// As the VOC2012 kit has it: 1-based inclusive edges, parts inside objects, a difficult object, a split list.
    #[test]
    fn a_file_of_the_challenge() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["Annotations", "JPEGImages", "ImageSets/Main"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for name in ["2007_000027", "2007_000032"] {
            let picture = RgbPicture { width: 20, height: 10, data: vec![0; 600] };
            save(&dir.path().join("JPEGImages").join(format!("{name}.png")), &picture).unwrap();
            let xml = "<annotation><folder>VOC2012</folder><filename>x.jpg</filename>
                <size><width>20</width><height>10</height><depth>3</depth></size>
                <object><name>person</name><difficult>0</difficult><bndbox><xmax>20</xmax><xmin>1</xmin><ymax>10</ymax><ymin>3</ymin></bndbox>
                  <part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part></object>
                <object><name>bus</name><difficult>1</difficult><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>8</xmax><ymax>8</ymax></bndbox></object>
              </annotation>";
            std::fs::write(dir.path().join("Annotations").join(format!("{name}.xml")), xml).unwrap();
        }
        let list = dir.path().join("ImageSets/Main/val.txt");
        std::fs::write(&list, "2007_000032  1\n").unwrap();
        let all = read(dir.path()).unwrap().coco;
        assert_eq!((all.images.len(), all.annotations.len()), (2, 4));
        let split = read(&list).unwrap().coco;
        assert_eq!(split.images[0].file_name, "2007_000032.png");
        let got: Vec<([f64; 4], u8)> = split.annotations.iter().map(|a| (a.bbox, a.iscrowd)).collect();
        assert_eq!(got, [([0.0, 2.0, 20.0, 8.0], 0), ([4.0, 4.0, 4.0, 4.0], 1)]);
        assert_eq!(split.categories.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["bus", "person"]);
    }
}
