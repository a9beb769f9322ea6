//! Trains an MLP on a data set and writes it as a checkpoint.
//!
//!     cargo run --release -p thalweg-tools --bin train-mlp -- --data tests/data/digits-train.safetensors --hidden 64,64 --seed 1 --out A
//!
//! AdamW, ReLU, cross-entropy; the same bytes for the same arguments, whatever the number of
//! threads.

#![expect(clippy::print_stdout, reason = "a program that prints how well it did")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};
use thalweg::data::DataSet;
use thalweg::kernel::Kernels;
use thalweg::net::{AdamOptions, Parameters, Training, evaluate, mlp, train};

/// Memory for evaluating, in bytes.
const MEMORY: u64 = 1 << 30;

/// Trains an MLP on a data set.
#[derive(Debug, Parser)]
struct Options {
    /// The samples to train with
    #[arg(long)]
    data: PathBuf,

    /// Samples to test with
    #[arg(long)]
    test: Option<PathBuf>,

    /// Units of each hidden layer
    #[arg(long, value_delimiter = ',', default_value = "64,64")]
    hidden: Vec<usize>,

    /// Classes
    #[arg(long, default_value_t = 10)]
    classes: usize,

    /// Times that each sample is seen
    #[arg(long, default_value_t = 80)]
    epochs: usize,

    /// Samples of a step
    #[arg(long, default_value_t = 64)]
    batch: usize,

    /// The learning rate
    #[arg(long, default_value_t = 1e-3)]
    rate: f64,

    /// The weight decay
    #[arg(long, default_value_t = 1e-2)]
    decay: f64,

    /// Of first numbers and of the order of samples
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// The folder to write
    #[arg(long)]
    out: PathBuf,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let data = DataSet::open(&options.data, Kernels::detect())?;
    let mut sizes = vec![data.shape().iter().product()];
    sizes.extend(&options.hidden);
    sizes.push(options.classes);
    let (network, mut parameters) = mlp(&sizes, options.seed);
    let adam = AdamOptions {
        rate: options.rate,
        decay: options.decay,
        ..AdamOptions::default()
    };
    let training = Training {
        epochs: options.epochs,
        batch: options.batch,
        seed: options.seed,
        adam,
    };
    train(&network, &mut parameters, &data, &training, &|| Ok(()))?;
    write(&options.out, &parameters)?;
    for (name, path) in [
        ("train", Some(&options.data)),
        ("test", options.test.as_ref()),
    ] {
        let Some(path) = path else { continue };
        let data = DataSet::open(path, Kernels::detect())?;
        let score = evaluate(&network, &parameters, &data, MEMORY, &|| Ok(()))?;
        println!(
            "{}: {name} loss {:.4}, accuracy {:.4}",
            options.out.display(),
            score.loss,
            score.accuracy
        );
    }
    Ok(())
}

fn write(folder: &Path, parameters: &Parameters) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let bytes: Vec<Vec<u8>> = parameters
        .iter()
        .map(|(_, _, tensor)| tensor.iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let mut views = Vec::new();
    for ((name, shape, _), bytes) in parameters.iter().zip(&bytes) {
        views.push((name, TensorView::new(Dtype::F32, shape.to_vec(), bytes)?));
    }
    fs::write(folder.join("model.safetensors"), serialize(views, None)?)?;
    fs::write(folder.join("config.json"), "{ \"model_type\": \"mlp\" }\n")?;
    Ok(())
}
