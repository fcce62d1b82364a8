//! Still pictures: the figures under them, the kernels, and the commands `detect`, `eval`, `inspect` through the binary.

mod commands;
mod figures;
mod golden;
mod pictures;
mod refusals;
mod shipped;
mod tiny;
