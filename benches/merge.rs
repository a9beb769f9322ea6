//! Whole merges beside a plain copy of the same traffic.
//!
//! `cargo bench --bench merge`: each line moves the same bytes: two bf16 models of 128 MiB in, one
//! out.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use divan::Bencher;
use divan::counter::BytesCount;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use thalweg::engine::{self, Merge, Options};
use thalweg::output::{DiskStorage, Target};
use thalweg::plan::memory::Wish;
use thalweg::plan::{Job, Plan};
use thalweg::recipe::Recipe;

const MODEL_BYTES: usize = 128 << 20;
const TENSORS: usize = 8;

fn main() {
    divan::main();
}

/// Two models of noise whose cosine is neither one nor zero.
struct Models {
    dir: TempDir,
    paths: Vec<PathBuf>,
}

impl Models {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target")
            .expect("a folder to write to");
        let paths = (0..2)
            .map(|seed| write_model(&dir.path().join(format!("{seed}.safetensors")), seed))
            .collect();
        Self { dir, paths }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }
}

fn write_model(path: &Path, seed: u64) -> PathBuf {
    let len = MODEL_BYTES / TENSORS;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = vec![0_u8; len];
    for pair in bytes.chunks_exact_mut(2) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407 + 2 * seed);
        let [.., low, high] = state.to_be_bytes();
        // Exponents around one: values between 2^-4 and 2^4 of either sign.
        pair.copy_from_slice(&[low, (high & 0x80) | 0x3e | (high & 1)]);
    }
    let view =
        || TensorView::new(Dtype::BF16, vec![len / 2 / 1024, 1024], &bytes).expect("the sizes fit");
    let tensors: Vec<(String, TensorView<'_>)> = (0..TENSORS)
        .map(|i| (format!("layers.{i}.weight"), view()))
        .collect();
    safetensors::serialize_to_file(tensors, None, path).expect("the folder can be written to");
    path.to_owned()
}

fn merge(models: &Models, recipe: &str, memory: u64) {
    let _ = std::fs::remove_dir_all(models.out());
    let document = Recipe::parse(recipe, "bench")
        .expect("the recipe is right")
        .documents
        .remove(0);
    let job = Job::new(document, models.paths.clone()).expect("two models");
    let wish = Wish {
        memory,
        threads: 2,
        block_bytes: None,
    };
    let report = engine::merge(Merge {
        plan: Arc::new(Plan::new(&job, &wish).expect("the models fit")),
        storage: Arc::new(DiskStorage),
        target: Target {
            dir: models.out(),
            overwrite: false,
            restart: false,
        },
        options: Options::default(),
        verify: false,
    });
    black_box(report.expect("the merge succeeds"));
}

fn recipe(method: &str, own: &str) -> String {
    format!(
        "merge_method: {method}\n{own}\nmodels:\n  - model: a\n    parameters: {{ weight: 0.6 }}\n  - model: b\n    \
         parameters: {{ weight: 0.4 }}\n"
    )
}

fn bench(bencher: Bencher<'_, '_>, work: impl Fn(&Models) + Sync) {
    let models = Models::new();
    bencher
        .counter(BytesCount::new(3 * MODEL_BYTES))
        .bench_local(|| work(&models));
}

/// The line to compare with: both inputs read, one of them written, and synced.
#[divan::bench(sample_count = 5)]
fn copy_of_the_same_traffic(bencher: Bencher<'_, '_>) {
    bench(bencher, |models| {
        let read = std::fs::read(&models.paths[0]).expect("readable");
        black_box(read.iter().fold(0_u8, |sum, byte| sum ^ byte));
        std::fs::copy(&models.paths[1], models.dir.path().join("copy")).expect("writable");
        std::fs::File::open(models.dir.path().join("copy"))
            .and_then(|file| file.sync_all())
            .expect("synced");
    });
}

#[divan::bench(sample_count = 5, args = [256, 1024])]
fn karcher(bencher: Bencher<'_, '_>, mebibytes: u64) {
    bench(bencher, |models| {
        merge(models, &recipe("karcher", ""), mebibytes << 20)
    });
}

#[divan::bench(sample_count = 5)]
fn karcher_by_row(bencher: Bencher<'_, '_>) {
    bench(bencher, |models| {
        merge(models, &recipe("karcher", "granularity: row"), 1 << 30)
    });
}

#[divan::bench(sample_count = 5)]
fn karcher_of_the_whole_model(bencher: Bencher<'_, '_>) {
    bench(bencher, |models| {
        merge(models, &recipe("frechet", ""), 1 << 30)
    });
}

#[divan::bench(sample_count = 5)]
fn linear(bencher: Bencher<'_, '_>) {
    bench(bencher, |models| {
        merge(models, &recipe("linear", ""), 1 << 30)
    });
}
