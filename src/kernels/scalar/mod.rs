//! The specification: what every operator computes, in plain loops.

mod add;
mod channels;
mod conv;
mod depthwise;
mod maxpool;
mod postprocess;
mod preprocess;
mod turn;

pub(super) use postprocess::{count, overlaps, scan};
pub(super) use preprocess::{COLOR_BITS, Picture};
pub use preprocess::{ColorCoefficients, MID_BITS, Taps, WEIGHT_BITS, add_weighted_row, round_row, weighted_mean};
pub(super) use turn::rows_to_columns;

use super::{Layout, OpSpec, RowKernel};

/// The plain loops of an operator.
pub(super) fn prepare(op: &OpSpec, inputs: &[Layout], output: Layout) -> Box<dyn RowKernel> {
    let input = inputs[0];
    match op {
        OpSpec::Conv(spec) if spec.is_depthwise() => Box::new(depthwise::Depthwise::new(spec, input, output)),
        OpSpec::Conv(spec) => Box::new(conv::Conv::new(spec, input, output)),
        OpSpec::MaxPool(window) => Box::new(maxpool::MaxPool { window: *window, input, output }),
        OpSpec::AddTo { terms, zero_point, lo, hi } => {
            Box::new(add::Add { inputs: [output, input], output, terms: *terms, zero_point: *zero_point, lo: *lo, hi: *hi })
        }
        OpSpec::Add { terms, zero_point, lo, hi } => {
            Box::new(add::Add { inputs: [input, inputs[1]], output, terms: *terms, zero_point: *zero_point, lo: *lo, hi: *hi })
        }
        _ => Box::new(channels::Channels { op: op.clone(), inputs: inputs.to_vec(), output }),
    }
}
