//! Is a file whole? What a run would pass over, or fill in with the last frame that exists, is told here.

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
