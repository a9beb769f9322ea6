//! Weight matching on layers of the size of an 8B Llama: a transform is planted in a copy with
//! noise, and recovered.
//!
//!     cargo run --release -p thalweg-tools --bin planted-recovery -- FOLDER [--layers 2] [--noise 1] [--memory-mib 2048] [--same]
//!                                                       [--width 4096] [--units 14336] [--heads 32] [--kv 8]
//!
//! Both models are written to FOLDER as bf16 checkpoints and read from there. Planted are orders
//! and signs of all groups but the residual stream; with `--same` nothing is planted, as in
//! fine-tunes of one model.

#![expect(
    clippy::print_stdout,
    reason = "a program that prints what it measured"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use half::bf16;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use thalweg::align::matching::{MatchOptions, Start, Watch, match_weights};
use thalweg::align::{Store, Transformed, Weights};
use thalweg::checkpoint::{Checkpoint, SourceOptions};
use thalweg::kernel::Kernels;
use thalweg::linalg::{Matrix, add_product};
use thalweg::symmetry::{Alignment, Element, Symmetries, Transform};

type Done = Result<(), Box<dyn Error>>;

#[derive(Debug)]
struct Arguments {
    folder: PathBuf,
    numbers: BTreeMap<String, f64>,
    same: bool,
}

impl Arguments {
    fn read() -> Result<Self, Box<dyn Error>> {
        let mut arguments = std::env::args().skip(1);
        let folder = arguments.next().ok_or("which folder?")?.into();
        let mut read = Self {
            folder,
            numbers: BTreeMap::new(),
            same: false,
        };
        while let Some(name) = arguments.next() {
            if name == "--same" {
                read.same = true;
            } else {
                let number = arguments
                    .next()
                    .ok_or_else(|| format!("{name} takes a number"))?;
                read.numbers
                    .insert(name.trim_start_matches('-').to_owned(), number.parse()?);
            }
        }
        Ok(read)
    }

    fn number(&self, name: &str, default: f64) -> f64 {
        self.numbers.get(name).copied().unwrap_or(default)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sizes are whole and small"
    )]
    fn size(&self, name: &str, default: usize) -> usize {
        self.number(name, default as f64) as usize
    }

    /// The tensors of a Llama of these sizes.
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (width, units) = (self.size("width", 4096), self.size("units", 14336));
        let key = width / self.size("heads", 32) * self.size("kv", 8);
        let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![512, width])];
        for layer in 0..self.size("layers", 2) {
            let tensors = [
                ("input_layernorm", vec![width]),
                ("self_attn.q_proj", vec![width, width]),
                ("self_attn.k_proj", vec![key, width]),
                ("self_attn.v_proj", vec![key, width]),
                ("self_attn.o_proj", vec![width, width]),
                ("post_attention_layernorm", vec![width]),
                ("mlp.gate_proj", vec![units, width]),
                ("mlp.up_proj", vec![units, width]),
                ("mlp.down_proj", vec![width, units]),
            ];
            shapes.extend(
                tensors.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)),
            );
        }
        shapes.push(("model.norm.weight".to_owned(), vec![width]));
        shapes
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true,
            "hidden_size": self.size("width", 4096), "intermediate_size": self.size("units", 14336),
            "num_attention_heads": self.size("heads", 32), "num_key_value_heads": self.size("kv", 8),
            "num_hidden_layers": self.size("layers", 2), "vocab_size": 512,
        })
    }
}

/// Element `at` of a stream of bell-shaped numbers of deviation one: Steele, Lea, Flood, "Fast
/// splittable pseudorandom number generators", 2014, with four uniform numbers a draw.
fn bell(stream: u64, at: u64) -> f32 {
    let mut mixed = stream
        .wrapping_mul(0xd134_2543_de82_ef95)
        .wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    let part = |shift: u32| {
        f32::from(u16::try_from(mixed >> shift & 0xffff).expect("sixteen bits")) / 32768.0 - 1.0
    };
    (part(0) + part(16) + part(32) + part(48)) * 0.866
}

/// Writes a checkpoint whose tensors `fill` makes.
fn write(
    arguments: &Arguments,
    folder: &Path,
    fill: impl Fn(u64, &str, &mut [f32]) -> Done,
) -> Done {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), arguments.config().to_string())?;
    let mut tensors = Vec::new();
    for (stream, (name, shape)) in (1_u64..).zip(arguments.shapes()) {
        let mut values = vec![0.0; shape.iter().product()];
        fill(stream, &name, &mut values)?;
        let bytes: Vec<u8> = values
            .par_iter()
            .flat_map_iter(|value| bf16::from_f32(*value).to_le_bytes())
            .collect();
        tensors.push((name, shape, bytes));
    }
    let mut views = Vec::new();
    for (name, shape, bytes) in &tensors {
        views.push((
            name.clone(),
            TensorView::new(Dtype::BF16, shape.clone(), bytes)?,
        ));
    }
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    Ok(safetensors::serialize_to_file(
        views,
        metadata,
        &folder.join("model.safetensors"),
    )?)
}

fn reference(stream: u64, name: &str, values: &mut [f32]) -> Done {
    let (mean, scale) = if name.contains("norm") {
        (1.0, 0.1)
    } else {
        (0.0, 0.02)
    };
    values
        .par_iter_mut()
        .enumerate()
        .for_each(|(at, value)| *value = mean + scale * bell(stream, at as u64));
    Ok(())
}

/// Orders and signs of all groups but the residual stream.
fn plant(symmetries: &Symmetries, same: bool) -> thalweg::Result<Transform> {
    let random = Transform::random(symmetries, 7);
    let element =
        |(group, element): (&thalweg::symmetry::Group, &Element)| match same || group.residual {
            true => Element::default(),
            false => Element {
                angle: Vec::new(),
                ..element.clone()
            },
        };
    Transform::new(
        symmetries,
        symmetries
            .groups
            .iter()
            .zip(random.elements())
            .map(element)
            .collect(),
    )
}

fn store(folder: &Path) -> thalweg::Result<Arc<Store>> {
    Ok(Arc::new(Store::open(
        &Checkpoint::open(folder)?,
        &SourceOptions::default(),
        Kernels::detect(),
    )?))
}

/// Seconds that this process has spent on all cores, where the system tells: on a busy machine they
/// say more than time.
fn spent() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(11)
        .take(2);
    fields
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

/// Operations per second, and per second of one core, of one product that fits the memory well.
fn plain_speed() -> [f64; 2] {
    let size = 4096;
    let factor: Vec<f32> = (0..).take(size * size).map(|at| bell(99, at)).collect();
    let mut result = vec![0.0; size * size];
    let (begun, before) = (Instant::now(), spent());
    for _ in 0..2 {
        let (left, right) = (
            Matrix::new(&factor, size, size),
            Matrix::new(&factor, size, size).transposed(),
        );
        add_product(left, right, &mut result);
    }
    [begun.elapsed().as_secs_f64(), spent() - before]
        .map(|seconds| 4.0 * (size as f64).powi(3) / seconds)
}

#[derive(Default)]
struct Count(AtomicU64);

impl Watch for Count {
    fn advanced(&self, operations: u64) {
        self.0.fetch_add(operations, Ordering::Relaxed);
    }
}

/// The most memory held since the last reset, in MB, where the system tells.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| {
        line.strip_prefix("VmHWM:")?
            .trim()
            .strip_suffix(" kB")?
            .parse()
            .ok()
    });
    kib.map(|kib: f64| kib * 1.024e-3)
}

/// Units in their places, by kind of group.
fn recovered(symmetries: &Symmetries, both: &Transform) -> BTreeMap<String, (usize, usize)> {
    let mut kinds = BTreeMap::new();
    for (group, element) in symmetries
        .groups
        .iter()
        .zip(both.elements())
        .filter(|(group, _)| !group.residual)
    {
        let right = |copy: usize, unit: usize| {
            let sign = group.place_in_pairs(unit).map_or(unit, |(pair, _)| pair);
            element.unit(group, copy, unit) == unit && !element.is_negative(group, copy, sign)
        };
        let (found, all) = kinds.entry(group.key.clone()).or_insert((0, 0));
        *all += group.copies * group.units;
        *found += (0..group.copies)
            .map(|copy| (0..group.units).filter(|at| right(copy, *at)).count())
            .sum::<usize>();
    }
    kinds
}

fn main() -> Done {
    let arguments = Arguments::read()?;
    let [one, other] = ["reference", "moving"].map(|name| arguments.folder.join(name));
    write(&arguments, &one, reference)?;
    let symmetries = Arc::new(Symmetries::of(&Checkpoint::open(&one)?, None)?);
    let planted = plant(&symmetries, arguments.same)?;
    let noise = arguments.number("noise", 1.0);
    let alignment = Alignment {
        symmetries: Arc::clone(&symmetries),
        transform: Arc::new(planted.clone()),
    };
    let moved = Transformed::new(store(&one)?, alignment);
    #[expect(clippy::cast_possible_truncation, reason = "a factor like 0.5")]
    let factor = noise as f32;
    write(&arguments, &other, |stream, name, values| {
        let count = values.len() as u64;
        moved.tensor(name)?.read(0..count, values)?;
        let scale = factor * if name.contains("norm") { 0.1 } else { 0.02 };
        if scale > 0.0 {
            let noise =
                |(at, value): (usize, &mut f32)| *value += scale * bell(stream + 1000, at as u64);
            values.par_iter_mut().enumerate().for_each(noise);
        }
        Ok(())
    })?;
    let plain = plain_speed();
    // From here on the peak is that of the matching.
    drop(std::fs::write("/proc/self/clear_refs", "5"));

    let memory = (arguments.size("memory-mib", 2048) as u64) << 20;
    let options = MatchOptions {
        memory,
        ..MatchOptions::default()
    };
    let watch = Count::default();
    let (begun, before) = (Instant::now(), spent());
    let start = Transform::identity(&symmetries);
    let matched = match_weights(
        store(&one)?.as_ref(),
        &store(&other)?,
        &symmetries,
        Start {
            transform: &start,
            steps: &[],
        },
        &options,
        &watch,
    )?;
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = spent() - before;
    let operations = watch.0.load(Ordering::Relaxed) as f64 / 1e9;
    let threads = rayon::current_num_threads();
    println!(
        "noise {noise} x std, {threads} threads, memory {} MiB",
        memory >> 20
    );
    for (kind, (found, all)) in recovered(
        &symmetries,
        &planted.compose(&symmetries, &matched.transform),
    ) {
        println!(
            "{kind:8} {found} of {all} units, {:.2} %",
            100.0 * found as f64 / all as f64
        );
    }
    for step in &matched.steps {
        let name = &symmetries.groups[step.root].name;
        println!(
            "{name}: {:.6} -> {:.6}, moved {} of {}, {:?}",
            step.before, step.after, step.moved, step.units, step.proof
        );
    }
    let [by_time, by_core] = plain.map(|speed| speed / 1e9);
    println!(
        "{seconds:.1} s, {:.1} GF/s; a plain product {by_time:.1} GF/s",
        operations / seconds
    );
    println!(
        "{cpu:.1} s on all cores, {:.1} GF/s per core; a plain product {by_core:.1}",
        operations / cpu
    );
    if let Some(peak) = peak_mb() {
        println!("peak of the process {peak:.0} MB, maps of the files included");
    }
    Ok(())
}
