//! `moving_shapes`: synthetic clips whose label is how its main shapes move, rendered on the fly from a seed.
//!
//! One frame does not tell the label, by construction: place (uniform on a torus), orientation (uniform) and size
//! (log-uniform, wrapping around) of each main shape have the same distribution in every frame of every class; what it looks like,
//! the background, the distractors and the noise are drawn without looking at the label. Only the change over time
//! differs. Distractors swing to and fro without getting anywhere, so that two neighbouring frames are not enough either.

mod raster;

use super::random::Purpose;
use super::{ClipSource, Draws, Frames, Split, VideoInfo};
use crate::error::{Error, Result};
use raster::{Canvas, Noise, Pose, Sprite};

/// The motions, in the order of the labels.
pub const MOTIONS: [&str; 10] = [
    "right",
    "left",
    "down",
    "up",
    "clockwise",
    "counter-clockwise",
    "grow",
    "shrink",
    "orbit clockwise",
    "orbit counter-clockwise",
];

/// Number, size and difficulty of the clips.
#[derive(Clone, Debug, PartialEq)]
pub struct MovingShapesConfig {
    /// Key of all content.
    pub seed: u64,
    /// Clips in this split.
    pub num_clips: usize,
    /// The first so many of [`MOTIONS`], 2..=10.
    pub num_classes: usize,
    /// Frames of a clip.
    pub num_frames: usize,
    /// Rows and columns.
    pub size_px: usize,
    /// Standard deviation of the noise on every byte, in grey levels.
    pub noise: f32,
    /// Shapes that move as the label says, each at a place of its own: a crop that misses one still shows the motion.
    pub shapes: usize,
    /// Shapes that do not matter.
    pub distractors: usize,
    /// Slowest and fastest motion; 1 moves by a 64th of the picture, turns by 4.5 degrees or grows by 3 % each frame.
    pub speed: (f32, f32),
    /// How far the main shape's colours are from the background, 0..=1.
    pub contrast: f32,
    /// Largest random shift of the whole picture in each frame, in pixels.
    pub shake_px: f32,
    /// Share of the clips that move as a motion drawn at random, whatever their label: like the wrong labels of real sets,
    /// they bound the accuracy by 1 - `label_noise` * (1 - 1 / `num_classes`).
    pub label_noise: f32,
}

impl Default for MovingShapesConfig {
    fn default() -> Self {
        MovingShapesConfig {
            seed: 0,
            num_clips: 4000,
            num_classes: 8,
            num_frames: 32,
            size_px: 80,
            noise: 12.0,
            shapes: 3,
            distractors: 2,
            speed: (0.5, 1.5),
            contrast: 0.6,
            shake_px: 0.5,
            label_noise: 0.0,
        }
    }
}

/// The synthetic clips as a [`ClipSource`].
pub struct MovingShapes {
    config: MovingShapesConfig,
    split: Split,
    noise: Noise,
}

impl MovingShapes {
    /// The clips of `split`; a test takes those of validation. Error: a value of `config` out of its range.
    pub fn new(config: &MovingShapesConfig, split: Split) -> Result<MovingShapes> {
        let refuse = |what: String| Err(Error::Config(format!("moving_shapes: {what}")));
        if !(2..=MOTIONS.len()).contains(&config.num_classes) {
            return refuse(format!("number of classes must be 2..={}, got {}", MOTIONS.len(), config.num_classes));
        }
        if !(16..=1024).contains(&config.size_px) || !(1..=4096).contains(&config.num_frames) {
            return refuse(format!(
                "size must be 16..=1024 px and frames 1..=4096, got {} px, {} frames",
                config.size_px, config.num_frames
            ));
        }
        let (slow, fast) = config.speed;
        if !(slow.is_finite() && fast.is_finite() && 0.0 < slow && slow <= fast) {
            return refuse(format!("speed must be 0 < slowest <= fastest, got {slow}..{fast}"));
        }
        if !(0.0..=64.0).contains(&config.noise) || !(0.0..=1.0).contains(&config.contrast) {
            return refuse(format!(
                "noise must be 0..=64 and contrast 0..=1, got {} and {}",
                config.noise, config.contrast
            ));
        }
        if !(1..=64).contains(&config.shapes) || config.distractors > 64 {
            return refuse(format!(
                "shapes must be 1..=64 and distractors at most 64, got {} and {}",
                config.shapes, config.distractors
            ));
        }
        if !(0.0..=64.0).contains(&config.shake_px) {
            return refuse(format!("shake must be 0..=64 px, got {}", config.shake_px));
        }
        if !(0.0..=1.0).contains(&config.label_noise) {
            return refuse(format!("label noise must be 0..=1, got {}", config.label_noise));
        }
        let noise = Noise::new(config.noise, &mut Draws::for_purpose(Purpose::Synthesis, config.seed, 2, 0));
        let split = if split == Split::Train { Split::Train } else { Split::Val };
        Ok(MovingShapes { config: config.clone(), split, noise })
    }

    fn draws(&self, idx: usize) -> Draws {
        Draws::for_purpose(Purpose::Synthesis, self.config.seed, self.split as u64, idx as u64)
    }

    /// What the main shapes do: the label, or with label noise any motion.
    fn motion(&self, idx: usize) -> usize {
        let mut draws = Draws::for_purpose(Purpose::Synthesis, self.config.seed, 4 + self.split as u64, idx as u64);
        if draws.unit() < f64::from(self.config.label_noise) {
            return draws.below(self.config.num_classes);
        }
        self.label(idx) as usize
    }

    fn scene(&self, idx: usize) -> Scene {
        let mut draws = self.draws(idx);
        let motion = self.motion(idx);
        let size = self.config.size_px;
        let canvas = Canvas::random(size, &mut draws);
        let mut actors = Vec::with_capacity(self.config.distractors + self.config.shapes);
        actors.extend((0..self.config.distractors).map(|_| Actor::distractor(&self.config, &mut draws)));
        actors.extend((0..self.config.shapes).map(|_| Actor::main(motion, &self.config, &mut draws)));
        Scene { canvas, actors, frame_key: draws.bits() }
    }
}

impl ClipSource for MovingShapes {
    fn len(&self) -> usize {
        self.config.num_clips
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn label(&self, idx: usize) -> u32 {
        (idx % self.config.num_classes) as u32
    }

    fn name(&self, idx: usize) -> String {
        let split = if self.split == Split::Train { "train" } else { "val" };
        format!("moving_shapes/{split}/{idx}")
    }

    fn mirror_changes_label(&self) -> bool {
        true
    }

    fn frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> Result<Frames> {
        let (frames, size) = (self.config.num_frames, self.config.size_px);
        let info = VideoInfo {
            codec: "synthetic".into(),
            decoder: "moving_shapes".into(),
            num_frames: frames,
            fps: 30.0,
            width_px: size,
            height_px: size,
        };
        let indices = choose(&info);
        let scene = self.scene(idx);
        let mut bytes = vec![0; indices.len() * size * size * 3];
        for (image, &frame) in bytes.chunks_exact_mut(size * size * 3).zip(&indices) {
            scene.render(frame, &self.config, &self.noise, image);
        }
        Ok(Frames { bytes, indices, height_px: size, width_px: size })
    }
}

/// A clip before rendering.
struct Scene {
    canvas: Canvas,
    /// Painted in this order: the main shapes last.
    actors: Vec<Actor>,
    frame_key: u64,
}

impl Scene {
    fn render(&self, frame: u32, config: &MovingShapesConfig, noise: &Noise, image: &mut [u8]) {
        let mut draws = Draws::for_purpose(Purpose::Synthesis, self.frame_key, 3, u64::from(frame));
        let shake = f64::from(config.shake_px);
        let shift = (draws.range(-shake, shake) as f32, draws.range(-shake, shake) as f32);
        self.canvas.paint(shift, image);
        for actor in &self.actors {
            let mut pose = actor.pose(frame as f32, config);
            pose.x += shift.0;
            pose.y += shift.1;
            raster::paint_sprite(&actor.sprite, &pose, config.size_px, image);
        }
        noise.add(draws.bits(), image);
    }
}

/// A shape and how it moves.
struct Actor {
    sprite: Sprite,
    start: Pose,
    course: Course,
}

enum Course {
    /// Constant speed: pixels, radians and log size per frame.
    Steady { x: f32, y: f32, angle: f32, log_size: f32 },
    /// On a circle of `radius` pixels, `turn` radians a frame, starting at `phase`.
    Orbit { radius: f32, turn: f32, phase: f32 },
    /// To and fro, a sine of `turn` radians a frame.
    Swing { x: f32, y: f32, angle: f32, turn: f32, phase: f32 },
}

/// Smallest and largest radius, as parts of the picture's side.
const RADIUS: (f32, f32) = (0.12, 0.27);

impl Actor {
    fn main(motion: usize, config: &MovingShapesConfig, draws: &mut Draws) -> Actor {
        let sprite = Sprite::random(config.contrast, draws);
        let start = random_pose(config.size_px, draws);
        let speed = draws.range(f64::from(config.speed.0), f64::from(config.speed.1)) as f32;
        let phase = draws.range(0.0, std::f64::consts::TAU) as f32;
        // In each pair of motions the second is the first one played backwards.
        let signed = if motion.is_multiple_of(2) { speed } else { -speed };
        let (step, turn) = (signed * config.size_px as f32 / 64.0, signed * 4.5f32.to_radians());
        let steady = |x, y, angle, log_size| Course::Steady { x, y, angle, log_size };
        let course = match motion / 2 {
            0 => steady(step, 0.0, 0.0, 0.0),
            1 => steady(0.0, step, 0.0, 0.0),
            2 => steady(0.0, 0.0, turn, 0.0),
            3 => steady(0.0, 0.0, 0.0, signed * 0.03),
            _ => Course::Orbit { radius: 0.15 * config.size_px as f32, turn: 1.5 * turn, phase },
        };
        Actor { sprite, start, course }
    }

    fn distractor(config: &MovingShapesConfig, draws: &mut Draws) -> Actor {
        let sprite = Sprite::random(config.contrast, draws);
        let mut start = random_pose(config.size_px, draws);
        start.radius *= 0.6;
        let reach = 0.06 * config.size_px as f64;
        let course = Course::Swing {
            x: draws.range(-reach, reach) as f32,
            y: draws.range(-reach, reach) as f32,
            angle: draws.range(-0.6, 0.6) as f32,
            turn: draws.range(0.3, 0.8) as f32,
            phase: draws.range(0.0, std::f64::consts::TAU) as f32,
        };
        Actor { sprite, start, course }
    }

    fn pose(&self, frame: f32, config: &MovingShapesConfig) -> Pose {
        let mut pose = self.start.clone();
        match self.course {
            Course::Steady { x, y, angle, log_size } => {
                pose.x += x * frame;
                pose.y += y * frame;
                pose.angle += angle * frame;
                pose.radius = wrapped_radius(pose.radius, log_size * frame, config.size_px);
            }
            Course::Orbit { radius, turn, phase } => {
                let (sin, cos) = (phase + turn * frame).sin_cos();
                pose.x += radius * cos;
                pose.y += radius * sin;
            }
            Course::Swing { x, y, angle, turn, phase } => {
                let swing = (phase + turn * frame).sin();
                pose.x += x * swing;
                pose.y += y * swing;
                pose.angle += angle * swing;
            }
        }
        pose
    }
}

fn random_pose(size_px: usize, draws: &mut Draws) -> Pose {
    let side = size_px as f64;
    let log = draws.range(f64::from(RADIUS.0.ln()), f64::from(RADIUS.1.ln()));
    Pose {
        x: draws.range(0.0, side) as f32,
        y: draws.range(0.0, side) as f32,
        angle: draws.range(0.0, std::f64::consts::TAU) as f32,
        radius: (log.exp() * side) as f32,
    }
}

/// The radius after its logarithm grew by `growth`; past one end of the range it starts again at the other, so that it
/// stays log-uniform.
fn wrapped_radius(radius: f32, growth: f32, size_px: usize) -> f32 {
    let (low, high) = (RADIUS.0.ln(), RADIUS.1.ln());
    let log = (radius / size_px as f32).ln() + growth;
    (low + (log - low).rem_euclid(high - low)).exp() * size_px as f32
}
