//! The program itself: run, watched, signalled.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How a run of the program ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; none after a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// The largest resident size that was seen from outside, in bytes; only of watched runs.
    pub peak: u64,
}

impl Ended {
    /// The same, after checking that all went well.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// The same, after checking that it failed with this code and these words.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        for words in words {
            assert!(self.stderr.contains(words), "wanted {words:?} in {self:?}");
        }
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The program in a clean environment, so that nobody's settings change what it says.
pub fn program<S: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
    command
        .args(args)
        .current_dir(dir)
        .env_clear()
        .env("HF_HUB_CACHE", "hub");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs the program in `dir` to its end.
pub fn run<S: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = S>) -> Ended {
    let output = program(dir, args).output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ended {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
        peak: 0,
    }
}

/// A running program.
pub struct Running {
    child: Child,
}

/// Starts the program in `dir`.
pub fn start<S: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = S>) -> Running {
    Running {
        child: program(dir, args).spawn().expect("the program starts"),
    }
}

impl Running {
    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; a process that has ended takes none and needs none.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Waits until `met`, and says whether that came before the program's end.
    pub fn until(&mut self, met: impl Fn() -> bool) -> bool {
        let begun = Instant::now();
        loop {
            if met() {
                return true;
            }
            if self.child.try_wait().expect("a child of ours").is_some() {
                return false;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(120),
                "it neither ends nor gets there"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the end.
    pub fn end(self) -> Ended {
        let output = self.child.wait_with_output().expect("a child of ours");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Ended {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            peak: 0,
        }
    }

    /// Waits for the end and keeps an eye on the memory: the kernel's own high-water mark of the
    /// process, read until the last millisecond.
    pub fn end_watched(mut self) -> Ended {
        let mut peak = 0;
        // The output is less than a pipe holds, so the program never waits for a reader here.
        while self.child.try_wait().expect("a child of ours").is_none() {
            peak = high_water(self.pid()).unwrap_or(0).max(peak);
            std::thread::sleep(Duration::from_millis(1));
        }
        Ended { peak, ..self.end() }
    }
}

fn high_water(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}
