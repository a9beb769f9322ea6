//! How fast a CUDA device copies, measures, combines and multiplies, beside the processor's
//! kernels; called by scripts/check/cuda.sh.
//!
//! Usage: device-speed [DEVICE]. Speeds are of the inputs' bytes; copies run from and to pinned
//! memory. The bytes and sums of both are compared, and a difference is a failure. Products of
//! matrices are those of an alignment, copies and fetching included; they are compared with exact
//! sums.

use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use comfy_table::{CellAlignment, Table, presets};
use thalweg::device::{Choice, Driver, LaneLayout, Lanes, Mix, Opened, Products, open};
use thalweg::dtype::Dtype;
use thalweg::kernel::{CHUNK, Elements, GramOptions, Kernels, Scratch, pair_count};
use thalweg::linalg::{Backend, Matrix};

/// Chunks that are worked on at once.
const CHUNKS: usize = 64;
/// Times that each measurement is taken; the best counts.
const ROUNDS: usize = 5;
/// Rows and columns of a product of matrices, terms that are added at a time, and how often.
const PRODUCT: (usize, usize, usize, usize) = (4096, 8192, 512, 8);
/// Memory of either side that products may take.
const PRODUCT_MEMORY: u64 = 2 << 30;

#[expect(clippy::print_stdout, reason = "a program that reports here")]
fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "cuda".to_owned());
    let choice = Choice::parse(&name).ok_or("usage: device-speed [cuda[:N]]")?;
    let Opened {
        driver: Some(driver),
        ..
    } = open(choice)?
    else {
        return Err("that is no device".into());
    };
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["what", "device GB/s", "one core GB/s"]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for (what, rate) in ["copy in", "copy out"].into_iter().zip(copies(&*driver)?) {
        table.add_row([what.to_owned(), format!("{rate:.1}"), "-".to_owned()]);
    }
    for (dtype, count) in [
        (Dtype::BF16, 2),
        (Dtype::BF16, 4),
        (Dtype::BF16, 16),
        (Dtype::BF16, 64),
        (Dtype::F32, 4),
    ] {
        let bytes: Vec<Vec<u8>> = (1..).take(count).map(|seed| noise(dtype, seed)).collect();
        let inputs: Vec<_> = bytes
            .iter()
            .map(|bytes| Elements { dtype, bytes })
            .collect();
        let layout = LaneLayout::new(&vec![dtype; count], dtype, CHUNKS * CHUNK);
        let lanes = Lanes::new(driver.clone(), 1, layout.bytes())?;
        let (gram, combine) = (measured(&lanes, &inputs)?, combined(&lanes, &inputs)?);
        for (what, [device, core]) in [("measure", gram), ("combine", combine)] {
            table.add_row([
                format!("{what} {count} x {dtype}"),
                format!("{device:.1}"),
                format!("{core:.1}"),
            ]);
        }
    }
    println!("{}\n{table}\n", driver.name());
    let products = || Products::new(driver.clone(), PRODUCT_MEMORY, PRODUCT_MEMORY);
    let own = Backend::on(Arc::new(products()?.with_own_kernel()));
    for (what, backend) in [
        (
            format!("products by {}", driver.multiplier()),
            Backend::on(Arc::new(products()?)),
        ),
        ("products by its own kernel".to_owned(), own),
        ("products on the processor".to_owned(), Backend::default()),
    ] {
        println!("{what:28} {:8.0} GFLOP/s", multiplied(&backend)?);
    }
    Ok(())
}

/// Billions of operations a second of the products of an alignment.
fn multiplied(backend: &Backend) -> Result<f64, Box<dyn Error>> {
    let (rows, columns, terms, times) = PRODUCT;
    let floats = |count: usize, seed: u64| -> Vec<f32> {
        let values = noise(Dtype::F32, seed);
        values
            .chunks_exact(4)
            .cycle()
            .take(count)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect()
    };
    let (left, right) = (floats(rows * terms, 1), floats(columns * terms, 2));
    let mut result = vec![0.0; rows * columns];
    let operations = 2 * rows * columns * terms * times;
    let rate = rate(operations, || {
        let mut sum = backend.begin(rows, &mut result)?;
        for _ in 0..times {
            sum.add(
                1.0,
                Matrix::new(&left, rows, terms),
                Matrix::new(&right, columns, terms).transposed(),
            )?;
        }
        Ok(sum.finish()?)
    })?;
    for (row, column) in [(0, 0), (rows - 1, columns - 1), (rows / 2 + 1, 77)] {
        let factors = left[row * terms..][..terms]
            .iter()
            .zip(&right[column * terms..][..terms]);
        let times = f64::from(u32::try_from(times)?);
        let exact = times
            * factors
                .map(|(x, y)| f64::from(*x) * f64::from(*y))
                .sum::<f64>();
        // Factors are below a half, so that the roundings of all terms are together far below this.
        if (f64::from(result[row * columns + column]) - exact).abs() > 1e-2 {
            return Err(format!(
                "entry {row}, {column}: got {}, wanted {exact}",
                result[row * columns + column]
            )
            .into());
        }
    }
    Ok(rate)
}

/// Finite elements, period free.
fn noise(dtype: Dtype, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(state >> 32).expect("32 bits")) / f64::from(u32::MAX) - 0.5
    };
    let wide: Vec<u8> = (0..CHUNKS * CHUNK)
        .flat_map(|_| next().to_le_bytes())
        .collect();
    let mut bytes = vec![0; CHUNKS * CHUNK * dtype.bytes()];
    Kernels::detect().convert(
        Elements {
            dtype: Dtype::F64,
            bytes: &wide,
        },
        dtype,
        &mut bytes,
    );
    bytes
}

/// Gigabytes a second of the best of some rounds.
fn rate(
    bytes: usize,
    mut work: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<f64, Box<dyn Error>> {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        work()?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    Ok(bytes as f64 / best / 1e9)
}

/// The speeds of copies to the device and from it.
fn copies(driver: &dyn Driver) -> Result<[f64; 2], Box<dyn Error>> {
    let bytes = 256 << 20;
    let (stream, host, memory) = (
        driver.stream()?,
        driver.pin(bytes)?,
        driver.allocate(bytes)?,
    );
    // SAFETY: both memories were just taken and are left alone until the copies are waited for.
    unsafe {
        host.as_ptr().write_bytes(1, bytes);
        let to = rate(bytes, || {
            driver.copy_in(stream, host.as_ptr(), memory, bytes)?;
            Ok(driver.wait(stream)?)
        });
        let from = rate(bytes, || {
            driver.copy_out(stream, memory, host.as_ptr(), bytes)?;
            Ok(driver.wait(stream)?)
        });
        driver.free(memory);
        driver.unpin(host);
        driver.close(stream);
        Ok([to?, from?])
    }
}

fn chunks() -> impl Iterator<Item = Range<usize>> {
    (0..CHUNKS).map(|chunk| chunk * CHUNK..(chunk + 1) * CHUNK)
}

fn total(inputs: &[Elements<'_>]) -> usize {
    inputs.iter().map(|input| input.bytes.len()).sum()
}

/// The speeds of Gram sums of what is on the device already, and of the processor's.
fn measured(lanes: &Lanes, inputs: &[Elements<'_>]) -> Result<[f64; 2], Box<dyn Error>> {
    let pairs = pair_count(inputs.len());
    let (mut got, mut wanted) = (vec![0.0; CHUNKS * pairs], vec![0.0; CHUNKS * pairs]);
    let pieces: Vec<_> = chunks().collect();
    let mut lane = lanes.take()?;
    let mut resident = lane.load(inputs, inputs[0].dtype)?;
    let device = rate(total(inputs), || {
        Ok(resident.gram(&pieces, GramOptions::default(), &mut got)?)
    })?;
    let (kernels, mut scratch) = (Kernels::detect(), Scratch::default());
    let core = rate(total(inputs), || {
        for (chunk, sums) in chunks().zip(wanted.chunks_exact_mut(pairs)) {
            let inputs: Vec<_> = inputs
                .iter()
                .map(|input| input.slice(chunk.clone()))
                .collect();
            kernels.gram(&inputs, GramOptions::default(), &mut scratch, sums);
        }
        Ok(())
    })?;
    let same = got
        .iter()
        .zip(&wanted)
        .all(|(got, wanted)| got.to_bits() == wanted.to_bits());
    if same {
        Ok([device, core])
    } else {
        Err("the device's sums are not the processor's".into())
    }
}

/// The speeds of weighted sums of what is on the device already, and of the processor's.
fn combined(lanes: &Lanes, inputs: &[Elements<'_>]) -> Result<[f64; 2], Box<dyn Error>> {
    let dtype = inputs[0].dtype;
    let (mut got, mut wanted) = (
        vec![0; inputs[0].bytes.len()],
        vec![0; inputs[0].bytes.len()],
    );
    let weights: Vec<f64> = (1..)
        .take(inputs.len())
        .map(|i| 1.0 / f64::from(i))
        .collect();
    let pieces: Vec<_> = chunks()
        .map(|chunk| (chunk, Mix::Weights(&weights, 1.0)))
        .collect();
    let mut lane = lanes.take()?;
    let mut resident = lane.load(inputs, dtype)?;
    let device = rate(total(inputs), || {
        Ok(resident.combine(&pieces, &mut got).map(drop)?)
    })?;
    let terms: Vec<_> = weights
        .iter()
        .copied()
        .zip(inputs.iter().copied())
        .collect();
    let mut scratch = Scratch::default();
    let core = rate(total(inputs), || {
        Kernels::detect().combine(&terms, 1.0, dtype, &mut scratch, &mut wanted);
        Ok(())
    })?;
    if got == wanted {
        Ok([device, core])
    } else {
        Err("the device's bytes are not the processor's".into())
    }
}
