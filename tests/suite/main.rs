//! One integration binary. A module per op under the op's name; `golden/` holds what all golden tests share;
//! the other modules are named after the part of `src/` that they test.

mod compare;
mod executors;
mod golden;
mod stored;

mod attention;
mod batch_norm;
mod checkpoint;
mod cli;
mod config;
mod conv3d;
mod datasets;
mod decoder;
mod device;
mod dropout;
mod emulator;
mod gpu_run;
mod layer_list;
mod linear;
mod loader;
mod mapping;
mod model;
mod moving_shapes;
mod multigrid;
mod pointwise;
mod pool3d;
mod report;
mod resample;
mod resize;
mod sampling;
mod schedule;
mod sgd;
mod softmax_loss;
mod train;
mod verify;
mod weights;
