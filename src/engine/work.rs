//! What is computed on one block: plain functions over bytes, called from the pool and from tests alike.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::checkpoint::Window;
use crate::device::Lanes;
use crate::error::{Error, Kind, Result};
use crate::kernel::{self, CHUNK, Elements, Kernels, Scratch};
use crate::method::{Gram, Method, Solution, Statistics};
use crate::plan::Plan;
use crate::plan::schedule::{Block, is_measured};
use crate::plan::tensor::{Action, TensorPlan};
use crate::recipe::NanPolicy;
use crate::report::Found;

use super::columns::base_instead;
use super::copied::only;
use super::offload::{Offload, is_worth_it};
use super::propagate::{let_through, refuse_overflow};
use super::tiny;

/// What a block's work needs besides the block: the kernels, working memory for each thread, a device if there is one.
pub struct Workbench {
    kernels: Kernels,
    scratch: Vec<Mutex<Scratch>>,
    lanes: Option<Lanes>,
}

/// What was measured in one block or a part of it.
#[derive(Default)]
pub struct Measured {
    /// For each chunk, the inner products of every pair of inputs.
    pub sums: Vec<f64>,
    /// An input is not finite, so that the base has to be taken instead.
    pub replaced: bool,
}

impl Workbench {
    /// A workbench for `threads` threads of one pool.
    pub fn new(kernels: Kernels, threads: usize) -> Self {
        Self { kernels, scratch: (0..threads.max(1)).map(|_| Mutex::default()).collect(), lanes: None }
    }

    /// The same workbench with a device, which does what is worth handing over.
    #[must_use]
    pub fn with_lanes(self, lanes: Option<Lanes>) -> Self {
        Self { lanes, ..self }
    }

    /// The kernels.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    fn offload<'a>(&self, lanes: &'a Lanes, part: &'a Part<'a>) -> Offload<'a> {
        Offload { lanes, kernels: self.kernels, part }
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        let index = rayon::current_thread_index().unwrap_or(0) % self.scratch.len();
        self.scratch[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One block with what it is part of and its bytes: one window for each source.
pub struct Part<'a> {
    /// The plan that the block belongs to.
    pub plan: &'a Plan,
    /// Which part of which tensor.
    pub block: Block,
    /// Its bytes, one window a source.
    pub windows: &'a [Window],
}

impl<'a> Part<'a> {
    /// The tensor that the block is a part of.
    pub fn tensor(&self) -> &'a TensorPlan {
        &self.plan.tensors[self.block.tensor]
    }

    /// The sources' elements in `range`, counted from the block's start.
    pub fn elements(&self, range: &Range<usize>) -> Vec<Elements<'a>> {
        let sources = self.tensor().sources.iter().zip(self.windows);
        sources
            .map(|(source, window)| {
                let unit = source.dtype.bytes();
                Elements { dtype: source.dtype, bytes: &window[range.start * unit..range.end * unit] }
            })
            .collect()
    }

    /// How many elements the block has.
    pub fn len(&self) -> usize {
        usize::try_from(self.block.len).expect("a block fits the memory")
    }
}

/// Inner products of every pair of inputs, chunk by chunk.
///
/// # Errors
///
/// [`Kind::NonFinite`] when an input holds NaN or infinity and that is not allowed, or when squares overflow.
pub fn measure(bench: &Workbench, part: &Part<'_>, method: &dyn Method) -> Result<Measured> {
    if let Some(lanes) = &bench.lanes {
        return bench.offload(lanes, part).measure(method, 0..part.len());
    }
    let mut scratch = bench.scratch();
    measure_range(bench, part, method, 0..part.len(), &mut scratch)
}

fn measure_range(
    bench: &Workbench,
    part: &Part<'_>,
    method: &dyn Method,
    range: Range<usize>,
    scratch: &mut Scratch,
) -> Result<Measured> {
    let statistics = method.statistics();
    if statistics == Statistics::None {
        return scan(bench, part, range);
    }
    let mut replaced = false;
    let width = statistics.sums(part.windows.len());
    let mut sums = vec![0.0; range.len().div_ceil(CHUNK) * width];
    for (chunk, sums) in chunks(range).zip(sums.chunks_exact_mut(width)) {
        replaced |= measure_chunk(bench.kernels, part, statistics, chunk, scratch, sums)?;
    }
    Ok(Measured { sums, replaced })
}

/// Writes the sums of one chunk, and says whether the base is to be taken instead.
///
/// # Errors
///
/// [`Kind::NonFinite`] as in [`measure`].
pub fn measure_chunk(
    kernels: Kernels,
    part: &Part<'_>,
    statistics: Statistics,
    chunk: Range<usize>,
    scratch: &mut Scratch,
    sums: &mut [f64],
) -> Result<bool> {
    let inputs = part.elements(&chunk);
    let mut gram = |skip_nonfinite, sums: &mut [f64]| match statistics {
        Statistics::Gram { center } => {
            kernels.gram(&inputs, kernel::GramOptions { center, skip_nonfinite }, scratch, sums)
        }
        Statistics::Wide => kernels.gram_wide(&inputs, skip_nonfinite, scratch, sums),
        Statistics::None => {}
    };
    gram(false, sums);
    let replaced = settle(kernels, part, chunk.clone(), sums, |sums| {
        gram(true, sums);
        Ok(())
    })?;
    if !replaced {
        tiny::mark(kernels, part, statistics, &chunk, sums);
    }
    Ok(replaced)
}

/// Sees to the sums of a chunk in which something is not finite: they are measured `again` without it, unless the base
/// is to be taken instead, which is what is returned.
///
/// # Errors
///
/// [`Kind::NonFinite`] as in [`measure`].
pub fn settle(
    kernels: Kernels,
    part: &Part<'_>,
    chunk: Range<usize>,
    sums: &mut [f64],
    again: impl FnOnce(&mut [f64]) -> Result<()>,
) -> Result<bool> {
    if sums.iter().all(|sum| sum.is_finite()) {
        return Ok(false);
    }
    if is_replaced(kernels, part, chunk)? {
        sums.fill(0.0);
        return Ok(true);
    }
    again(sums)?;
    if !sums.iter().all(|sum| sum.is_finite()) {
        return Err(Error::new(
            Kind::NonFinite,
            "cannot measure",
            &part.tensor().name,
            "the squares of its values overflow f64",
        )
        .with_hint("values beyond 1e150 in an F64 tensor have no norm that f64 can hold"));
    }
    Ok(false)
}

/// Looks for NaN and infinity where nothing else has to be known.
fn scan(bench: &Workbench, part: &Part<'_>, range: Range<usize>) -> Result<Measured> {
    let mut replaced = false;
    for chunk in chunks(range) {
        replaced |= is_replaced(bench.kernels, part, chunk)?;
    }
    Ok(Measured { sums: Vec::new(), replaced })
}

/// Whether a chunk holds NaN or infinity for which the base is to be taken.
///
/// # Errors
///
/// [`Kind::NonFinite`] when they are not allowed, or the base itself is not finite.
pub fn is_replaced(kernels: Kernels, part: &Part<'_>, chunk: Range<usize>) -> Result<bool> {
    let (start, inputs) = (chunk.start, part.elements(&chunk));
    let first = |index: usize| kernels.first_nonfinite(inputs[index]).map(|at| (index, at));
    let any = || (0..inputs.len()).find_map(first);
    let tensor = part.tensor();
    let (refused, replaced) = match part.plan.job.nan {
        NanPolicy::Propagate => (None, false),
        NanPolicy::Error => (any(), false),
        NanPolicy::Base => (tensor.base.and_then(first), any().is_some()),
    };
    match refused {
        Some((index, at)) => Err(nonfinite(part.plan, tensor, index, part.block.start + (start + at) as u64)),
        None => Ok(replaced),
    }
}

/// The error for NaN or infinity in source `index` at `position`, counted in elements of the output tensor.
pub fn nonfinite(plan: &Plan, tensor: &TensorPlan, index: usize, position: u64) -> Error {
    let source = &tensor.sources[index];
    let hint = match plan.job.nan {
        NanPolicy::Base => "the base itself must be finite where it replaces others: repair it, or name another base",
        _ => {
            "repair or leave out that model, or say `nan: propagate` to let such elements through, `nan: base` to take \
             such tensors from the base"
        }
    };
    Error::new(
        Kind::NonFinite,
        "input is not finite",
        format!("{}: `{}`", plan.inputs[source.input].root().display(), source.name.escape_debug()),
        format!("NaN or infinity at flat index {position}"),
    )
    .with_hint(hint)
}

/// Measures, solves and applies whole segments that lie in one block.
///
/// # Errors
///
/// As [`measure`], and what the method refuses.
pub fn whole(bench: &Workbench, part: &Part<'_>, method: &dyn Method, output: &mut [u8]) -> Result<Found> {
    if let Some(lanes) = bench.lanes.as_ref().filter(|_| is_worth_it(part.tensor())) {
        return bench.offload(lanes, part).whole(method, output);
    }
    let mut found = Found::default();
    let len = part.len();
    let mut scratch = bench.scratch();
    if !is_measured(part.tensor()) {
        let solution = method.solve(&Gram::new(part.windows.len()))?;
        found.overflowed = combine(bench, part, &solution, 0..len, false, output, &mut scratch)?;
        return Ok(found);
    }
    let segment = usize::try_from(part.tensor().segment).expect("a block fits the memory").max(1);
    let unit = part.tensor().dtype.bytes();
    for start in (0..len).step_by(segment) {
        let range = start..len.min(start + segment);
        let measured = measure_range(bench, part, method, range.clone(), &mut scratch)?;
        let solution = solve(part.tensor(), method, &fold(part.windows.len(), &measured), measured.replaced)?;
        found.add(Found::of(&solution.facts));
        let bytes = &mut output[range.start * unit..range.end * unit];
        found.overflowed += combine(bench, part, &solution, range, true, bytes, &mut scratch)?;
    }
    Ok(found)
}

/// The Gram matrix of what was measured.
pub fn fold(inputs: usize, measured: &Measured) -> Gram {
    let mut gram = Gram::new(inputs);
    measured.sums.chunks_exact(kernel::pair_count(inputs)).for_each(|chunk| gram.add(chunk));
    gram
}

/// The solution of a segment of `tensor` that was measured whole.
///
/// # Errors
///
/// What the method refuses; that the base is needed and lacks the tensor.
pub fn solve(tensor: &TensorPlan, method: &dyn Method, gram: &Gram, replaced: bool) -> Result<Solution> {
    match method.statistics() {
        _ if replaced => base_instead(tensor),
        Statistics::None => method.solve(&Gram::new(0)),
        statistics => {
            tiny::refuse(tensor, statistics, gram)?;
            method.solve(gram)
        }
    }
}

/// Combines a block by a known solution; returns how many finite values overflowed.
///
/// # Errors
///
/// None on the processor; [`Kind::Device`] when the device fails.
pub fn apply(bench: &Workbench, part: &Part<'_>, solution: &Solution, output: &mut [u8]) -> Result<u64> {
    match &bench.lanes {
        Some(lanes) => bench.offload(lanes, part).apply(solution, 0..part.len(), output),
        None => combine(bench, part, solution, 0..part.len(), true, output, &mut bench.scratch()),
    }
}

/// Combines a range by a known solution. Unless it was looked through while it was `measured`, what is not finite is
/// refused here or let through; the base is not asked for.
///
/// # Errors
///
/// [`Kind::NonFinite`] as in [`is_replaced`], for what was not measured.
fn combine(
    bench: &Workbench,
    part: &Part<'_>,
    solution: &Solution,
    range: Range<usize>,
    measured: bool,
    output: &mut [u8],
    scratch: &mut Scratch,
) -> Result<u64> {
    let unit = part.tensor().dtype.bytes();
    let first = range.start;
    let mut overflowed = 0;
    for chunk in chunks(range) {
        let bytes = &mut output[(chunk.start - first) * unit..(chunk.end - first) * unit];
        let (count, finite) = combine_chunk(bench.kernels, part, solution, &chunk, bytes, scratch);
        overflowed += count;
        if count > 0 {
            refuse_overflow(bench.kernels, part, &chunk, bytes)?;
        }
        if !measured && !finite {
            is_replaced(bench.kernels, part, chunk)?;
        }
    }
    Ok(overflowed)
}

/// Combines a chunk; returns how many finite values overflowed, and whether all inputs are known by it to be finite.
pub fn combine_chunk(
    kernels: Kernels,
    part: &Part<'_>,
    solution: &Solution,
    chunk: &Range<usize>,
    output: &mut [u8],
    scratch: &mut Scratch,
) -> (u64, bool) {
    let (dtype, inputs) = (part.tensor().dtype, part.elements(chunk));
    if let Some(input) = only(solution, &inputs) {
        let overflows = kernels.convert(inputs[input], dtype, output);
        let_through(kernels, part, solution, chunk, output);
        return (overflows, false);
    }
    let count = inputs.len();
    let others = |(input, weight): &(usize, f64)| *weight != 0.0 && Some(*input) != solution.center;
    let weights = solution.coefficients.iter().copied().enumerate();
    let terms: Vec<(f64, Elements<'_>)> =
        weights.filter(others).map(|(input, weight)| (weight, inputs[input])).collect();
    let (found, taken) = match solution.center {
        None => (kernels.combine(&terms, solution.divisor, dtype, scratch, output), terms.len()),
        Some(center) => {
            let base = (solution.coefficients[center], inputs[center]);
            (kernels.combine_differences(base, &terms, dtype, scratch, output), terms.len() + 1)
        }
    };
    let_through(kernels, part, solution, chunk, output);
    // What has no weight takes no part in the sums.
    (found.overflows, found.finite && taken == count)
}

/// Copies a carried block and reports which inputs hold other bytes.
pub fn carry(part: &Part<'_>, output: &mut [u8]) -> Found {
    let tensor = part.tensor();
    let Action::Carry(taken) = tensor.action else { unreachable!("only carried tensors are scheduled to be carried") };
    output.copy_from_slice(&part.windows[taken]);
    let differing = tensor.sources.iter().zip(part.windows).filter(|(_, window)| window[..] != *output);
    Found { differing: differing.map(|(source, _)| source.input).collect(), ..Found::default() }
}

/// The chunks of `range`, counted from its start.
pub fn chunks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(CHUNK).map(move |start| start..range.end.min(start + CHUNK))
}
