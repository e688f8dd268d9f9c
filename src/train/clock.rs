//! Time of a run: the wall's and the processors', carried over a resume.

use std::time::Instant;

/// Clock ticks a second in `/proc/self/stat`: 100 in Linux's interface to programs on all of its platforms.
const TICKS_PER_S: f64 = 100.0;

/// Measures a run that may have been resumed.
#[derive(Clone, Debug)]
pub struct Clock {
    start: Instant,
    cpu_start_s: f64,
    wall_before_s: f64,
    cpu_before_s: f64,
}

impl Clock {
    /// A running clock that already shows `wall_s` and `cpu_s`.
    pub fn resumed(wall_s: f64, cpu_s: f64) -> Clock {
        Clock { start: Instant::now(), cpu_start_s: process_cpu_s(), wall_before_s: wall_s, cpu_before_s: cpu_s }
    }

    /// Seconds of the run.
    pub fn wall_s(&self) -> f64 {
        self.wall_before_s + self.start.elapsed().as_secs_f64()
    }

    /// Processor seconds of the run.
    pub fn cpu_s(&self) -> f64 {
        self.cpu_before_s + process_cpu_s() - self.cpu_start_s
    }
}

/// User and system seconds of this process and its finished children; 0 where the system does not tell.
pub fn process_cpu_s() -> f64 {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return 0.0 };
    // The second field is the program's name in parentheses and may hold spaces; utime, stime, cutime and cstime are
    // fields 14 to 17, the 12th to 15th after it.
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0.0 };
    fields.split_whitespace().skip(11).take(4).filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_S
}
