//! Charades: `train.csv` and `val.csv` are frame lists with any number of labels a frame; a test takes `val.csv`. Source:
//! `slowfast/datasets/charades.py`.

use super::{Entry, ListConfig, Listing, Media, frame_list};
use crate::clip::Split;
use crate::error::Result;

pub(super) fn read(config: &ListConfig, split: Split, listing: &mut Listing) -> Result<()> {
    let name = if split == Split::Train { "train.csv" } else { "val.csv" };
    let videos = frame_list::read(&config.data_dir.join(name), config.num_classes, listing)?;
    let entries =
        videos.into_iter().map(|v| Entry { name: v.name, media: Media::Pictures(v.paths), classes: v.classes });
    listing.entries = entries.collect();
    Ok(())
}
