//! Something-Something V2: labels by name in `something-something-v2-labels.json`, videos with their template in
//! `something-something-v2-train.json` or `-validation.json`, and their frames in the frame lists `train.csv` or `val.csv`,
//! whose labels are not looked at; or, in place of frames, a video file `ID.webm`. A test takes the validation videos.
//! Source: `slowfast/datasets/ssv2.py`.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::frame_list::{self, Frames};
use super::{Entry, Fault, FaultKind, ListConfig, Listing, Media, lines};
use crate::clip::Split;
use crate::error::{Error, Result};

/// An entry of the train or validation list; it has more fields.
#[derive(Deserialize)]
struct Video {
    id: Word,
    template: String,
}

/// A number, or a number as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Word {
    Text(String),
    Number(u64),
}

impl Word {
    fn into_text(self) -> String {
        match self {
            Word::Text(text) => text,
            Word::Number(number) => number.to_string(),
        }
    }
}

pub(super) fn read(config: &ListConfig, split: Split, listing: &mut Listing) -> Result<()> {
    let file = |name: &str| config.data_dir.join(format!("something-something-v2-{name}.json"));
    let labels: HashMap<String, Word> = read_json(&file("labels"), "an object that gives each template its number")?;
    let labels: HashMap<String, String> = labels.into_iter().map(|(name, word)| (name, word.into_text())).collect();
    let (json, csv) = match split {
        Split::Train => (file("train"), "train.csv"),
        Split::Val | Split::Test => (file("validation"), "val.csv"),
    };
    let videos: Vec<Video> = read_json(&json, "a list of objects with `id` and `template`")?;
    let mut frames = HashMap::new();
    if config.ssv2_videos.is_empty() {
        let list = frame_list::read(&config.data_dir.join(csv), usize::MAX, listing)?;
        frames.extend(list.into_iter().map(|video| (video.name.clone(), video)));
    }
    let mut seen = HashSet::new();
    for (k, Video { id, template }) in videos.into_iter().enumerate() {
        let name = id.into_text();
        let place = || format!("{}: entry {} (id {name})", json.display(), k + 1);
        let label = match label_of(&template, &labels, config.num_classes) {
            Ok(label) => label,
            Err((kind, message)) => {
                listing.faults.push(Fault::new(kind, place(), message));
                frames.remove(&name);
                continue;
            }
        };
        if !seen.insert(name.clone()) {
            listing.faults.push(Fault::new(FaultKind::Duplicate, place(), "this id is listed already"));
            continue;
        }
        let media = match (&config.ssv2_videos[..], frames.remove(&name)) {
            ("", Some(Frames { paths, .. })) => Media::Pictures(paths),
            ("", None) => {
                listing.faults.push(Fault::new(FaultKind::Missing, place(), format!("{csv} lists no frame of it")));
                continue;
            }
            (ending, _) => Media::File(format!("{name}.{}", ending.trim_start_matches('.')).into()),
        };
        listing.entries.push(Entry { name, media, classes: vec![(0, Box::from([label]))] });
    }
    let mut others: Vec<&String> = frames.keys().collect();
    others.sort_unstable();
    if let Some(first) = others.first() {
        let place = config.data_dir.join(csv).display().to_string();
        let message = format!("{} videos that {} does not list, such as {first}", others.len(), json.display());
        listing.faults.push(Fault::new(FaultKind::BadLine, place, message));
    }
    Ok(())
}

/// The label of a template such as `Holding [something] up`; names are without the brackets.
fn label_of(template: &str, labels: &HashMap<String, String>, num_classes: usize) -> Result<u32, lines::Refusal> {
    let name = template.replace(['[', ']'], "");
    let bad = || (FaultKind::BadLine, format!("`{name}` has no label in something-something-v2-labels.json"));
    lines::label(labels.get(&name).ok_or_else(bad)?, num_classes)
}

fn read_json<T: DeserializeOwned>(path: &Path, expected: &str) -> Result<T> {
    let mut file = std::fs::File::open(path).map_err(|e| lines::unreadable(path, e))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(|e| lines::unreadable(path, e))?;
    serde_json::from_slice(&text).map_err(|e| Error::Data(format!("{}: expected {expected}: {e}", path.display())))
}
