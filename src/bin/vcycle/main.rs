//! The `vcycle` program: arguments, and one place where an error becomes a line on stderr and exit code 1.

mod devices;
mod progress;
mod resample;
mod schedule;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Multigrid training of video networks on hand-written CUDA kernels.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Trains a network as a PySlowFast YAML file says.
    Train(train::Arguments),
    /// Prints the multigrid schedule of a configuration; needs no data and no device.
    Schedule(schedule::Arguments),
    /// Decodes a clip, resamples it to a grid and writes a contact sheet.
    Resample(resample::Arguments),
    /// Lists executors, GPUs, compiled kernels and decoders.
    Devices(devices::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Train(arguments) => train::run(arguments),
        Command::Schedule(arguments) => schedule::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Resample(arguments) => resample::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Devices(arguments) => devices::run(arguments).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("vcycle: {error}");
        ExitCode::FAILURE
    })
}
