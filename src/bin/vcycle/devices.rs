//! `vcycle devices`.

/// Arguments of `vcycle devices`.
#[derive(clap::Args)]
pub struct Arguments {}

/// Runs it.
pub fn run(_arguments: Arguments) -> vcycle::Result<()> {
    Err(vcycle::Error::unsupported("devices", "not built yet"))
}
