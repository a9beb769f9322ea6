//! Checks a merged checkpoint against its inputs: takes blocks at random, computes them once more
//! and compares bits.
//!
//! No part of the pipeline is used: no stages, no memory maps, no SIMD. One thread reads one block
//! after the other and computes it with the portable kernels. Both share only the definition of
//! the result: the plan, the shape of the sums, the solvers.

mod again;
mod sample;

use std::path::Path;
use std::sync::Arc;

use rayon::ThreadPoolBuilder;

use crate::checkpoint::{Checkpoint, Io, OpenOptions, Source, SourceOptions};
use crate::error::{Error, Kind, Result};
use crate::kernel::{CHUNK, Kernels, Level};
use crate::pass::Processor;
use crate::plan::{Component, Plan};

pub(super) use again::Merger;
pub use sample::Sample;
use sample::choose;

/// Elements of a block that is computed once more.
const BLOCK: u64 = CHUNK as u64;

/// The most characters of a text from a file that a message shows.
const SHOWN: usize = 80;

/// The extent of a check that found no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rechecked {
    /// Blocks that were computed once more.
    pub blocks: u64,
    /// Blocks in the whole output.
    pub all_blocks: u64,
    /// Bytes of output in them.
    pub bytes: u64,
    /// Tensors that they belong to.
    pub tensors: usize,
}

/// Computes a sample of the checkpoint in `dir` from the inputs of `plan` and compares it bit for
/// bit.
///
/// The coefficients of a tensor depend on all of it, so the inputs' parts of every tensor that is
/// met are read whole; for a merge over the whole model, those of all tensors. `scratch` is a
/// folder for inputs that cannot be read in place; without it they are refused. `progress` is told
/// how many blocks of how many are done.
///
/// # Errors
///
/// [`Kind::Mismatch`] when the checkpoint is not one of that plan: other tensors, types or shapes;
/// [`Kind::Damaged`] with tensor and byte range when bytes differ; whatever reading and merging
/// fail with.
pub fn recheck(
    plan: &Plan,
    dir: &Path,
    sample: Sample,
    scratch: Option<&Path>,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Rechecked> {
    let output = opened(plan, dir)?;
    same_tensors(plan, &output, dir)?;
    same_metadata(plan, &output, dir)?;
    let counts: Vec<u64> = plan
        .tensors
        .iter()
        .map(|tensor| tensor.elements.div_ceil(BLOCK))
        .collect();
    let all_blocks = counts.iter().sum();
    let chosen = choose(&counts, sample);
    let alone = ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .map_err(|error| Error::new(Kind::Io, "cannot begin", dir.display(), error))?;
    let bench = Processor::new(
        Kernels::at(Level::Portable).expect("every machine has it"),
        alone,
    );
    let sources = super::open_sources(plan, scratch, Io::Positioned)?;
    let merger = Merger {
        plan,
        bench: &bench,
        sources: &sources,
    };
    let compared = Compared {
        plan,
        output: &output,
        dir,
    };
    let whole = merger.whole_model(&chosen)?;
    let total = chosen.values().map(|blocks| blocks.len() as u64).sum();
    let mut found = Rechecked {
        blocks: 0,
        all_blocks,
        bytes: 0,
        tensors: chosen.len(),
    };
    for (tensor, blocks) in chosen {
        let mut making = merger.making_of(tensor, whole.as_ref())?;
        for block in blocks {
            let start = block * BLOCK;
            let len = BLOCK.min(plan.tensors[tensor].elements - start);
            let wanted = merger.merged(tensor, start, len, &mut making)?;
            compared.compare(tensor, start, &wanted)?;
            found.blocks += 1;
            found.bytes += wanted.len() as u64;
            progress(found.blocks, total)?;
        }
    }
    Ok(found)
}

/// Checks that the output holds the plan's tensors and no others, with their types and shapes.
fn same_tensors(plan: &Plan, output: &Checkpoint, dir: &Path) -> Result<()> {
    let differs = |cause: String| {
        Err(Error::new(
            Kind::Mismatch,
            "cannot compare with a merge",
            dir.display(),
            cause,
        )
        .with_hint("give the very inputs and options that the merge was given"))
    };
    for tensor in &plan.tensors {
        let name = tensor.name.escape_debug();
        match output.tensors().get(&tensor.name) {
            None => {
                return differs(format!(
                    "it has no tensor `{name}`, which the merge would have"
                ));
            }
            Some(entry) if (entry.dtype, &entry.shape) != (tensor.dtype, &tensor.shape) => {
                let (wanted, got) = ((tensor.dtype, &tensor.shape), (entry.dtype, &entry.shape));
                return differs(format!(
                    "tensor `{name}`: wanted {} {:?}, got {} {:?}",
                    wanted.0, wanted.1, got.0, got.1
                ));
            }
            Some(_) => {}
        }
    }
    if output.tensors().len() == plan.tensors.len() {
        return Ok(());
    }
    let planned: std::collections::HashSet<_> = plan
        .tensors
        .iter()
        .map(|tensor| tensor.name.as_str())
        .collect();
    let extra = output
        .tensors()
        .keys()
        .find(|name| !planned.contains(name.as_str()));
    differs(format!(
        "it has tensor `{}`, which the merge would not have",
        extra.map_or("", |name| name.as_str())
    ))
}

/// Opens the checkpoint in `dir` with the components that the plan has.
fn opened(plan: &Plan, dir: &Path) -> Result<Checkpoint> {
    // Quantised weights were refused or accepted when the inputs were opened.
    let options = OpenOptions {
        pipeline: true,
        raw_codes: true,
        ..OpenOptions::default()
    };
    let mut output = Checkpoint::open_with(dir, &options)?;
    for Component { folder, .. } in &plan.components {
        let component = output.open_component(folder, &options)?;
        output.attach(folder, component)?;
    }
    Ok(output)
}

/// Checks that the headers' metadata is that of the plan.
fn same_metadata(plan: &Plan, output: &Checkpoint, dir: &Path) -> Result<()> {
    for file in output.files() {
        let folder = file.name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let Some(part) = plan
            .layout
            .parts()
            .iter()
            .find(|part| part.folder == folder)
        else {
            continue;
        };
        let there = |key: &&String| file.metadata.get(*key) != part.metadata.get(*key);
        let Some(key) = part.metadata.keys().chain(file.metadata.keys()).find(there) else {
            continue;
        };
        let shown = |value: Option<&String>| match value {
            Some(value) => format!(
                "`{}`",
                value.chars().take(SHOWN).collect::<String>().escape_debug()
            ),
            None => "nothing".to_owned(),
        };
        let (wanted, got) = (shown(part.metadata.get(key)), shown(file.metadata.get(key)));
        let key: String = key.chars().take(SHOWN).collect();
        let cause = format!(
            "metadata `{}` in its header: wanted {wanted}, got {got}",
            key.escape_debug()
        );
        return Err(Error::new(
            Kind::Mismatch,
            "cannot compare with a merge",
            dir.join(&file.name).display(),
            cause,
        )
        .with_hint("give the very inputs and options that the merge was given"));
    }
    Ok(())
}

struct Compared<'a> {
    plan: &'a Plan,
    output: &'a Checkpoint,
    dir: &'a Path,
}

impl Compared<'_> {
    /// Computes a tensor from element `start` on and compares it with `wanted`, the output's bytes.
    fn compare(&self, index: usize, start: u64, wanted: &[u8]) -> Result<()> {
        let tensor = &self.plan.tensors[index];
        let entry = &self.output.tensors()[&tensor.name];
        let first = entry.bytes.start + start * tensor.output_unit();
        let options = SourceOptions {
            io: Io::Positioned,
            scratch: None,
        };
        let source: Arc<dyn Source> = self.output.open_file(entry.file, &options)?;
        let stored = source.load(first..first + wanted.len() as u64)?;
        let Some(at) = stored
            .iter()
            .zip(wanted)
            .position(|(stored, wanted)| stored != wanted)
        else {
            return Ok(());
        };
        let subject = self.dir.join(&self.output.files()[entry.file].name);
        let begin = start * tensor.output_unit();
        let cause = format!(
            "bytes {begin} to {} of tensor `{}` are not what the inputs give: the first that differs is byte {}",
            begin + wanted.len() as u64,
            tensor.name.escape_debug(),
            begin + at as u64
        );
        Err(Error::new(
            Kind::Damaged,
            "does not match its inputs",
            subject.display(),
            cause,
        ))
    }
}
