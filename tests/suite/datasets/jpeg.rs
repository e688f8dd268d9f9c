//! A JPEG encoder for test pictures: 8x8 blocks of one colour each, which decode to the byte.

/// A baseline JPEG of `width` x `height` pixels; `colour` gives (Y, Cb, Cr) of the block in a column and a row.
pub fn jpeg(width: usize, height: usize, colour: impl Fn(usize, usize) -> [u8; 3]) -> Vec<u8> {
    let mut file = vec![0xFF, 0xD8];
    let mut segment = |marker: u8, body: &[u8]| {
        file.extend([0xFF, marker]);
        file.extend((body.len() as u16 + 2).to_be_bytes());
        file.extend(body);
    };
    // Quantisation by 1.
    segment(0xDB, &[&[0][..], &[1; 64]].concat());
    let (h, w) = ((height as u16).to_be_bytes(), (width as u16).to_be_bytes());
    segment(0xC0, &[8, h[0], h[1], w[0], w[1], 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0]);
    // DC: 12 sizes of differences, 4 bits each. AC: the end of the block alone, 1 bit.
    let dc_lengths = [0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    segment(0xC4, &[&[0x00][..], &dc_lengths, &(0..12).collect::<Vec<u8>>()].concat());
    segment(0xC4, &[&[0x10, 1][..], &[0; 15], &[0]].concat());
    segment(0xDA, &[3, 1, 0, 2, 0, 3, 0, 0, 63, 0]);
    let mut bits = Bits::default();
    let mut before = [0i32; 3];
    for row in 0..height.div_ceil(8) {
        for column in 0..width.div_ceil(8) {
            for (value, before) in colour(column, row).into_iter().zip(&mut before) {
                let dc = 8 * (i32::from(value) - 128);
                let difference = dc - *before;
                let size = 32 - difference.unsigned_abs().leading_zeros();
                bits.push(size, 4);
                let code = if difference < 0 { difference + (1 << size) - 1 } else { difference };
                bits.push(code as u32, size);
                bits.push(0, 1);
                *before = dc;
            }
        }
    }
    file.extend(bits.finish());
    file.extend([0xFF, 0xD9]);
    file
}

/// The same in one grey.
pub fn grey(width: usize, height: usize, light: u8) -> Vec<u8> {
    jpeg(width, height, |_, _| [light, 128, 128])
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    byte: u8,
    used: u32,
}

impl Bits {
    fn push(&mut self, value: u32, count: u32) {
        for k in (0..count).rev() {
            self.byte = self.byte << 1 | (value >> k & 1) as u8;
            self.used += 1;
            if self.used.is_multiple_of(8) {
                self.bytes.push(self.byte);
                if self.byte == 0xFF {
                    self.bytes.push(0);
                }
            }
        }
    }

    fn finish(mut self) -> Vec<u8> {
        while !self.used.is_multiple_of(8) {
            self.push(1, 1);
        }
        self.bytes
    }
}
