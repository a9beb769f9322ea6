//! Makes Llama-shaped Hugging Face folders full of seeded noise: test data of any size at the speed
//! of the disk.
//!
//! ```text
//! cargo run --release -p thalweg-tools --bin make-checkpoint -- --out target/base --shape llama-1b --seed 1
//! cargo run --release -p thalweg-tools --bin make-checkpoint -- --out target/tuned --shape llama-1b --base-seed 1 --seed 7 --models 3
//! ```
//!
//! The second line makes three fine-tunes of the first line's model: the same tensors plus a little
//! noise each. Equal arguments give equal bytes. The file format code here is its own, so that it
//! also checks the library's reader.

mod noise;
mod options;
mod shape;
mod shards;
mod side_files;

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use crate::noise::Content;
use crate::options::Options;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to tell when even this line cannot be written.
            let _ = writeln!(io::stderr(), "make-checkpoint: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Outcome<()> {
    let shape = options.shape()?;
    let tensors = shape.tensors(options.dtype);
    for number in 0..options.models {
        let seed = options.seed.wrapping_add(number);
        let folder = match options.models {
            1 => options.out.clone(),
            _ => options.out.join(format!("model-{}", number + 1)),
        };
        let started = Instant::now();
        create_empty(&folder)?;
        let content = Content::new(seed, options.base_seed.map(|base| (base, options.noise)));
        let bytes = shards::write(&folder, &tensors, options.shard_size, &content)?;
        side_files::write(&folder, &shape, options.dtype)?;
        let seconds = started.elapsed().as_secs_f64();
        let (amount, unit) = if bytes < 1_000_000_000 {
            (bytes as f64 / 1e6, "MB")
        } else {
            (bytes as f64 / 1e9, "GB")
        };
        writeln!(
            io::stdout(),
            "{}: {} layers, {} tensors, {amount:.2} {unit} in {seconds:.1} s ({:.2} GB/s)",
            folder.display(),
            shape.layers,
            tensors.len(),
            bytes as f64 / 1e9 / seconds,
        )?;
    }
    Ok(())
}

/// Refuses a folder that holds something: shards of two models in one folder would look like one
/// model.
fn create_empty(folder: &Path) -> Outcome<()> {
    let named = |error: io::Error| format!("cannot create {}: {error}", folder.display());
    fs::create_dir_all(folder).map_err(named)?;
    if fs::read_dir(folder).map_err(named)?.next().is_some() {
        return Err(format!(
            "cannot create {}: the folder is not empty",
            folder.display()
        )
        .into());
    }
    Ok(())
}
