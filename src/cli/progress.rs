//! Progress: a bar on a terminal, a plain line every few seconds elsewhere.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::budget::format_bytes;
use crate::error::{shown, shown_name};
use crate::monitor::{Monitor, Phase};

/// Seconds between plain lines.
const LINE_SECONDS: u64 = 5;

/// The template for phases that count operations instead of bytes.
const OPERATIONS: &str =
    "{prefix} [{bar:12}] {percent:>3}% of {all} GFLOP {rate} GFLOP/s ETA {eta} {wide_msg}";

/// The template for other phases; leaves room for the name of a tensor in 80 columns.
const TEMPLATE: &str =
    "{prefix} [{bar:12}] {percent:>3}% of {total_bytes} {bytes_per_sec} ETA {eta} {wide_msg}";

/// Shows a run on standard error.
pub struct Progress {
    bar: ProgressBar,
    plain: Option<Plain>,
    memory_limit: u64,
    memory: AtomicU64,
    counts_operations: AtomicBool,
    part: Mutex<String>,
    tensor: Mutex<String>,
}

/// Returns the style of the bar of a phase.
fn style(phase: Phase) -> ProgressStyle {
    let template = if phase == Phase::Aligning {
        OPERATIONS
    } else {
        TEMPLATE
    };
    let style = ProgressStyle::with_template(template)
        .expect("the template is a constant")
        .progress_chars("=> ");
    // Writing to the bar's own line cannot fail.
    style
        .with_key("all", |state: &ProgressState, line: &mut dyn fmt::Write| {
            let _ = line.write_str(&giga(state.len().unwrap_or(0)));
        })
        .with_key(
            "rate",
            |state: &ProgressState, line: &mut dyn fmt::Write| {
                let _ = write!(line, "{:.1}", state.per_sec() / 1e9);
            },
        )
}

/// Billions, for people.
fn giga(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
    let billions = count as f64 / 1e9;
    if billions < 10.0 {
        format!("{billions:.2}")
    } else {
        format!("{billions:.0}")
    }
}

struct Plain {
    /// The start of the phase.
    begun: Mutex<Instant>,
    last: Mutex<Instant>,
}

impl Progress {
    /// A display for a run whose budget is `memory_limit` bytes.
    pub fn new(memory_limit: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            None,
            if terminal {
                ProgressDrawTarget::stderr_with_hz(8)
            } else {
                ProgressDrawTarget::hidden()
            },
        );
        bar.set_style(style(Phase::Merging));
        let now = Instant::now();
        let plain = (!terminal).then(|| Plain {
            begun: Mutex::new(now),
            last: Mutex::new(now),
        });
        Self {
            bar,
            plain,
            memory_limit,
            memory: AtomicU64::new(0),
            counts_operations: AtomicBool::new(false),
            part: Mutex::default(),
            tensor: Mutex::default(),
        }
    }

    /// Removes the bar, so that the next print is not mixed with it.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn message(&self) -> String {
        let tensor = self.tensor.lock().unwrap_or_else(PoisonError::into_inner);
        let used = format_bytes(self.memory.load(Ordering::Relaxed));
        let part = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        let separate = if part.is_empty() || tensor.is_empty() {
            ""
        } else {
            ", "
        };
        // A narrow terminal cuts off the end, so the least important part comes last.
        format!(
            "{part}{separate}{tensor} [{used} of {}]",
            format_bytes(self.memory_limit)
        )
    }

    fn line(&self, plain: &Plain) {
        let mut last = plain.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < Duration::from_secs(LINE_SECONDS) {
            return;
        }
        *last = Instant::now();
        let begun = *plain.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
        let rate = done as f64 / begun.elapsed().as_secs_f64().max(1e-3);
        let (done_text, total_text, unit) = if self.counts_operations.load(Ordering::Relaxed) {
            (giga(done), format!("{} GFLOP", giga(total)), "GFLOP/s")
        } else {
            (format_bytes(done), format_bytes(total), "GB/s")
        };
        self.print(&format!(
            "{} {done_text} of {total_text} ({}%), {:.2} {unit}, {}",
            self.bar.prefix(),
            u128::from(done)
                .saturating_mul(100)
                .checked_div(total.into())
                .unwrap_or(100),
            rate / 1e9,
            self.message()
        ));
    }

    /// Shows the message once a phase has begun; before, there is no bar to show it in.
    fn show(&self) {
        if self.bar.length().is_some() {
            self.bar.set_message(self.message());
        }
    }

    fn print(&self, line: &str) {
        // A closed pipe must not end a merge.
        let _ = self.bar.suspend(|| writeln!(std::io::stderr(), "{line}"));
    }
}

impl Monitor for Progress {
    fn phase(&self, phase: Phase, bytes: u64) {
        self.counts_operations
            .store(phase == Phase::Aligning, Ordering::Relaxed);
        self.bar.set_style(style(phase));
        self.bar.reset();
        if let Some(plain) = &self.plain {
            *plain.begun.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        self.bar.set_length(bytes);
        self.bar.set_prefix(phase.to_string());
        self.tensor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.bar.set_message(self.message());
        // Drawn at once, since the first step of a phase may take long.
        self.bar.tick();
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        if let Some(plain) = &self.plain {
            self.line(plain);
        }
    }

    fn part(&self, name: &str) {
        *self.part.lock().unwrap_or_else(PoisonError::into_inner) = shown_name(name);
    }

    fn tensor(&self, name: &str) {
        *self.tensor.lock().unwrap_or_else(PoisonError::into_inner) = shown_name(name);
        self.show();
    }

    fn memory(&self, used: u64) {
        self.memory.store(used, Ordering::Relaxed);
        self.show();
    }

    fn warn(&self, warning: &str) {
        self.print(&format!("thalweg: warning: {}", shown(warning)));
    }
}
