//! `vcycle train`.

/// Arguments of `vcycle train`.
#[derive(clap::Args)]
pub struct Arguments {}

/// Runs it.
pub fn run(_arguments: Arguments) -> vcycle::Result<()> {
    Err(vcycle::Error::unsupported("train", "not built yet"))
}
