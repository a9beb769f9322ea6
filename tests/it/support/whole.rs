//! Runs whole merges in this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thalweg::Result;
use thalweg::checkpoint::Io;
use thalweg::engine::{Merge, Options, merge};
use thalweg::kernel::Kernels;
use thalweg::output::{DiskStorage, Target};
use thalweg::plan::memory::Wish;
use thalweg::plan::{Job, Plan};
use thalweg::recipe::Recipe;
use thalweg::report::Report;

/// Plenty of memory, two threads, blocks as the plan likes.
pub const PLENTY: Wish = Wish {
    memory: 1 << 30,
    threads: 2,
    block_bytes: None,
};

/// The plan of the only document of `recipe`, whose models are paths.
pub fn plan(recipe: &str, wish: &Wish) -> Result<Plan> {
    let recipe = Recipe::parse(recipe, "test")?;
    let document = recipe.documents[0].clone();
    let inputs = document
        .models()
        .into_iter()
        .map(|model| PathBuf::from(&*model.path))
        .collect();
    Plan::new(&Job::new(document, inputs)?, wish)
}

/// Merges `recipe` into the folder `out`.
pub fn run(recipe: &str, out: &Path, wish: &Wish) -> Result<Report> {
    carry_out(plan(recipe, wish)?, out)
}

/// Merges `plan` into the folder `out`.
pub fn carry_out(plan: Plan, out: &Path) -> Result<Report> {
    merge(Merge {
        plan: Arc::new(plan),
        storage: Arc::new(DiskStorage),
        target: Target {
            dir: out.to_owned(),
            overwrite: false,
            restart: false,
        },
        options: Options {
            kernels: Kernels::detect(),
            io: Io::Map,
            ..Options::default()
        },
        verify: true,
    })
}

/// The least memory, in whole MiB, with which `recipe` can be planned under `wish`.
pub fn least_memory(recipe: &str, wish: &Wish) -> u64 {
    let fits = |mib: &u64| {
        plan(
            recipe,
            &Wish {
                memory: mib << 20,
                ..*wish
            },
        )
        .is_ok()
    };
    (1..1024)
        .find(fits)
        .expect("a gigabyte is enough for a test")
        << 20
}

/// The recipe of `method` over `models`, with `more` lines at the top level.
pub fn recipe(method: &str, models: &[&Path], more: &str) -> String {
    let entry = |model: &&Path| {
        format!(
            "  - model: {}\n    parameters: {{weight: 1}}\n",
            model.display()
        )
    };
    let entries: String = models.iter().map(entry).collect();
    format!("merge_method: {method}\nmodels:\n{entries}{more}\n")
}
