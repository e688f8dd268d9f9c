//! Frame lists: a line for each frame, `original_vido_id video_id frame_id path labels`, spelled so in the first line. The
//! lines of a video are its frames in order; `video_id` and `frame_id` are not looked at. Source:
//! `slowfast/datasets/utils.py`, `load_image_lists`.

use std::collections::HashMap;
use std::path::Path;

use super::paths::FramePaths;
use super::{ClassRuns, FaultKind, Listing, lines};
use crate::clip::fingerprint;
use crate::error::{Error, Result};

const FIRST_COLUMN: &str = "original_vido_id";

/// The frames of one video.
#[derive(Debug, Default)]
pub(super) struct Frames {
    pub name: String,
    pub paths: FramePaths,
    pub classes: ClassRuns,
}

/// Reads the list at `path`: its videos in the order in which they first appear. Faults go to `listing`.
///
/// # Errors
/// A file that cannot be read or that does not begin as frame lists do.
pub(super) fn read(path: &Path, num_classes: usize, listing: &mut Listing) -> Result<Vec<Frames>> {
    let mut videos: Vec<Frames> = vec![];
    let mut positions: HashMap<String, usize> = HashMap::new();
    let mut is_frame_list = false;
    lines::read(path, listing, &mut |listing, number, line| {
        if number == 1 {
            is_frame_list = line.starts_with(FIRST_COLUMN);
            return Ok(());
        }
        if !is_frame_list {
            return Ok(());
        }
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [video, _, _, file, labels] = columns[..] else {
            let message = format!("expected 5 columns (`{FIRST_COLUMN} video_id frame_id path labels`), got `{line}`");
            return Err((FaultKind::BadLine, message));
        };
        let classes = labels_of(labels, num_classes)?;
        let next = videos.len();
        let position = match positions.get(video) {
            Some(&position) => position,
            None => {
                positions.insert(video.into(), next);
                videos.push(Frames { name: video.into(), ..Frames::default() });
                next
            }
        };
        videos[position].push(file, classes);
        match listing.seen_frames.as_mut().is_none_or(|seen| seen.insert(fingerprint::of(file))) {
            true => Ok(()),
            false => Err((FaultKind::Duplicate, format!("frame `{file}` is listed already"))),
        }
    })?;
    if is_frame_list {
        return Ok(videos);
    }
    Err(Error::Data(format!(
        "{}: no frame list: expected a first line that begins with `{FIRST_COLUMN}`",
        path.display()
    )))
}

impl Frames {
    fn push(&mut self, file: &str, classes: Box<[u32]>) {
        if self.classes.last().is_none_or(|(_, last)| *last != classes) {
            self.classes.push((self.paths.len() as u32, classes));
        }
        self.paths.push(file);
    }
}

/// `"3,17"`, `3` or `""`.
fn labels_of(text: &str, num_classes: usize) -> Result<Box<[u32]>, lines::Refusal> {
    let text = text.replace('"', "");
    let parts = text.split(',').filter(|_| !text.is_empty());
    let mut classes = parts.map(|part| lines::label(part, num_classes)).collect::<Result<Vec<u32>, _>>()?;
    classes.sort_unstable();
    classes.dedup();
    Ok(classes.into())
}
