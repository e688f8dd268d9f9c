//! `vcycle resample`.

/// Arguments of `vcycle resample`.
#[derive(clap::Args)]
pub struct Arguments {}

/// Runs it.
pub fn run(_arguments: Arguments) -> vcycle::Result<()> {
    Err(vcycle::Error::unsupported("resample", "not built yet"))
}
