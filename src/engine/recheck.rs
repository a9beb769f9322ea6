//! Checks a merged checkpoint against its inputs: takes blocks at random, computes them once more and compares bits.
//!
//! Nothing of the pipeline takes part: no stages, no memory maps, no SIMD. One block after the other is read, and worked
//! on with the portable kernels by one thread. What both share is the definition of the result: the plan, the
//! shape of the sums, the solvers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::budget::Budget;
use crate::checkpoint::{Checkpoint, Io, Source, SourceOptions, Window};
use crate::error::{Error, Kind, Result};
use crate::kernel::{CHUNK, Kernels, Level, pair_count};
use crate::method::{Gram, Method, Solution};
use crate::monitor::Silent;
use crate::plan::Plan;
use crate::plan::assign::Span;
use crate::plan::schedule::{Block, Role, is_measured};
use crate::plan::tensor::{Action, TensorPlan};

use super::columns::{ColumnRule, ColumnSums};
use super::reader::{Gathers, Reader, Sources};
use super::stop::Stop;
use super::work::{self, Part, Workbench};

/// Elements of a block that is computed once more.
const BLOCK: u64 = CHUNK as u64;

/// Which blocks are computed once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// How many; all of them when there are fewer.
    pub blocks: u64,
    /// Equal seeds choose equal blocks of equal outputs.
    pub seed: u64,
}

/// What was found to be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rechecked {
    /// Blocks that were computed once more.
    pub blocks: u64,
    /// Of so many.
    pub all_blocks: u64,
    /// Bytes of output in them.
    pub bytes: u64,
    /// Tensors that they belong to.
    pub tensors: usize,
}

/// Computes a sample of the checkpoint in `dir` from the inputs of `plan` and compares it bit for bit.
///
/// The coefficients of a tensor depend on all of it, so the inputs' parts of every tensor that is met are read whole;
/// for a merge over the whole model, those of all tensors. `scratch` is a folder for inputs that cannot be read in
/// place; without it they are refused. `progress` is told how many blocks of how many are done.
///
/// # Errors
///
/// [`Kind::Mismatch`] when the checkpoint is not one of that plan: other tensors, types or shapes; [`Kind::Damaged`] with
/// tensor and byte range when bytes differ; whatever reading and merging fail with.
pub fn recheck(
    plan: &Plan,
    dir: &Path,
    sample: Sample,
    scratch: Option<&Path>,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Rechecked> {
    let output = Checkpoint::open(dir)?;
    same_tensors(plan, &output, dir)?;
    let counts: Vec<u64> = plan.tensors.iter().map(|tensor| tensor.elements.div_ceil(BLOCK)).collect();
    let all_blocks = counts.iter().sum();
    let chosen = choose(&counts, sample);
    let bench = Workbench::new(Kernels::at(Level::Portable).expect("every machine has it"), 1);
    let sources = super::open_sources(plan, scratch, Io::Positioned)?;
    let alone = ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .map_err(|error| Error::new(Kind::Io, "cannot begin", dir.display(), error))?;
    let merger = Merger { plan, bench: &bench, sources: &sources, alone: &alone };
    let compared = Compared { plan, output: &output, dir };
    let whole = merger.whole_model(&chosen)?;
    let total = chosen.values().map(|blocks| blocks.len() as u64).sum();
    let mut found = Rechecked { blocks: 0, all_blocks, bytes: 0, tensors: chosen.len() };
    for (tensor, blocks) in chosen {
        let mut rule = merger.rule_of(tensor, &whole)?;
        for block in blocks {
            let start = block * BLOCK;
            let len = BLOCK.min(plan.tensors[tensor].elements - start);
            let wanted = merger.merged(tensor, start, len, &mut rule)?;
            compared.compare(tensor, start, &wanted)?;
            found.blocks += 1;
            found.bytes += wanted.len() as u64;
            progress(found.blocks, total)?;
        }
    }
    Ok(found)
}

/// The output holds the plan's tensors and no others, with their types and shapes.
fn same_tensors(plan: &Plan, output: &Checkpoint, dir: &Path) -> Result<()> {
    let differs = |cause: String| {
        Err(Error::new(Kind::Mismatch, "cannot compare with a merge", dir.display(), cause)
            .with_hint("give the very inputs and options that the merge was given"))
    };
    for tensor in &plan.tensors {
        let name = tensor.name.escape_debug();
        match output.tensors().get(&tensor.name) {
            None => return differs(format!("it has no tensor `{name}`, which the merge would have")),
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
    let planned: std::collections::HashSet<_> = plan.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let extra = output.tensors().keys().find(|name| !planned.contains(name.as_str()));
    differs(format!("it has tensor `{}`, which the merge would not have", extra.map_or("", String::as_str)))
}

/// The chosen blocks by tensor, both in ascending order.
fn choose(counts: &[u64], sample: Sample) -> BTreeMap<usize, Vec<u64>> {
    let mut numbers: Vec<u64> = match counts.iter().sum() {
        all if all <= sample.blocks => (0..all).collect(),
        all => distinct(all, sample),
    };
    numbers.sort_unstable();
    let mut chosen: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    let (mut tensor, mut before) = (0, 0);
    for number in numbers {
        while number - before >= counts[tensor] {
            before += counts[tensor];
            tensor += 1;
        }
        chosen.entry(tensor).or_default().push(number - before);
    }
    chosen
}

/// As many different numbers below `all` as are asked for, fewer than `all` (Floyd's sampling).
fn distinct(all: u64, sample: Sample) -> Vec<u64> {
    let mut state = sample.seed;
    let mut taken = std::collections::BTreeSet::new();
    for last in all - sample.blocks..all {
        let number = below(&mut state, last + 1);
        if !taken.insert(number) {
            taken.insert(last);
        }
    }
    taken.into_iter().collect()
}

/// A number below `bound`, each with the same probability but for 2^-64 of it: `SplitMix64` (Steele, Lea and Flood 2014)
/// and a multiplication.
fn below(state: &mut u64, bound: u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bits = *state;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    let product = u128::from(bits) * u128::from(bound);
    u64::try_from(product >> 64).expect("the upper half of 128 bits")
}

/// How a tensor's elements are made.
enum Rule {
    /// Copied, or solved by small segments and combined at once.
    AtOnce,
    /// By one solution; the number of the segment that it is for.
    Segment(Option<(u64, Arc<Solution>)>),
    /// By the solution of the whole model.
    Model(Arc<Solution>),
    /// By one solution a column.
    Columns(ColumnRule),
}

struct Merger<'a> {
    plan: &'a Plan,
    bench: &'a Workbench,
    sources: &'a Sources,
    /// One thread, where something wants a pool.
    alone: &'a ThreadPool,
}

impl Merger<'_> {
    /// The solution of the whole model, if some chosen tensor needs it.
    fn whole_model(&self, chosen: &BTreeMap<usize, Vec<u64>>) -> Result<Option<Arc<Solution>>> {
        let over_model = |tensor: &TensorPlan| tensor.span == Span::Model && is_measured(tensor);
        let Some(any) = chosen.keys().copied().find(|tensor| over_model(&self.plan.tensors[*tensor])) else {
            return Ok(None);
        };
        let mut measured = Group::new(self.plan.tensors[any].sources.len());
        for (index, tensor) in self.plan.tensors.iter().enumerate().filter(|(_, tensor)| over_model(tensor)) {
            self.measure(index, 0..tensor.elements, &mut measured)?;
        }
        // What decides over the whole model is decided for the last tensor that is measured.
        let last = self.plan.tensors.iter().rfind(|tensor| over_model(tensor)).expect("one was found");
        Ok(Some(Arc::new(work::solve(last, self.method(any), &measured.gram, measured.replaced)?)))
    }

    fn rule_of(&self, index: usize, whole: &Option<Arc<Solution>>) -> Result<Rule> {
        let tensor = &self.plan.tensors[index];
        if !is_measured(tensor) || tensor.segment == 0 {
            return Ok(Rule::AtOnce);
        }
        match tensor.span {
            Span::Model => Ok(Rule::Model(Arc::clone(whole.as_ref().expect("a chosen tensor had it solved")))),
            Span::FirstAxis => {
                let mut sums = ColumnSums::new(tensor);
                for block in self.blocks(index, 0..tensor.elements) {
                    let windows = self.load(&block)?;
                    sums.add(self.alone, self.bench.kernels(), &self.part(block, &windows), self.method(index))?;
                }
                let (rule, _, _) = sums.solve(self.alone, tensor, self.method(index))?;
                Ok(Rule::Columns(rule))
            }
            _ if tensor.segment <= self.plan.memory.block => Ok(Rule::AtOnce),
            _ => Ok(Rule::Segment(None)),
        }
    }

    /// The output's bytes for `len` elements from `start` on.
    fn merged(&self, index: usize, start: u64, len: u64, rule: &mut Rule) -> Result<Vec<u8>> {
        let tensor = &self.plan.tensors[index];
        let unit = usize::try_from(tensor.output_unit()).expect("an element is a few bytes");
        let size = |len: u64| usize::try_from(len).expect("a block fits the memory") * unit;
        let mut bytes = Vec::with_capacity(size(len));
        let at_once = matches!(rule, Rule::AtOnce) && is_measured(tensor);
        let mut at = start;
        while at < start + len {
            // Segments are taken one by one; where they are solved and combined at once, whole.
            let segment = if is_measured(tensor) { at / tensor.segment } else { 0 };
            let of_segment = match is_measured(tensor) && tensor.span != Span::FirstAxis {
                true => segment * tensor.segment..((segment + 1) * tensor.segment).min(tensor.elements),
                false => 0..tensor.elements,
            };
            let end = of_segment.end.min(start + len);
            let range = if at_once { of_segment.clone() } else { at..end };
            let block = Block { tensor: index, start: range.start, len: range.end - range.start, role: Role::Whole };
            let windows = self.load(&block)?;
            let part = self.part(block, &windows);
            let mut made = vec![0; size(block.len)];
            match rule {
                Rule::AtOnce => drop(self.at_once(&part, &mut made)?),
                Rule::Model(solution) => drop(work::apply(self.bench, &part, solution, &mut made)?),
                Rule::Columns(rule) => drop(rule.apply(self.bench.kernels(), &part, &mut made)),
                Rule::Segment(known) => {
                    let solution = self.solution_of(index, segment, &of_segment, known)?;
                    work::apply(self.bench, &part, &solution, &mut made)?;
                }
            }
            bytes.extend_from_slice(&made[size(at - range.start)..size(end - range.start)]);
            at = end;
        }
        Ok(bytes)
    }

    fn at_once(&self, part: &Part<'_>, made: &mut [u8]) -> Result<()> {
        match part.tensor().action {
            Action::Carry(_) => drop(work::carry(part, made)),
            Action::Merge(_) => drop(work::whole(self.bench, part, self.method(part.block.tensor), made)?),
        }
        Ok(())
    }

    fn solution_of(
        &self,
        index: usize,
        segment: u64,
        range: &std::ops::Range<u64>,
        known: &mut Option<(u64, Arc<Solution>)>,
    ) -> Result<Arc<Solution>> {
        if let Some((of, solution)) = known
            && *of == segment
        {
            return Ok(Arc::clone(solution));
        }
        let tensor = &self.plan.tensors[index];
        let mut measured = Group::new(tensor.sources.len());
        self.measure(index, range.clone(), &mut measured)?;
        let solution = Arc::new(work::solve(tensor, self.method(index), &measured.gram, measured.replaced)?);
        *known = Some((segment, Arc::clone(&solution)));
        Ok(solution)
    }

    fn measure(&self, index: usize, range: std::ops::Range<u64>, group: &mut Group) -> Result<()> {
        for block in self.blocks(index, range) {
            let windows = self.load(&block)?;
            let measured = work::measure(self.bench, &self.part(block, &windows), self.method(index))?;
            group.replaced |= measured.replaced;
            measured.sums.chunks_exact(pair_count(windows.len())).for_each(|chunk| group.gram.add(chunk));
        }
        Ok(())
    }

    /// Blocks that fit the memory and begin at whole chunks of the range.
    fn blocks(&self, tensor: usize, range: std::ops::Range<u64>) -> impl Iterator<Item = Block> + use<> {
        let most = self.plan.memory.block;
        let starts = (range.start..range.end).step_by(usize::try_from(most).expect("a block fits the memory"));
        starts.map(move |start| Block { tensor, start, len: most.min(range.end - start), role: Role::Whole })
    }

    fn method(&self, index: usize) -> &dyn Method {
        match &self.plan.tensors[index].action {
            Action::Merge(method) => &**method,
            Action::Carry(_) => unreachable!("carried tensors are not measured"),
        }
    }

    fn part<'b>(&'b self, block: Block, windows: &'b [Window]) -> Part<'b> {
        Part { plan: self.plan, block, windows }
    }

    fn load(&self, block: &Block) -> Result<Vec<Window>> {
        let (budget, stop) = (Budget::new(u64::MAX), Stop::default());
        let reader = Reader {
            plan: self.plan,
            sources: self.sources,
            kernels: self.bench.kernels(),
            gathers: Gathers::default(),
            budget: &budget,
            monitor: &Silent,
            stop: &stop,
        };
        reader.load(block)
    }
}

/// What was measured of one group.
struct Group {
    gram: Gram,
    replaced: bool,
}

impl Group {
    fn new(inputs: usize) -> Self {
        Self { gram: Gram::new(inputs), replaced: false }
    }
}

struct Compared<'a> {
    plan: &'a Plan,
    output: &'a Checkpoint,
    dir: &'a Path,
}

impl Compared<'_> {
    /// `wanted` is what the output holds of a tensor from element `start` on.
    fn compare(&self, index: usize, start: u64, wanted: &[u8]) -> Result<()> {
        let tensor = &self.plan.tensors[index];
        let entry = &self.output.tensors()[&tensor.name];
        let first = entry.bytes.start + start * tensor.output_unit();
        let options = SourceOptions { io: Io::Positioned, scratch: None };
        let source: Arc<dyn Source> = self.output.open_file(entry.file, &options)?;
        let stored = source.load(first..first + wanted.len() as u64)?;
        let Some(at) = stored.iter().zip(wanted).position(|(stored, wanted)| stored != wanted) else {
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
        Err(Error::new(Kind::Damaged, "does not match its inputs", subject.display(), cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_of_different_blocks_and_the_same_for_the_same_seed() {
        let counts = [3, 0, 1, 1000, 0, 7];
        let of = |blocks, seed| choose(&counts, Sample { blocks, seed });
        let flat = |chosen: &BTreeMap<usize, Vec<u64>>| -> Vec<(usize, u64)> {
            chosen.iter().flat_map(|(tensor, blocks)| blocks.iter().map(|block| (*tensor, *block))).collect()
        };
        assert_eq!(of(50, 7), of(50, 7));
        assert_ne!(of(50, 7), of(50, 8));
        for blocks in [0, 1, 50, 1010, 1011, 5000] {
            let mut flat = flat(&of(blocks, 1));
            assert_eq!(flat.len() as u64, blocks.min(1011));
            assert!(flat.iter().all(|(tensor, block)| *block < counts[*tensor]));
            flat.dedup();
            assert_eq!(flat.len() as u64, blocks.min(1011));
        }
    }

    #[test]
    fn every_block_is_chosen_as_often_as_every_other() {
        let mut times = [0_u32; 20];
        for seed in 0..4000 {
            for (_, blocks) in choose(&[20], Sample { blocks: 5, seed }) {
                blocks.iter().for_each(|block| times[usize::try_from(*block).expect("small")] += 1);
            }
        }
        // 1000 of each, with a standard deviation of 27.
        assert!(times.iter().all(|times| (865..=1135).contains(times)), "{times:?}");
    }
}
