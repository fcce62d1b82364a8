//! What moves or maps values without arithmetic: tables, concatenation, slices, shuffles, interleaving, upsampling.

use crate::kernels::op::check_buffers;
use crate::kernels::{Layout, OpSpec, RowKernel, Table};

/// `OpSpec::{Concat, Interleave, Upsample2, Slice, Shuffle, Table}`.
#[derive(Debug)]
pub(super) struct Channels {
    pub op: OpSpec,
    pub inputs: Vec<Layout>,
    pub output: Layout,
}

impl RowKernel for Channels {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        check_buffers(inputs.iter().copied().zip(&self.inputs), first, out, &self.output);
        let pixel = |idx: usize, y: usize, x: usize| self.inputs[idx].pixel(inputs[idx], y, x);
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            for (x, out) in self.output.pixels_mut(row).enumerate() {
                match &self.op {
                    OpSpec::Concat(tables) => concat((0..inputs.len()).map(|idx| pixel(idx, y, x)), tables, out),
                    OpSpec::Interleave { first, tables } => interleave([pixel(0, y, x), pixel(1, y, x)], *first, tables, out),
                    OpSpec::Upsample2 => out.copy_from_slice(pixel(0, y / 2, x / 2)),
                    OpSpec::Slice { first } => out.copy_from_slice(&pixel(0, y, x)[*first..][..out.len()]),
                    OpSpec::Shuffle { groups } => shuffle(pixel(0, y, x), *groups, out),
                    OpSpec::Table(table) => map(pixel(0, y, x), Some(table), out),
                    _ => unreachable!("not an operator on channels"),
                }
            }
        }
    }

    fn label(&self) -> String {
        "scalar".into()
    }
}

/// `out[i] = table[values[i]]`.
fn map(values: &[u8], table: Option<&Table>, out: &mut [u8]) {
    match table {
        None => out.copy_from_slice(values),
        Some(table) => out.iter_mut().zip(values).for_each(|(out, &x)| *out = table[usize::from(x)]),
    }
}

fn concat<'a>(parts: impl Iterator<Item = &'a [u8]>, tables: &[Option<Box<Table>>], out: &mut [u8]) {
    let mut rest = out;
    for (part, table) in parts.zip(tables) {
        let (here, after) = rest.split_at_mut(part.len());
        map(part, table.as_deref(), here);
        rest = after;
    }
}

fn interleave(sides: [&[u8]; 2], first: usize, tables: &[Option<Box<Table>>; 2], out: &mut [u8]) {
    for (i, out) in (first..).zip(out) {
        let value = sides[i % 2][i / 2];
        *out = tables[i % 2].as_ref().map_or(value, |table| table[usize::from(value)]);
    }
}

fn shuffle(values: &[u8], groups: usize, out: &mut [u8]) {
    let per_group = values.len() / groups;
    for (group, part) in values.chunks_exact(per_group).enumerate() {
        for (i, &x) in part.iter().enumerate() {
            out[i * groups + group] = x;
        }
    }
}
