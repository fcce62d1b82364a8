//! The specification: what every operator computes, in plain loops.

mod add;
mod channels;
mod conv;
mod depthwise;
mod maxpool;
mod preprocess;
mod upsample;

pub use add::{AddTerm, qu8_add};
pub use channels::{qu8_concat_row, qu8_shuffle_row, qu8_slice_row, qu8_table};
pub use conv::{PackedConv, qu8_qc8w_conv_row};
pub use depthwise::{PackedDepthwise, qu8_qc8w_depthwise_row};
pub use maxpool::qu8_maxpool_row;
pub use preprocess::{ColorCoefficients, MID_BITS, Taps, WEIGHT_BITS, add_weighted_row, round_row, weighted_mean};
pub use upsample::qu8_upsample2_row;
