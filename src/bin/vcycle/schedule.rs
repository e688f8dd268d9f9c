//! `vcycle schedule`.

/// Arguments of `vcycle schedule`.
#[derive(clap::Args)]
pub struct Arguments {}

/// Runs it.
pub fn run(_arguments: Arguments) -> vcycle::Result<()> {
    Err(vcycle::Error::unsupported("schedule", "not built yet"))
}
