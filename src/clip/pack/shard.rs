//! Clips to a file and back: safetensors, which any program of this field reads, with byte ranges that need no header.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize};

use super::index::{Clip, Content, Stored, replace};
use super::{Encoding, FORMAT_VERSION, damaged};
use crate::error::{Error, Result};

/// Of a line of a table: four u32.
pub(super) const CELL_BYTES: usize = 16;

/// Longest header that safetensors allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// What a shard says of itself, beside its tensors.
const ABOUT: &str = "vcycle_pack";

/// Path of shard `k`.
pub(super) fn path(folder: &Path, k: usize) -> PathBuf {
    folder.join(format!("shard-{k:05}.safetensors"))
}

/// A clip that is not yet in a file; the places in `clip` count from the beginning of its own bytes.
pub(super) struct Packed {
    pub clip: Clip,
    pub frames: Vec<u8>,
    pub cells: Vec<u8>,
}

/// A line of the table for `cell`, which begins at `offset` of the clip's frames.
pub(super) fn line(cell: &[u8], offset: u64) -> [u8; CELL_BYTES] {
    let words = [offset as u32, (offset >> 32) as u32, cell.len() as u32, crc32fast::hash(cell)];
    let mut line = [0; CELL_BYTES];
    line.chunks_exact_mut(4).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
    line
}

/// Offset, length and CRC-32 of a cell.
pub(super) fn cell_of(line: &[u8]) -> (u64, usize, u32) {
    let word = |k: usize| u32::from_le_bytes(std::array::from_fn(|i| line.get(4 * k + i).copied().unwrap_or(0)));
    (u64::from(word(0)) | u64::from(word(1)) << 32, word(2) as usize, word(3))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    format: u32,
    encoding: Encoding,
    clips: Vec<Clip>,
}

/// A shard as its header describes it.
pub(super) struct Described {
    pub encoding: Encoding,
    /// Places count from the beginning of the file.
    pub clips: Vec<Clip>,
    pub bytes: u64,
}

/// Writes shard `k`, whole or not at all.
pub(super) fn write(folder: &Path, k: usize, encoding: &Encoding, clips: &[Packed]) -> Result<()> {
    let path = path(folder, k);
    let (mut tensors, mut end) = (vec![], 0);
    let mut add = |name: String, dtype: Dtype, shape: Vec<usize>, len: usize| {
        tensors.push((name, TensorInfo { dtype, shape, data_offsets: (end, end + len) }));
        end += len;
    };
    // Tables first: they are aligned for readers that want that.
    for (i, packed) in clips.iter().enumerate() {
        add(format!("{i}.cells"), Dtype::U32, vec![packed.cells.len() / CELL_BYTES, 4], packed.cells.len());
    }
    for (i, packed) in clips.iter().enumerate() {
        add(format!("{i}.frames"), Dtype::U8, vec![packed.frames.len()], packed.frames.len());
    }
    let about = About {
        format: FORMAT_VERSION,
        encoding: *encoding,
        clips: clips.iter().map(|packed| packed.clip.clone()).collect(),
    };
    let about = serde_json::to_string(&about).map_err(|e| damaged(&path, e))?;
    let metadata = Metadata::new(Some(HashMap::from([(ABOUT.to_string(), about)])), tensors);
    let mut header = metadata
        .map_err(|e| e.to_string())
        .and_then(|metadata| serde_json::to_vec(&metadata).map_err(|e| e.to_string()))
        .map_err(|message| damaged(&path, message))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    replace(&path, &mut |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        clips.iter().try_for_each(|packed| file.write_all(&packed.cells))?;
        clips.iter().try_for_each(|packed| file.write_all(&packed.frames))
    })
}

/// Reads the header of shard `k`.
///
/// # Errors
/// [`Error::Io`] for a file that is not there, [`Error::Data`] for anything but a whole shard of this version.
pub(super) fn describe(folder: &Path, k: usize) -> Result<Described> {
    let path = path(folder, k);
    let io = |e: std::io::Error| Error::io(&path, &e);
    let mut file = File::open(&path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES.min(bytes) {
        return Err(damaged(&path, "no header of safetensors"));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(io)?;
    parse(&header, bytes, k).map_err(|message| damaged(&path, message))
}

fn parse(header: &[u8], bytes: u64, k: usize) -> Result<Described, String> {
    let metadata: Metadata = serde_json::from_slice(header).map_err(|e| format!("damaged header: {e}"))?;
    let begin = 8 + header.len() as u64;
    let end = metadata.tensors().values().map(|info| info.data_offsets.1).max().unwrap_or(0);
    if begin + end as u64 != bytes {
        return Err(format!("{bytes} bytes, expected {}", begin + end as u64));
    }
    let about = metadata.metadata().as_ref().and_then(|metadata| metadata.get(ABOUT)).ok_or("no shard of a pack")?;
    let About { format, encoding, mut clips } = serde_json::from_str(about).map_err(|e| format!("damaged: {e}"))?;
    if format != FORMAT_VERSION {
        return Err(format!("expected format version {FORMAT_VERSION}, got {format}"));
    }
    for (i, clip) in clips.iter_mut().enumerate() {
        let place = |what: &str| {
            let info = metadata.info(&format!("{i}.{what}")).ok_or_else(|| format!("{}: no {what}", clip.name))?;
            let (from, to) = info.data_offsets;
            Ok::<_, String>((begin + from as u64, (to - from) as u64))
        };
        let (frames, cells) = (place("frames")?, place("cells")?);
        if let Content::Stored(stored) = &mut clip.content {
            *stored = Stored { shard: k, frames, cells, ..stored.clone() };
            stored.check(&encoding, bytes).map_err(|message| format!("{}: {message}", clip.name))?;
        }
    }
    Ok(Described { encoding, clips, bytes })
}

/// An open shard.
pub(super) struct Reader {
    file: File,
    path: PathBuf,
}

impl Reader {
    pub fn open(folder: &Path, k: usize) -> Result<Reader> {
        let path = path(folder, k);
        let file = File::open(&path).map_err(|e| Error::io(&path, &e))?;
        Ok(Reader { file, path })
    }

    /// Reads `into.len()` bytes from `begin` on.
    pub fn read(&mut self, begin: u64, into: &mut [u8]) -> Result<()> {
        let read = self.file.seek(SeekFrom::Start(begin)).and_then(|_| self.file.read_exact(into));
        read.map_err(|e| Error::io(&self.path, &e))
    }

    /// The table of cells of a clip.
    pub fn cells(&mut self, stored: &Stored) -> Result<Vec<u8>> {
        let mut cells = vec![0; stored.cells.1 as usize];
        self.read(stored.cells.0, &mut cells)?;
        match crc32fast::hash(&cells) == stored.cells_crc32 {
            true => Ok(cells),
            false => Err(damaged(&self.path, "the table of a clip is damaged (wrong checksum)")),
        }
    }

    /// The bytes of the cells with these `lines` of a table, which lie one behind the other, into `bytes`.
    pub fn frame(&mut self, stored: &Stored, lines: &[u8], bytes: &mut Vec<u8>) -> Result<()> {
        bytes.clear();
        for line in lines.chunks_exact(CELL_BYTES) {
            let (offset, length, crc32) = cell_of(line);
            if offset.checked_add(length as u64).is_none_or(|end| end > stored.frames.1) {
                return Err(damaged(&self.path, "a frame lies outside of its clip"));
            }
            let at = bytes.len();
            bytes.resize(at + length, 0);
            self.read(stored.frames.0 + offset, &mut bytes[at..])?;
            if crc32fast::hash(&bytes[at..]) != crc32 {
                return Err(damaged(&self.path, "a frame is damaged (wrong checksum)"));
            }
        }
        Ok(())
    }
}
