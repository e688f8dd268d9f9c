//! Kinetics: `train.csv`, `val.csv` and `test.csv`, a line for each video, `path label`. Source:
//! `slowfast/datasets/kinetics.py`.

use std::collections::HashMap;

use super::{Entry, FaultKind, ListConfig, Listing, Media, lines};
use crate::clip::Split;
use crate::error::Result;

pub(super) fn read(config: &ListConfig, split: Split, listing: &mut Listing) -> Result<()> {
    let path = config.data_dir.join(format!("{}.csv", split.name()));
    let mut seen: HashMap<String, (usize, u32)> = HashMap::new();
    lines::read(&path, listing, &mut |listing, number, line| {
        let (file, label) = parse(line, &config.separator, config.num_classes)?;
        let (media, classes) = (Media::File(file.into()), vec![(0, Box::from([label]))]);
        listing.entries.push(Entry { name: file.into(), media, classes });
        match seen.insert(file.into(), (number, label)) {
            None => Ok(()),
            Some((before, other)) => {
                let labels = if other == label { String::new() } else { format!(" with label {other}, here {label}") };
                Err((FaultKind::Duplicate, format!("`{file}` is listed in line {before} already{labels}")))
            }
        }
    })
}

fn parse<'a>(line: &'a str, separator: &str, num_classes: usize) -> Result<(&'a str, u32), lines::Refusal> {
    let parts = if separator.is_empty() { None } else { line.trim_end().rsplit_once(separator) };
    let Some((file, label)) = parts.filter(|(file, _)| !file.trim().is_empty()) else {
        return Err((FaultKind::BadLine, format!("expected `path{separator}label`, got `{line}`")));
    };
    Ok((file.trim_end(), lines::label(label, num_classes)?))
}
