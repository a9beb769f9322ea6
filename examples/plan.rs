//! Says what a merge would read, write and hold in memory, without reading a weight:
//! `cargo run --release --example plan -- recipe.yml`.
//!
//! Without an argument it plans a merge of two tiny models that it makes.

#![expect(clippy::print_stdout, reason = "a program says what it does")]

use std::error::Error;
use std::path::PathBuf;

use thalweg::{Plan, Recipe};

include!("support/mod.rs");

fn main() -> Result<(), Box<dyn Error>> {
    let folder = models()?;
    let recipe = match std::env::args_os().nth(1) {
        Some(file) => Recipe::read(&PathBuf::from(file))?,
        None => Recipe::parse(&recipe(folder.path()), "example.yml")?,
    };
    let plan = Plan::of(&recipe)?;
    for shard in plan.layout.shards() {
        println!("{}: {} bytes", shard.name, shard.len);
        for &number in &shard.tensors {
            let tensor = &plan.tensors[number];
            println!(
                "  {} {:?} {}, of {} inputs",
                tensor.name,
                tensor.shape,
                tensor.dtype,
                tensor.sources.len()
            );
        }
    }
    println!(
        "reads {} bytes, in at most {} bytes of memory",
        plan.source_bytes(),
        plan.memory.limit
    );
    for note in plan.notes().iter().chain(&plan.warnings) {
        println!("{note}");
    }
    Ok(())
}
