//! MP4 files made here: H.264 whose macroblocks hold their samples uncoded (I_PCM), so that the decoded planes are known
//! to the byte, in a container that every test can bend as it likes.

/// What the file is to be like. A picture is 32x16; frame k has luma 50 + 10 k on the left, 5 more on the right,
/// and grey chroma. 25 frames a second, 512 units each.
#[derive(Default)]
pub struct Mp4 {
    pub frames: usize,
    /// Degrees clockwise in the display matrix.
    pub rotation: u32,
    /// Shift of each frame's presentation time.
    pub shifts: Vec<i32>,
    /// (duration in milliseconds, media time in units).
    pub edits: Vec<(u32, i32)>,
    /// (matrix coefficients, full range) in the bit stream.
    pub vui: Option<(u32, bool)>,
    /// The same in the container.
    pub colr: Option<(u32, bool)>,
    /// Adds a track of 16x16, before or after the main one.
    pub small_track: Option<bool>,
    /// Samples in `moof` boxes, three each, instead of tables.
    pub fragmented: bool,
}

/// The planes of frame `k`.
pub fn planes(k: usize) -> Vec<u8> {
    let row: Vec<u8> = (0..32).map(|x| luma(k) + if x < 16 { 0 } else { 5 }).collect();
    [row.repeat(16), vec![128; 2 * 16 * 8]].concat()
}

fn luma(k: usize) -> u8 {
    50 + 10 * k as u8
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    fn bits(&mut self, count: u32, value: u32) -> &mut Self {
        for k in (0..count).rev() {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().expect("pushed") |= ((value >> k & 1) as u8) << (7 - self.used % 8);
            self.used += 1;
        }
        self
    }

    /// Exp-Golomb.
    fn ue(&mut self, value: u32) -> &mut Self {
        let bits = (value + 1).ilog2();
        self.bits(bits, 0).bits(bits + 1, value + 1)
    }

    fn align(&mut self) -> &mut Self {
        self.used = self.used.next_multiple_of(8);
        self
    }

    /// The NAL unit: header, stop bit, emulation prevention.
    fn nal(&mut self, header: u8) -> Vec<u8> {
        self.bits(1, 1);
        let mut out = vec![header];
        let mut zeros = 0;
        for &byte in &self.bytes {
            if zeros == 2 && byte <= 3 {
                out.push(3);
                zeros = 0;
            }
            zeros = if byte == 0 { zeros + 1 } else { 0 };
            out.push(byte);
        }
        out
    }
}

fn sps(width_mbs: u32, vui: Option<(u32, bool)>) -> Vec<u8> {
    let mut b = Bits::default();
    b.bits(8, 66).bits(8, 0xC0).bits(8, 10).ue(0).ue(0).ue(2).ue(1).bits(1, 0);
    b.ue(width_mbs - 1).ue(0).bits(3, 0b110).bits(1, u32::from(vui.is_some()));
    if let Some((matrix, full_range)) = vui {
        b.bits(3, 0b001).bits(3, 5).bits(1, u32::from(full_range)).bits(1, 1);
        b.bits(8, 1).bits(8, 1).bits(8, matrix).bits(6, 0);
    }
    b.nal(0x67)
}

fn pps() -> Vec<u8> {
    let mut b = Bits::default();
    b.ue(0).ue(0).bits(2, 0).ue(0).ue(0).ue(0).bits(3, 0).ue(0).ue(0).ue(0).bits(3, 0b100);
    b.nal(0x68)
}

fn picture(k: usize, width_mbs: u32) -> Vec<u8> {
    let mut b = Bits::default();
    // Slice header: I slice, frame number 0, a picture id that alternates, no deblocking.
    b.ue(0).ue(7).ue(0).bits(4, 0).ue(k as u32 % 2).bits(2, 0).ue(0).ue(1);
    for mb in 0..width_mbs {
        b.ue(25).align();
        (0..256).for_each(|_| _ = b.bits(8, u32::from(luma(k)) + 5 * mb));
        (0..128).for_each(|_| _ = b.bits(8, 128));
    }
    b.nal(0x65)
}

fn atom(kind: &[u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [&(body.len() as u32 + 8).to_be_bytes()[..], kind, &body].concat()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_be_bytes()).collect()
}

/// A coded sample: length, then the NAL unit.
fn samples(frames: usize, width_mbs: u32) -> Vec<Vec<u8>> {
    let sample = |k| {
        let nal = picture(k, width_mbs);
        [&(nal.len() as u32).to_be_bytes()[..], &nal].concat()
    };
    (0..frames).map(sample).collect()
}

impl Mp4 {
    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let (main, small) = (samples(self.frames, 2), samples(1, 1));
        let ftyp = atom(b"ftyp", &[b"isom", &words(&[0])]);
        // Offsets depend on the size of the index, which does not depend on offsets.
        let moov = |main_at: u32, small_at: u32| {
            let main = self.track(1, 2, &main, main_at);
            let small = self.small_track.map(|_| self.track(2, 1, &small, small_at)).unwrap_or_default();
            let tracks = if self.small_track == Some(true) { [small, main].concat() } else { [main, small].concat() };
            let mvhd = atom(b"mvhd", &[&words(&[0, 0, 0, 1000, 1000])]);
            let mvex = atom(b"mvex", &[&atom(b"trex", &[&words(&[0, 1, 1, 512, 0, 0])])]);
            atom(b"moov", &[&mvhd, &tracks, if self.fragmented { &mvex } else { &[] }])
        };
        let begin = (ftyp.len() + moov(0, 0).len() + 8) as u32;
        let main_bytes: u32 = main.iter().map(|s| s.len() as u32).sum();
        let index = moov(begin, begin + main_bytes);
        if self.fragmented {
            return main.chunks(3).fold([ftyp, index].concat(), |file, part| [file, fragment(part)].concat());
        }
        [ftyp, index, atom(b"mdat", &[&main.concat(), &small.concat()])].concat()
    }

    fn track(&self, id: u32, width_mbs: u32, samples: &[Vec<u8>], offset: u32) -> Vec<u8> {
        let (a, b) = match self.rotation {
            90 => (0, 1),
            180 => (-1, 0),
            270 => (0, -1),
            _ => (1, 0),
        };
        let fixed = |v: i32| (v << 16) as u32;
        let matrix = words(&[fixed(a), fixed(b), 0, fixed(-b), fixed(a), 0, 0, 0, 1 << 30]);
        let size = words(&[(16 * width_mbs) << 16, 16 << 16]);
        let tkhd = atom(b"tkhd", &[&words(&[7, 0, 0, id, 0, 0, 0, 0, 0, 0]), &matrix, &size]);
        let rows: Vec<u8> = self.edits.iter().flat_map(|&(d, t)| words(&[d, t as u32, 1 << 16])).collect();
        let elst = atom(b"elst", &[&words(&[0, self.edits.len() as u32]), &rows]);
        let edts = if self.edits.is_empty() { vec![] } else { atom(b"edts", &[&elst]) };
        let mdhd = atom(b"mdhd", &[&words(&[0, 0, 0, 12800, 512 * samples.len() as u32, 0])]);
        let hdlr = atom(b"hdlr", &[&words(&[0, 0]), b"vide", &[0; 13]]);
        let stbl = self.tables(width_mbs, samples, offset);
        let mdia = atom(b"mdia", &[&mdhd, &hdlr, &atom(b"minf", &[&stbl])]);
        atom(b"trak", &[&tkhd, &edts, &mdia])
    }

    fn tables(&self, width_mbs: u32, samples: &[Vec<u8>], offset: u32) -> Vec<u8> {
        let (sps, pps) = (sps(width_mbs, self.vui), pps());
        let length = |set: &[u8]| (set.len() as u16).to_be_bytes();
        let avcc = atom(b"avcC", &[&[1, 66, 0xC0, 10, 0xFF, 0xE1], &length(&sps), &sps, &[1], &length(&pps), &pps]);
        let colr = self.colr.map_or(vec![], |(matrix, full)| {
            let codes = [0, 1, 0, 1, 0, matrix as u8, if full { 0x80 } else { 0 }];
            atom(b"colr", &[b"nclx", &codes])
        });
        let size = [((16 * width_mbs) as u16).to_be_bytes(), 16u16.to_be_bytes()].concat();
        let avc1 = atom(b"avc1", &[&[0; 24], &size, &[0; 50], &avcc, &colr]);
        let stsd = atom(b"stsd", &[&words(&[0, 1]), &avc1]);
        let n = if self.fragmented { 0 } else { samples.len() as u32 };
        let stts = atom(b"stts", &[&words(&[0, 1, n, 512])]);
        let rows: Vec<u8> = self.shifts.iter().flat_map(|&s| words(&[1, s as u32])).collect();
        let ctts = atom(b"ctts", &[&words(&[1 << 24, self.shifts.len() as u32]), &rows]);
        let ctts = if self.shifts.is_empty() { vec![] } else { ctts };
        let stsc = atom(b"stsc", &[&words(&[0, 1, 1, n, 1])]);
        let sizes: Vec<u32> = samples.iter().take(n as usize).map(|s| s.len() as u32).collect();
        let stsz = atom(b"stsz", &[&words(&[0, 0, n]), &words(&sizes)]);
        let stco = atom(b"stco", &[&words(&[0, 1, offset])]);
        atom(b"stbl", &[&stsd, &stts, &ctts, &stsc, &stsz, &stco])
    }
}

/// A `moof` and its `mdat`.
fn fragment(samples: &[Vec<u8>]) -> Vec<u8> {
    let moof = |data_offset: u32| {
        let sizes: Vec<u32> = samples.iter().map(|s| s.len() as u32).collect();
        let tfhd = atom(b"tfhd", &[&words(&[0x02_0000, 1])]);
        let trun = atom(b"trun", &[&words(&[0x201, samples.len() as u32, data_offset]), &words(&sizes)]);
        atom(b"moof", &[&atom(b"traf", &[&tfhd, &trun])])
    };
    let data_offset = moof(0).len() as u32 + 8;
    [moof(data_offset), atom(b"mdat", &[&samples.concat()])].concat()
}
