//! Model folders of any size that cost little disk and time: every tensor has a stripe of values at
//! its start and at every further mebibyte, between them the file is a hole.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Map, Value, json};
use thalweg::dtype::Dtype;

use crate::support::reference::Random;

const STRIDE: u64 = 1 << 20;
const STRIPE: u64 = 32 << 10;

/// A tensor to be.
#[derive(Debug, Clone)]
pub struct Spec {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    /// The upper byte of each half word but for the sign, which decides how large the values are.
    pub upper: u8,
}

/// A tensor of finite numbers of moderate size in every floating point type.
pub fn spec(name: impl Into<String>, dtype: Dtype, shape: &[u64]) -> Spec {
    Spec {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
        upper: 0x3d,
    }
}

impl Spec {
    fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.bytes() as u64
    }
}

/// Writes a folder of these shards, with an index when there are several and a config. Equal seeds
/// give equal bytes; tensors that are no floats hold the same for every seed.
pub fn write(folder: &Path, shards: &[Vec<Spec>], seed: u64) {
    fs::create_dir_all(folder).expect("a writable folder");
    let mut map = Map::new();
    let mut total = 0;
    for (number, specs) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let (file, start) = header(&folder.join(&name), specs);
        stripes(&file, start, specs, seed + 1000 * number as u64);
        map.extend(specs.iter().map(|spec| (spec.name.clone(), json!(name))));
        total += specs.iter().map(Spec::bytes).sum::<u64>();
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        fs::write(
            folder.join("model.safetensors.index.json"),
            index.to_string(),
        )
        .expect("written");
    }
    let config = json!({ "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 64 });
    fs::write(folder.join("config.json"), format!("{config:#}\n")).expect("written");
}

/// The headers alone: the data is one hole.
pub fn write_headers(folder: &Path, shards: &[Vec<Spec>]) {
    let empty: Vec<Vec<Spec>> = vec![vec![]; shards.len()];
    write(folder, &empty, 0);
    let mut map = Map::new();
    for (number, specs) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        header(&folder.join(&name), specs);
        map.extend(specs.iter().map(|spec| (spec.name.clone(), json!(name))));
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .expect("written");
}

/// A file with the header of `specs` and room for them; where the data begins.
fn header(path: &Path, specs: &[Spec]) -> (File, u64) {
    let mut at = 0;
    let mut fields = Map::new();
    for spec in specs {
        let end = at + spec.bytes();
        let place =
            json!({ "dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [at, end] });
        fields.insert(spec.name.clone(), place);
        at = end;
    }
    let mut text = Value::from(fields).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let file = File::create(path).expect("a writable folder");
    file.write_all_at(&(text.len() as u64).to_le_bytes(), 0)
        .expect("written");
    file.write_all_at(text.as_bytes(), 8).expect("written");
    let start = 8 + text.len() as u64;
    file.set_len(start + at).expect("resized");
    (file, start)
}

fn stripes(file: &File, mut at: u64, specs: &[Spec], seed: u64) {
    for (number, spec) in specs.iter().enumerate() {
        let seed = if spec.dtype.is_mergeable() { seed } else { 0 };
        let mut random = Random::new(seed.wrapping_mul(1_000_003) + number as u64);
        for offset in (0..spec.bytes()).step_by(usize::try_from(STRIDE).expect("small")) {
            let len = STRIPE.min(spec.bytes() - offset);
            file.write_all_at(&values(&mut random, spec.upper, len), at + offset)
                .expect("written");
        }
        at += spec.bytes();
    }
}

fn values(random: &mut Random, upper: u8, len: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < len {
        let low_and_sign = random.bits().to_le_bytes();
        let pairs = low_and_sign.as_chunks::<2>().0;
        bytes.extend(
            pairs
                .iter()
                .flat_map(|[low, sign]| [*low, upper | (sign & 0x80)]),
        );
    }
    bytes.truncate(usize::try_from(len).expect("a stripe is small"));
    bytes
}
