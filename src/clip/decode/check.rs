//! Is a file whole? What a run would pass over, or fill in with the last frame that exists, is told here.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use super::{Picture, Stream, Video, h264};

/// A video much shorter than its container says was cut off; sound that runs on for a little is none.
const SHORTEST_SHARE: f64 = 0.8;

/// What is wrong with a file that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It does not hold all that its header promises.
    Truncated(String),
    /// Something in it cannot be decoded.
    Undecodable(String),
}

impl Video {
    /// Decodes the first and the last frame, or `all`, and looks whether the file holds what its header promises. `None`:
    /// nothing is wrong.
    pub fn check(&mut self, all: bool) -> Option<Damage> {
        self.cut_off().map(Damage::Truncated).or_else(|| self.check_frames(all))
    }

    fn cut_off(&self) -> Option<String> {
        match &self.stream {
            Stream::BuiltIn(track) => {
                let (cut_off, declared) = (track.cut_off_frames(), track.declared_frames());
                (cut_off > 0).then(|| format!("{cut_off} of {declared} frames lie beyond the end of the file"))
            }
            Stream::Ffmpeg(stream) => {
                if stream.ended_early {
                    return Some(format!("ends early, {} frames are there", stream.num_frames));
                }
                if let Some((declared, length)) = riff_bytes(&self.path).filter(|(declared, length)| declared > length)
                {
                    return Some(format!("holds {length} of {declared} bytes"));
                }
                let seconds = stream.num_frames as f64 / stream.fps;
                let declared = stream.container_s.filter(|declared| seconds < SHORTEST_SHARE * declared)?;
                Some(format!("holds {seconds:.1} of {declared:.1} seconds"))
            }
        }
    }

    fn check_frames(&mut self, all: bool) -> Option<Damage> {
        let num_frames = self.info.num_frames as u32;
        let last = num_frames.saturating_sub(1);
        let wanted: Vec<u32> = if all || last == 0 { (0..num_frames).collect() } else { vec![0, last] };
        let mut damage = None;
        if let Stream::BuiltIn(track) = &self.stream {
            // Training would go on with ffmpeg, which fills in what is damaged.
            let deadline = Instant::now() + self.options.time_limit;
            match track.decode(&self.path, &wanted, deadline, &mut |_, _| {}) {
                Ok(()) => return None,
                Err(reason) => damage = Some(format!("{}: {reason}", h264::NAME)),
            }
        }
        match (self.decode(&wanted, &mut |_, _: Picture<'_>| {}), damage) {
            (Ok(_), Some(reason)) => Some(Damage::Undecodable(reason)),
            (Ok(came), None) if came < wanted.len() => {
                Some(Damage::Truncated(format!("ends before frame {}", wanted[wanted.len() - 1])))
            }
            (Ok(_), None) => None,
            (Err(error), _) => Some(Damage::Undecodable(error.to_string())),
        }
    }
}

/// (bytes that the header of an AVI file promises, bytes that it has).
fn riff_bytes(path: &Path) -> Option<(u64, u64)> {
    let mut file = File::open(path).ok()?;
    let mut header = [0; 8];
    file.read_exact(&mut header).ok()?;
    let (kind, size) = header.split_at(4);
    let size = u64::from(u32::from_le_bytes(size.try_into().ok()?));
    // 0 and the largest number stand for "not known".
    let is_known = kind == b"RIFF" && ![0, u64::from(u32::MAX)].contains(&size);
    Some((size + 8, file.metadata().ok()?.len())).filter(|_| is_known)
}

/// Of what ffmpeg says of a file: the seconds that the container promises, and whether the file ends before the container.
pub(super) fn promised(messages: &str) -> (Option<f64>, bool) {
    (messages.lines().find_map(parse_duration), messages.contains("ended prematurely"))
}

/// Seconds of `  Duration: 00:01:02.50, start: …`; `None` for other lines and `N/A`.
fn parse_duration(line: &str) -> Option<f64> {
    let clock = line.trim().strip_prefix("Duration: ")?.split(',').next()?;
    clock.split(':').try_fold(0.0, |seconds, part| Some(seconds * 60.0 + part.parse::<f64>().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ffmpeg_says_of_a_file() {
        let messages = "Input #0, avi, from 'a':\n  Duration: 00:01:02.50, start: 0.000000, bitrate: 357 kb/s\n";
        assert_eq!(promised(messages), (Some(62.5), false));
        assert_eq!(promised("  Duration: N/A, start: 0\n[matroska,webm @ 0x5] File ended prematurely\n"), (None, true));
    }
}
