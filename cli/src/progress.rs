//! A progress bar for runs that take longer than a second. The examples take this file too.
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long a run is silent.
const SILENCE: Duration = Duration::from_secs(1);

/// The bar. It is drawn on stderr, where that is a terminal, from one second after the start.
pub struct Progress {
    bar: ProgressBar,
    /// Dropped to end `timer`; both are there until the drop.
    stop: Option<Sender<()>>,
    timer: Option<JoinHandle<()>>,
}

impl Progress {
    /// A bar that waits to be seen.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{elapsed:>4} [{bar:30}] {percent:>3}% {msg}") {
            bar.set_style(style);
        }
        let (stop, stopped) = channel();
        // A timer and not a look at the clock in `rows`: the longest step, a simulated dispatch, reports nothing meanwhile.
        let shown = bar.clone();
        let timer = Builder::new().spawn(move || {
            if stopped.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout) {
                shown.set_draw_target(ProgressDrawTarget::stderr());
                shown.enable_steady_tick(Duration::from_millis(200));
            }
        });
        // Without a thread for it there is no bar.
        Self { bar, stop: Some(stop), timer: timer.ok() }
    }

    /// Sets how many rows, or whatever is counted, the whole run will go through.
    pub fn expect(&self, rows: usize) {
        self.bar.set_length(rows as u64);
    }

    /// Says what is being done.
    pub fn step(&self, what: &'static str) {
        self.bar.set_message(what);
    }

    /// Counts rows as done.
    pub fn rows(&self, rows: usize) {
        self.bar.inc(rows as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(timer) = self.timer.take() {
            // The timer cannot fail, and a bar that is not there is no reason to.
            let _ = timer.join();
        }
        self.bar.finish_and_clear();
    }
}
