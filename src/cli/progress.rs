//! Progress: a bar on a terminal, a plain line every few seconds elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::budget::format_bytes;
use crate::monitor::{Monitor, Phase};

/// Seconds between plain lines.
const LINE_SECONDS: u64 = 5;

const TEMPLATE: &str = "{prefix:>8} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} ETA {eta} {wide_msg}";

/// Shows a run on standard error.
pub struct Progress {
    bar: ProgressBar,
    plain: Option<Plain>,
    memory_limit: u64,
    memory: AtomicU64,
    tensor: Mutex<String>,
}

struct Plain {
    begun: Instant,
    last: Mutex<Instant>,
}

impl Progress {
    /// A display for a run whose budget is `memory_limit` bytes.
    pub fn new(memory_limit: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            None,
            if terminal { ProgressDrawTarget::stderr_with_hz(8) } else { ProgressDrawTarget::hidden() },
        );
        bar.set_style(
            ProgressStyle::with_template(TEMPLATE).expect("the template is a constant").progress_chars("=> "),
        );
        let now = Instant::now();
        let plain = (!terminal).then(|| Plain { begun: now, last: Mutex::new(now) });
        Self { bar, plain, memory_limit, memory: AtomicU64::new(0), tensor: Mutex::default() }
    }

    /// Takes the bar away, so that what is printed next stands alone.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn message(&self) -> String {
        let tensor = self.tensor.lock().unwrap_or_else(PoisonError::into_inner);
        let used = format_bytes(self.memory.load(Ordering::Relaxed));
        format!("[{used} of {}] {tensor}", format_bytes(self.memory_limit))
    }

    fn line(&self, plain: &Plain) {
        let mut last = plain.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < Duration::from_secs(LINE_SECONDS) {
            return;
        }
        *last = Instant::now();
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
        let rate = done as f64 / plain.begun.elapsed().as_secs_f64().max(1e-3);
        self.print(&format!(
            "{} {} of {} ({}%), {:.2} GB/s, {}",
            self.bar.prefix(),
            format_bytes(done),
            format_bytes(total),
            (done * 100).checked_div(total).unwrap_or(100),
            rate / 1e9,
            self.message()
        ));
    }

    fn print(&self, line: &str) {
        // A closed pipe is no reason to end a merge.
        let _ = self.bar.suspend(|| writeln!(std::io::stderr(), "{line}"));
    }
}

impl Monitor for Progress {
    fn phase(&self, phase: Phase, bytes: u64) {
        self.bar.reset();
        self.bar.set_length(bytes);
        self.bar.set_prefix(phase.to_string());
        self.tensor.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.bar.set_message(self.message());
        // Drawn at once: a phase may take long before its first step.
        self.bar.tick();
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        if let Some(plain) = &self.plain {
            self.line(plain);
        }
    }

    fn tensor(&self, name: &str) {
        *self.tensor.lock().unwrap_or_else(PoisonError::into_inner) = name.escape_debug().to_string();
        self.bar.set_message(self.message());
    }

    fn memory(&self, used: u64) {
        self.memory.store(used, Ordering::Relaxed);
        self.bar.set_message(self.message());
    }

    fn warn(&self, warning: &str) {
        self.print(&format!("thalweg: warning: {warning}"));
    }
}
