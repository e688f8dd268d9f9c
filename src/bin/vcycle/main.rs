//! The `vcycle` program: arguments, and one place where an error becomes a line on stderr and exit code 1.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod convert;
mod devices;
mod info;
mod out;
mod pack;
mod plan;
mod predict;
mod profile;
mod progress;
mod resample;
mod run;
mod schedule;
mod test;
mod train;
mod verify;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::error::ErrorKind;
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
    /// Tests weights on several views of every video.
    Test(test::Arguments),
    /// Names the classes of videos.
    Predict(predict::Arguments),
    /// Prints the multigrid schedule of a configuration; needs no data and no device.
    Schedule(schedule::Arguments),
    /// Times every op of a step and says which ceiling of the device it is under; needs no data.
    Profile(profile::Arguments),
    /// Reads the data set of a configuration and tells what is wrong with it.
    Verify(verify::Arguments),
    /// Decodes the data set of a configuration once and stores its frames, for fast random access.
    Pack(pack::Arguments),
    /// Prints parameters, multiply-adds and memory of a network at every grid; needs no data and no device.
    Info(info::Arguments),
    /// Decodes a clip, resamples it to a grid and writes a contact sheet.
    Resample(resample::Arguments),
    /// Converts weights of PyTorch, PySlowFast, caffe2 and torchvision to safetensors, and back to .pyth.
    Convert(convert::Arguments),
    /// Lists executors, GPUs, compiled kernels and decoders.
    Devices(devices::Arguments),
}

fn main() -> ExitCode {
    show_warnings();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(message) if !message.use_stderr() => {
            // --help and --version.
            return match out::stdout(&message.to_string()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error.to_string()),
            };
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return fail(
                "expected a command: train, test, predict, schedule, info, profile, verify, pack, resample, convert or devices; see --help",
            );
        }
        Err(error) => return fail(&first_paragraph(&error.to_string())),
    };
    let result = match arguments.command {
        Command::Train(arguments) => train::run(arguments),
        Command::Test(arguments) => test::run(arguments),
        Command::Predict(arguments) => predict::run(arguments),
        Command::Schedule(arguments) => schedule::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Profile(arguments) => profile::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Pack(arguments) => pack::run(arguments),
        Command::Info(arguments) => info::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Resample(arguments) => resample::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Convert(arguments) => convert::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Devices(arguments) => devices::run(arguments).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| fail(&error.to_string()))
}

fn fail(message: &str) -> ExitCode {
    out::stderr(format_args!("vcycle: {message}"));
    ExitCode::FAILURE
}

/// The library's warnings, such as bad clips, on stderr; `VCYCLE_LOG=debug` shows more.
fn show_warnings() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("VCYCLE_LOG").unwrap_or_else(|_| "warn".into());
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let lines = lines.with_ansi(std::io::stderr().is_terminal()).log_internal_errors(false);
    lines.without_time().with_target(false).init();
}

/// What was wrong with the arguments, as one line: without usage and hints.
fn first_paragraph(message: &str) -> String {
    let lines = message.trim_start_matches("error: ").lines().map(str::trim);
    let paragraph: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
    format!("{}; see --help", paragraph.join(" "))
}
