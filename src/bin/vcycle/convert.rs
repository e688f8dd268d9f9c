//! `vcycle convert`.

use std::path::PathBuf;

use vcycle::config::Config;
use vcycle::model::{Model, ModelConfig};
use vcycle::weights::{self, Options, StateDict};
use vcycle::{Error, Result};

/// Arguments of `vcycle convert`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Weights: .pyth or .pth of PyTorch, .pkl of caffe2, .safetensors, or the folder of a run.
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// File to write: .safetensors, or .pyth for PyTorch and PySlowFast.
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// PySlowFast YAML file of the network that the weights are for; every shape is checked against it.
    #[arg(long, value_name = "FILE")]
    cfg: Option<PathBuf>,
    /// Inflates 2D filters to the network's 3D ones (with --cfg).
    #[arg(long)]
    inflate: bool,
    /// Text that is cleared from each name, once; may be given several times.
    #[arg(long, value_name = "TEXT")]
    clear: Vec<String>,
    /// Overrides of --cfg, such as `MODEL.NUM_CLASSES 174`.
    #[arg(value_name = "KEY VALUE", allow_negative_numbers = true)]
    overrides: Vec<String>,
}

/// Runs it.
pub fn run(arguments: Arguments) -> Result<()> {
    let Arguments { input, out, cfg, inflate, clear, overrides } = arguments;
    let Some(cfg) = cfg else {
        if inflate || !overrides.is_empty() {
            return Err(Error::Config(
                "--inflate and KEY VALUE say something of a network: give its --cfg FILE".into(),
            ));
        }
        let mut state = weights::load(&input)?;
        let renaming = weights::rename(&mut state, &clear)?;
        weights::save(&out, &state)?;
        let StateDict { path, format, tensors, .. } = &state;
        let count = tensors.len();
        return super::out::stdout(&format!(
            "{} ({format}): {count} tensors{renaming}\nwritten to {}\n",
            path.display(),
            out.display()
        ));
    };
    let config = Config::load(&cfg, &overrides)?;
    let model = Model::new(&ModelConfig::from_config(&config)?)?;
    let state = weights::load(&input)?;
    let (path, format, epoch) = (state.path.clone(), state.format, state.epoch);
    let (tensors, report) =
        weights::fit(&model, state, &Options { inflate, clear_name_patterns: clear, complete: false })?;
    weights::save(&out, &StateDict { path, format, tensors, epoch })?;
    super::out::stdout(&format!("{report}\nwritten to {}\n", out.display()))
}
