//! Whether int8 is as good as float: what each class loses, how sure that is, and how much it may.
//!
//! A class with few boxes gains or loses several points by chance. So its loss has a standard error, from a paired
//! bootstrap: pictures drawn with replacement, the same ones for both networks. A class may lose the limit or twice
//! its standard error, whichever is more, unless chance is not to be allowed for; the mean over all classes may lose the limit.

use fovea::eval::{ClassReport, CocoEvaluator};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::fmt::Write as _;

/// So few pictures tell little, whatever the bootstrap says: it draws from them.
const FEW_PICTURES: usize = 100;

/// Draws of the bootstrap.
const N_DRAWS: usize = 200;

/// AP points that may be lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// By the mean over all classes.
    pub(crate) mean: f64,
    /// By each class.
    pub(crate) class: f64,
    /// Nothing is allowed for chance.
    pub(crate) is_strict: bool,
}

/// Float and int8 side by side.
#[derive(Debug)]
pub(crate) struct Comparison {
    /// The mean, then every class.
    rows: Vec<Row>,
    limits: Limits,
    n_pictures: usize,
    /// Classes of the model that the data set does not have.
    unmeasured: Vec<String>,
}

#[derive(Debug)]
struct Row {
    name: String,
    float: ClassReport,
    int8: ClassReport,
    /// AP points lost; absent where there is nothing to find.
    loss: Option<f64>,
    /// Standard error of the loss.
    error: f64,
    allowed: f64,
}

impl Comparison {
    /// Compares two evaluations on the same data set.
    pub(crate) fn new(float: &CocoEvaluator, int8: &CocoEvaluator, limits: Limits) -> Self {
        let (reports, losses) = ([float, int8].map(CocoEvaluator::summarize), drawn_losses(float, int8));
        let [float, int8] = reports;
        let row = |idx: usize, name: &str, float: ClassReport, int8: ClassReport| {
            let error = deviation(losses.iter().filter_map(|draw| draw[idx]));
            let allowed = match idx {
                0 => limits.mean,
                _ if limits.is_strict => limits.class,
                _ => limits.class.max(2.0 * error),
            };
            let loss = float.ap.zip(int8.ap).map(|(float, int8)| 100.0 * (float - int8));
            Row { name: name.into(), float, int8, loss, error, allowed }
        };
        let boxes = float.per_class.iter().map(|(_, class)| class.boxes).sum();
        let mean = |report: &fovea::eval::EvalReport| ClassReport { ap: report.ap, ap50: report.ap50, boxes };
        let mut rows = vec![row(0, "**mean**", mean(&float), mean(&int8))];
        for (idx, ((name, float), (_, int8))) in (1..).zip(float.per_class.iter().zip(&int8.per_class)) {
            rows.push(row(idx, name, *float, *int8));
        }
        Self { rows, limits, n_pictures: float.images, unmeasured: Vec::new() }
    }

    /// Names the classes of the model that the data set does not have.
    pub(crate) fn without(mut self, classes: &[String]) -> Self {
        self.unmeasured.extend_from_slice(classes);
        self
    }

    /// AP points that the mean loses; absent where there is nothing to measure on.
    pub(crate) fn loss(&self) -> Option<f64> {
        self.rows[0].loss
    }

    /// What loses more than it may, in words; absent if nothing does.
    pub(crate) fn refusal(&self) -> Option<String> {
        let beyond = self.rows.iter().filter_map(|row| row.loss.filter(|loss| *loss > row.allowed).map(|loss| (row, loss)));
        let words: Vec<String> = beyond
            .map(|(row, loss)| {
                let name = row.name.trim_matches('*');
                format!("{name} {loss:.2} (standard error {}, at most {:.2})", row.error_text(), row.allowed)
            })
            .collect();
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// What there is to say where chance alone moves the mean by more than it may lose, or may do so.
    fn uncertainty(&self) -> Option<String> {
        let (error, limit, n) = (self.rows[0].error_text(), self.limits.mean, self.n_pictures);
        (self.rows[0].error > limit || n < FEW_PICTURES)
            .then(|| format!("On {n} pictures the mean's standard error is {error}: {limit:.2} cannot be told from chance"))
    }

    /// The same for a network that is refused, and what to do; empty where there is nothing to say.
    pub(crate) fn doubt(&self) -> String {
        let advice = "measure on more (--val), or look at the table above and decide (--accept-loss)";
        self.uncertainty().map_or_else(String::new, |uncertainty| format!("{uncertainty}; {advice}. "))
    }

    /// Markdown, percent; below it the classes that pass because of what chance is allowed, those that were not measured, and
    /// how much chance there is.
    pub(crate) fn table(&self) -> String {
        let percent = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{:.1}", 100.0 * v));
        let head = "| class | boxes | AP float | AP int8 | loss | may lose | AP50 float | AP50 int8 |\n|---|---|---|---|---|---|---|---|\n";
        let mut table = head.to_owned();
        for row in &self.rows {
            let [a, b, c, d] = [row.float.ap, row.int8.ap, row.float.ap50, row.int8.ap50].map(percent);
            let loss = row.loss.map_or("-".to_owned(), |loss| format!("{loss:.2} ± {}", row.error_text()));
            // Writing to a string cannot fail.
            let _ =
                writeln!(table, "| {} | {} | {a} | {b} | {loss} | {:.2} | {c} | {d} |", row.name, row.float.boxes, row.allowed);
        }
        let passes_by_chance = |row: &&Row| row.loss.is_some_and(|loss| loss > self.limits.class && loss <= row.allowed);
        let names: Vec<&str> = self.rows[1..].iter().filter(passes_by_chance).map(|row| &*row.name).collect();
        if !names.is_empty() {
            let limit = self.limits.class;
            let _ = writeln!(table, "\nMore than {limit:.2} lost, within twice the standard error: {}.", names.join(", "));
        }
        let empty = self.rows[1..].iter().filter(|row| row.loss.is_none()).map(|row| &row.name);
        let unmeasured: Vec<&str> = self.unmeasured.iter().chain(empty).map(String::as_str).collect();
        if !unmeasured.is_empty() {
            let _ = writeln!(table, "\nNot measured, as the data set has no boxes of them: {}.", unmeasured.join(", "));
        }
        if let Some(uncertainty) = self.uncertainty() {
            let _ = writeln!(table, "\n{uncertainty}.");
        }
        table
    }
}

impl Row {
    /// The standard error; unknown where something is lost and every draw loses the same: all boxes are in one picture.
    fn error_text(&self) -> String {
        if self.error < 1e-9 && self.loss.is_some_and(|loss| loss.abs() > 1e-9) {
            "?".to_owned()
        } else {
            format!("{:.2}", self.error)
        }
    }
}

/// Losses in AP points, the mean's first, of every draw of pictures.
fn drawn_losses(float: &CocoEvaluator, int8: &CocoEvaluator) -> Vec<Vec<Option<f64>>> {
    let n_images = float.summarize().images;
    let (float, int8) = (float.resampling(), int8.resampling());
    let draw = |seed: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
        let mut n_times = vec![0; n_images];
        (0..n_images).for_each(|_| n_times[rng.random_range(0..n_images)] += 1);
        let loss = |(float, int8): (Option<f64>, Option<f64>)| float.zip(int8).map(|(float, int8)| 100.0 * (float - int8));
        let classes: Vec<Option<f64>> = float.ap(&n_times).into_iter().zip(int8.ap(&n_times)).map(loss).collect();
        let counted: Vec<f64> = classes.iter().copied().flatten().collect();
        let mean = (!counted.is_empty()).then(|| counted.iter().sum::<f64>() / counted.len() as f64);
        std::iter::once(mean).chain(classes).collect()
    };
    (0..N_DRAWS).into_par_iter().map(draw).collect()
}

/// Standard deviation; 0 for fewer than two values.
fn deviation(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea::eval::CocoDataset;

    /// 200 pictures, each with a box of class `many`, six also with one of class `few`. `misses(class, n)` says whether
    /// the box of the n-th picture is missed.
    fn evaluator(misses: impl Fn(u32, u64) -> bool) -> CocoEvaluator {
        let images: Vec<_> =
            (0..200).map(|id| serde_json::json!({"id": id, "file_name": "", "width": 99, "height": 99})).collect();
        let label = |(class, id): (u32, u64)| serde_json::json!({"image_id": id, "category_id": class, "bbox": [1, 2, 30, 40]});
        let labelled: Vec<(u32, u64)> = (0..200).map(|id| (1, id)).chain((0..6).map(|id| (2, id))).collect();
        let labels: Vec<_> = labelled.iter().copied().map(label).collect();
        let coco = serde_json::json!({"images": images, "annotations": labels,
            "categories": [{"id": 1, "name": "many"}, {"id": 2, "name": "few"}]});
        let mut evaluator = CocoEvaluator::new(&CocoDataset::parse(&coco.to_string()).unwrap());
        for (class, id) in labelled.into_iter().filter(|&(class, id)| !misses(class, id)) {
            evaluator.add(id, &[(class, 0.5, [1.0, 2.0, 30.0, 40.0])]).unwrap();
        }
        evaluator
    }

    #[test]
    fn the_gate_tells_loss_from_chance() {
        let limits = Limits { mean: 0.5, class: 1.0, is_strict: false };
        let float = evaluator(|_, _| false);
        for (what, int8, refused) in [
            ("nothing lost", evaluator(|_, _| false), None),
            ("4 of 200", evaluator(|class, id| class == 1 && id % 50 == 0), Some(vec!["mean", "many"])),
            (
                "1 of 6: the mean loses, the class may have been unlucky",
                evaluator(|class, id| (class, id) == (2, 3)),
                Some(vec!["mean"]),
            ),
            ("5 of 6", evaluator(|class, id| class == 2 && id > 0), Some(vec!["mean", "few"])),
        ] {
            let comparison = Comparison::new(&float, &int8, limits);
            let refusal = comparison.refusal();
            let named = |name: &&str| refusal.as_ref().is_some_and(|text| text.contains(&format!("{name} ")));
            let found: Vec<&str> = ["mean", "many", "few"].into_iter().filter(|name| named(name)).collect();
            assert_eq!((!found.is_empty()).then_some(found), refused, "{what}: {refusal:?}\n{}", comparison.table());
        }
        let unlucky = evaluator(|class, id| (class, id) == (2, 3));
        let table = Comparison::new(&float, &unlucky, limits).table();
        assert!(table.contains("\nMore than 1.00 lost, within twice the standard error: few.\n"), "{table}");
        assert!(table.ends_with("cannot be told from chance.\n"), "{table}");
        let strictly = Comparison::new(&float, &unlucky, Limits { mean: 50.0, is_strict: true, ..limits }).refusal();
        assert!(strictly.is_some_and(|text| text.starts_with("few ")));
        let few = Comparison::new(&float, &unlucky, limits);
        assert!(few.doubt().contains("standard error"), "{}", few.table());
        assert_eq!(Comparison::new(&float, &float, limits).doubt(), "");
        let partly = Comparison::new(&float, &float, limits).without(&["rare".to_owned()]).table();
        assert!(partly.ends_with("\nNot measured, as the data set has no boxes of them: rare.\n"), "{partly}");
        // What int8 gains is no loss.
        assert!(Comparison::new(&evaluator(|_, id| id % 2 == 0), &float, limits).refusal().is_none());
    }

    /// Where all boxes are in one picture, no draw tells how sure a loss is; and few pictures say little even if nothing is lost.
    #[test]
    fn what_the_draws_cannot_tell_is_said() {
        let limits = Limits { mean: 0.5, class: 1.0, is_strict: false };
        let evaluator = |n_images: u64, n_found: u32| {
            let images: Vec<_> =
                (0..n_images).map(|id| serde_json::json!({"id": id, "file_name": "", "width": 99, "height": 99})).collect();
            let bbox = |n: u32| [f64::from(30 * n), 2.0, 20.0, 40.0];
            let labels: Vec<_> = (0..3).map(|n| serde_json::json!({"image_id": 0, "category_id": 1, "bbox": bbox(n)})).collect();
            let coco = serde_json::json!({"images": images, "annotations": labels, "categories": [{"id": 1, "name": "a"}]});
            let mut evaluator = CocoEvaluator::new(&CocoDataset::parse(&coco.to_string()).unwrap());
            let found: Vec<_> = (0..n_found).map(|n| (1, 0.5, bbox(n))).collect();
            evaluator.add(0, &found).unwrap();
            evaluator
        };
        let lost = Comparison::new(&evaluator(200, 3), &evaluator(200, 2), limits);
        assert!(lost.table().contains("| a | 3 | 100.0 | 66.3 | 33.66 ± ? | 1.00 |"), "{}", lost.table());
        assert!(lost.refusal().is_some_and(|text| text.contains("standard error ?")));
        let few = Comparison::new(&evaluator(5, 3), &evaluator(5, 3), limits);
        assert!(few.refusal().is_none() && few.table().contains("On 5 pictures"), "{}", few.table());
    }
}
