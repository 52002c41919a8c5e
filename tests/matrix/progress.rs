//! How far the whole is: a bar on a terminal, else a line from time to time.
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::cell::Part;

/// From one line to the next.
const PAUSE: Duration = Duration::from_secs(30);

/// How far a part is.
pub struct Progress {
    bar: ProgressBar,
    part: Part,
    begun: Instant,
    said: Instant,
}

impl Progress {
    pub fn new(part: Part, cells: u64) -> Self {
        let style = "{prefix}{bar:40} {pos}/{len} cells, {msg}, {elapsed} gone, {eta} left";
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(cells).with_style(style);
        if part != Part::WHOLE {
            bar.set_prefix(format!("part {part} "));
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar, part, begun: Instant::now(), said: Instant::now() }
    }

    /// Says what must not be lost.
    pub fn say(&self, what: &str) {
        self.bar.suspend(|| eprintln!("{what}\n"));
    }

    /// Another cell is done; so many have failed so far.
    pub fn one_more(&mut self, failed: u64) {
        self.bar.inc(1);
        self.bar.set_message(format!("{failed} failed"));
        if self.bar.is_hidden() && self.said.elapsed() > PAUSE {
            self.said = Instant::now();
            let (done, all) = (self.bar.position(), self.bar.length().unwrap_or_default());
            let gone = self.begun.elapsed().as_secs_f64();
            let left = gone / done as f64 * all.saturating_sub(done) as f64;
            eprintln!(
                "part {}: {done} of {all} cells, {failed} failed, {gone:.0} s gone, about {left:.0} s left",
                self.part
            );
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
