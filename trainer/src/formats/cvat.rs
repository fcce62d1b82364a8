//! "CVAT for images 1.1": one XML file with all pictures, boxes with both corners in pixels.
//!
//! <https://docs.cvat.ai/docs/manual/advanced/xml_format/>. Turned boxes, polygons, ellipses and masks count with their bounds; lines
//! and points are left out, with a word.

use super::{Labelled, Reader, Writer, by_stem, edges, escaped, read as read_text, stem, write as write_text};
use anyhow::{Context, Result, anyhow, bail};
use fovea::eval::CocoDataset;
use roxmltree::{Document, Node};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

pub(super) fn read(dir: &Path) -> Result<Labelled> {
    let path = dir.join("annotations.xml");
    let text = read_text(&path)?;
    let document = Document::parse(&text).with_context(|| path.display().to_string())?;
    let root = document.root_element();
    if root.children().any(|node| node.has_tag_name("track")) {
        bail!("{}: tracks of a video; export the task as \"CVAT for images 1.1\"", path.display());
    }
    let pictures = if dir.join("images").is_dir() { dir.join("images") } else { dir.to_owned() };
    let listed: HashSet<String> = crate::files::list_pictures(&pictures)?.into_iter().collect();
    let mut names = None;
    let mut n_left_out = 0;
    let mut reader = Reader::default();
    let labels = root.descendants().filter(|node| node.has_tag_name("label"));
    for name in labels.filter_map(|label| label.children().find(|node| node.has_tag_name("name"))?.text()) {
        reader.category(name.trim());
    }
    for node in root.children().filter(|node| node.has_tag_name("image")) {
        let fault = |what: &str| anyhow!("{}: picture {:?}: {what}", path.display(), node.attribute("name").unwrap_or_default());
        let name = node.attribute("name").ok_or_else(|| fault("no name"))?;
        let picture = if listed.contains(name) {
            name
        } else {
            // Exported with another extension.
            if names.is_none() {
                names = Some(by_stem(&pictures)?);
            }
            let found = names.as_ref().and_then(|names| names.get(&stem(name)));
            found.ok_or_else(|| fault(&format!("not in {}", pictures.display())))?
        };
        let side = |key: &str| number(node, key).ok_or_else(|| fault(&format!("no {key}")));
        let image = reader.image(picture.to_owned(), (side("width")? as usize, side("height")? as usize));
        n_left_out += node
            .children()
            .filter(|shape| ["polyline", "points", "cuboid", "skeleton"].contains(&shape.tag_name().name()))
            .count();
        for shape in node.children().filter(|shape| ["box", "polygon", "ellipse", "mask"].contains(&shape.tag_name().name())) {
            let bbox = corners(shape).ok_or_else(|| fault("a shape without corners"))?;
            let category = reader.category(shape.attribute("label").ok_or_else(|| fault("a shape without label"))?.trim());
            reader.add(image, category, bbox);
        }
    }
    if n_left_out > 0 {
        say!("{}: {n_left_out} lines, points, cuboids and skeletons are left out: they have no box", path.display());
    }
    Ok(reader.finish(pictures, true))
}

fn number(node: Node<'_, '_>, key: &str) -> Option<f64> {
    node.attribute(key)?.trim().parse().ok()
}

fn corners(shape: Node<'_, '_>) -> Option<[f64; 4]> {
    let value = |key: &str| number(shape, key);
    // Centre, halves of the sides; turned clockwise by degrees.
    let turned = |[x, y]: [f64; 2], [w, h]: [f64; 2]| {
        let angle = value("rotation").unwrap_or(0.0);
        if angle == 0.0 {
            return [x - w, y - h, x + w, y + h];
        }
        let (sin, cos) = angle.to_radians().sin_cos();
        let is_round = shape.has_tag_name("ellipse");
        let reach = |a: f64, b: f64| if is_round { a.hypot(b) } else { a.abs() + b.abs() };
        let (w, h) = (reach(w * cos, h * sin), reach(w * sin, h * cos));
        [x - w, y - h, x + w, y + h]
    };
    match shape.tag_name().name() {
        "box" => {
            let [x1, y1, x2, y2] = [value("xtl")?, value("ytl")?, value("xbr")?, value("ybr")?];
            if value("rotation").unwrap_or(0.0) == 0.0 {
                return Some([x1, y1, x2, y2]);
            }
            return Some(turned([f64::midpoint(x1, x2), f64::midpoint(y1, y2)], [(x2 - x1) / 2.0, (y2 - y1) / 2.0]));
        }
        "ellipse" => return Some(turned([value("cx")?, value("cy")?], [value("rx")?, value("ry")?])),
        "mask" => {
            let (left, top) = (value("left")?, value("top")?);
            return Some([left, top, left + value("width")?, top + value("height")?]);
        }
        _ => {}
    }
    let mut bounds: Option<[f64; 4]> = None;
    for point in shape.attribute("points")?.split(';') {
        let (x, y) = point.split_once(',')?;
        let (x, y) = (x.trim().parse().ok()?, y.trim().parse().ok()?);
        let b = bounds.unwrap_or([x, y, x, y]);
        bounds = Some([b[0].min(x), b[1].min(y), b[2].max(x), b[3].max(y)]);
    }
    bounds
}

pub(super) fn write(dir: &Path, coco: &CocoDataset) -> Result<()> {
    let writer = Writer::new(coco);
    let mut xml = String::from(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<annotations>\n  <version>1.1</version>\n  <meta><task><labels>\n",
    );
    for category in &coco.categories {
        let _ = writeln!(xml, "    <label><name>{}</name></label>", escaped(&category.name));
    }
    xml.push_str("  </labels></task></meta>\n");
    for (id, image) in coco.images.iter().enumerate() {
        let name = escaped(&image.file_name);
        let _ = writeln!(xml, "  <image id=\"{id}\" name=\"{name}\" width=\"{}\" height=\"{}\">", image.width, image.height);
        for annotation in writer.boxes(image).iter().filter(|annotation| annotation.iscrowd == 0) {
            let [x1, y1, x2, y2] = edges(annotation);
            let label = escaped(writer.name(annotation.category_id));
            let _ =
                writeln!(xml, "    <box label=\"{label}\" occluded=\"0\" xtl=\"{x1}\" ytl=\"{y1}\" xbr=\"{x2}\" ybr=\"{y2}\"/>");
        }
        xml.push_str("  </image>\n");
    }
    xml.push_str("</annotations>\n");
    write_text(&dir.join("annotations.xml"), &xml)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_a_task() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.jpg"), b"").unwrap();
        let task = "<meta><task><labels><label><name>dog</name></label><label><name>cat</name></label></labels></task></meta>";
        let image = "<image id=\"0\" name=\"a.jpg\" width=\"64\" height=\"48\"><box label=\"cat\" xtl=\"1.5\" ytl=\"2\" xbr=\"11.5\" ybr=\"22\"/>\
            <polygon label=\"dog\" points=\"5,6;20.5,7;9,30\"/><points label=\"dog\" points=\"1,1\"/></image>";
        std::fs::write(dir.path().join("annotations.xml"), format!("<annotations>{task}{image}</annotations>")).unwrap();
        let coco = read(dir.path()).unwrap().coco;
        let got: Vec<(u32, [f64; 4])> = coco.annotations.iter().map(|a| (a.category_id, a.bbox)).collect();
        assert_eq!(got, [(2, [1.5, 2.0, 10.0, 20.0]), (1, [5.0, 6.0, 15.5, 24.0])]);
        assert_eq!((coco.images[0].width, coco.images[0].height), (64, 48));

        // Turned by 90 degrees the sides change places; an ellipse at 45 degrees reaches as far both ways.
        let turned = "<image id=\"0\" name=\"a.jpg\" width=\"64\" height=\"48\">\
            <box label=\"cat\" xtl=\"10\" ytl=\"20\" xbr=\"30\" ybr=\"24\" rotation=\"90\"/>\
            <ellipse label=\"dog\" cx=\"30\" cy=\"20\" rx=\"8\" ry=\"6\" rotation=\"45\"/>\
            <mask label=\"dog\" rle=\"1\" left=\"3\" top=\"4\" width=\"5\" height=\"6\"/></image>";
        std::fs::write(dir.path().join("annotations.xml"), format!("<annotations>{task}{turned}</annotations>")).unwrap();
        let boxes: Vec<[f64; 4]> = read(dir.path()).unwrap().coco.annotations.iter().map(|a| a.bbox).collect();
        let reach = 50_f64.sqrt();
        for (got, wanted) in boxes.iter().zip([
            [18.0, 12.0, 4.0, 20.0],
            [30.0 - reach, 20.0 - reach, 2.0 * reach, 2.0 * reach],
            [3.0, 4.0, 5.0, 6.0],
        ]) {
            assert!(got.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-9), "{got:?}, not {wanted:?}");
        }
        assert_eq!(boxes.len(), 3);

        std::fs::write(dir.path().join("annotations.xml"), "<annotations><track id=\"0\"/></annotations>").unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("CVAT for images"));
    }
}
