//! Painting of synthetic frames: uint8 RGB `[row][column][3]`, square, the picture a torus.

use crate::clip::Draws;

/// Where a shape is: centre and radius in pixels, angle in radians (positive turns clockwise on the screen).
#[derive(Clone, Debug)]
pub(super) struct Pose {
    pub x: f32,
    pub y: f32,
    pub angle: f32,
    pub radius: f32,
}

/// What a shape looks like.
pub(super) struct Sprite {
    outline: Outline,
    /// Colours of the stripes, and of the half that marks its head.
    colours: [[f32; 3]; 3],
    stripes: f32,
}

#[derive(Clone, Copy)]
enum Outline {
    Disc,
    Square,
    Triangle,
    Bar,
    Cross,
}

impl Sprite {
    pub fn random(contrast: f32, draws: &mut Draws) -> Sprite {
        let outlines = [Outline::Disc, Outline::Square, Outline::Triangle, Outline::Bar, Outline::Cross];
        let outline = outlines[draws.below(outlines.len())];
        let mut colour = || {
            // Around mid grey, where backgrounds are.
            [0; 3].map(|_| 128.0 + 127.0 * contrast * draws.range(-1.0, 1.0) as f32)
        };
        let colours = [colour(), colour(), colour()];
        Sprite { outline, colours, stripes: draws.range(1.0, 2.5) as f32 }
    }

    /// Colour at (x, y) of the shape's own unit circle.
    fn colour(&self, x: f32, y: f32) -> [f32; 3] {
        if x > 0.45 {
            return self.colours[2];
        }
        self.colours[usize::from((y * self.stripes).rem_euclid(1.0) > 0.5)]
    }
}

impl Outline {
    /// Signed distance to the edge in units of the radius, negative inside (a bound where the shape is concave).
    fn distance(self, x: f32, y: f32) -> f32 {
        match self {
            Outline::Disc => (x * x + y * y).sqrt() - 0.9,
            Outline::Square => x.abs().max(y.abs()) - 0.7,
            Outline::Triangle => (-x).max(0.5 * x + 0.866 * y.abs()) - 0.5,
            Outline::Bar => (x.abs() - 1.0).max(y.abs() - 0.45),
            Outline::Cross => {
                let bar = |a: f32, b: f32| (a.abs() - 0.95).max(b.abs() - 0.3);
                bar(x, y).min(bar(y, x))
            }
        }
    }
}

/// Blends a shape into `image`, with its edge softened over a pixel.
pub(super) fn paint_sprite(sprite: &Sprite, pose: &Pose, size_px: usize, image: &mut [u8]) {
    let side = size_px as i64;
    let (sin, cos) = pose.angle.sin_cos();
    let reach = pose.radius + 1.0;
    let first = |centre: f32| (centre - reach).floor() as i64;
    let last = |centre: f32| (centre + reach).ceil() as i64;
    for row in first(pose.y)..=last(pose.y) {
        let line = row.rem_euclid(side) * side;
        let dy = (row as f32 - pose.y) / pose.radius;
        for column in first(pose.x)..=last(pose.x) {
            let dx = (column as f32 - pose.x) / pose.radius;
            let (x, y) = (cos * dx + sin * dy, cos * dy - sin * dx);
            let cover = (0.5 - sprite.outline.distance(x, y) * pose.radius).clamp(0.0, 1.0);
            if cover > 0.0 {
                let at = (line + column.rem_euclid(side)) as usize * 3;
                for (byte, colour) in image[at..at + 3].iter_mut().zip(sprite.colour(x, y)) {
                    *byte = (f32::from(*byte) * (1.0 - cover) + colour * cover + 0.5) as u8;
                }
            }
        }
    }
}

/// A smooth random background, painted once.
pub(super) struct Canvas {
    size_px: usize,
    image: Vec<u8>,
}

/// Knots of the background's coarse grid along a side.
const KNOTS: usize = 6;

impl Canvas {
    pub fn random(size_px: usize, draws: &mut Draws) -> Canvas {
        let mut knots = [[[0f32; 3]; KNOTS]; KNOTS];
        let base = [0; 3].map(|_| draws.range(88.0, 168.0) as f32);
        for knot in knots.iter_mut().flatten() {
            let grey = draws.range(-36.0, 36.0) as f32;
            *knot = base.map(|b| b + grey + draws.range(-14.0, 14.0) as f32);
        }
        // Position of a pixel between the knots, the same along both axes: (knot, next knot, weight of the next).
        let places: Vec<(usize, usize, f32)> = (0..size_px)
            .map(|i| {
                let at = i as f32 * KNOTS as f32 / size_px as f32;
                let knot = (at as usize).min(KNOTS - 1);
                (knot, (knot + 1) % KNOTS, at - knot as f32)
            })
            .collect();
        let mut image = Vec::with_capacity(size_px * size_px * 3);
        for &(y0, y1, wy) in &places {
            let line: [[f32; 3]; KNOTS] = std::array::from_fn(|k| {
                std::array::from_fn(|c| knots[y0][k][c] + wy * (knots[y1][k][c] - knots[y0][k][c]))
            });
            for &(x0, x1, wx) in &places {
                image.extend((0..3).map(|c| (line[x0][c] + wx * (line[x1][c] - line[x0][c]) + 0.5) as u8));
            }
        }
        Canvas { size_px, image }
    }

    /// Copies the background, shifted by whole pixels around the torus.
    pub fn paint(&self, shift: (f32, f32), image: &mut [u8]) {
        let (side, line) = (self.size_px as i64, self.size_px * 3);
        let wrap = |s: f32| (s.round() as i64).rem_euclid(side) as usize;
        let (dx, dy) = (wrap(shift.0), wrap(shift.1));
        for (row, out) in image.chunks_exact_mut(line).enumerate() {
            let from = (row + self.size_px - dy) % self.size_px * line;
            let source = &self.image[from..from + line];
            out[dx * 3..].copy_from_slice(&source[..line - dx * 3]);
            out[..dx * 3].copy_from_slice(&source[line - dx * 3..]);
        }
    }
}

/// Normal noise from a table that frames read from random places.
pub(super) struct Noise(Vec<i16>);

const NOISE_LEN: usize = 1 << 16;

impl Noise {
    pub fn new(std: f32, draws: &mut Draws) -> Noise {
        let normal = |draws: &mut Draws| {
            // Box-Muller.
            let radius = (-2.0 * (1.0 - draws.unit()).ln()).sqrt();
            radius * (std::f64::consts::TAU * draws.unit()).cos()
        };
        let values = (0..NOISE_LEN).map(|_| (f64::from(std) * normal(draws)).round() as i16);
        Noise(if std > 0.0 { values.collect() } else { vec![] })
    }

    pub fn add(&self, key: u64, image: &mut [u8]) {
        if self.0.is_empty() {
            return;
        }
        let mut key = key;
        for part in image.chunks_mut(4096) {
            // A place of its own for each part: a multiplicative generator is random enough for noise.
            key = key.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            let start = (key >> 40) as usize % (NOISE_LEN - 4096);
            for (byte, noise) in part.iter_mut().zip(&self.0[start..start + 4096]) {
                *byte = (i16::from(*byte) + noise).clamp(0, 255) as u8;
            }
        }
    }
}
