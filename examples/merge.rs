//! Merges what a recipe describes, with progress: `cargo run --release --example merge --
//! recipe.yml merged`.
//!
//! Without arguments it makes two tiny models and merges them into a temporary folder.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program says what it does"
)]

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thalweg::{Monitor, Options, Phase, Plan, Recipe, Target, merge, verify};

include!("support/mod.rs");

/// Prints what begins, and a dot for every gigabyte that passes.
#[derive(Default)]
struct Dots {
    bytes: AtomicU64,
}

impl Monitor for Dots {
    fn phase(&self, phase: Phase, total: u64) {
        println!("{phase:?}: {total} bytes");
    }

    fn advance(&self, bytes: u64) {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before >> 30 != (before + bytes) >> 30 {
            print!(".");
        }
    }

    fn warn(&self, message: &str) {
        eprintln!("warning: {message}");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let folder = models()?;
    let (recipe, out) = match arguments.as_slice() {
        [file, out] => (Recipe::read(file)?, out.clone()),
        [] => (
            Recipe::parse(&recipe(folder.path()), "example.yml")?,
            folder.path().join("merged"),
        ),
        _ => return Err("wanted a recipe and an output folder".into()),
    };
    let plan = Plan::of(&recipe)?;
    let options = Options {
        monitor: Arc::new(Dots::default()),
        ..Options::default()
    };
    let report = merge(plan, Target::new(&out), options)?;
    println!("{report}");
    let verified = verify(&out, &mut |_, _| Ok(()))?;
    println!(
        "read back: {} tensors, {} bytes",
        verified.tensors, verified.data_bytes
    );
    Ok(())
}
