//! The statistic of a group: measured by chunk, folded in plan order, saved.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::kernel::{GramOptions, pair_count};
use crate::method::elementwise::{Progress, Sums};
use crate::method::{Gram, Method, Statistics};
use crate::plan::assign::Span;
use crate::plan::tensor::TensorPlan;

use super::bench::{Bench, Run, Seat};
use super::gram_by_column::GramByColumn;
use super::policy::Policy;
use super::rule::Rule;
use super::stretch::{Stretch, chunks, cut, method_of};
use super::tiny;

/// The statistic of a group so far. As JSON it is an object with one key, the kind; numbers keep
/// every bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// The inner products of all elements; all zero for a method that needs none.
    Gram(Gram),
    /// The inner products of each vector along the first axis.
    GramByColumn(GramByColumn),
    /// The sweeps of a method that works element by element. It is never saved: a tensor is measured
    /// again.
    #[serde(skip)]
    Elements(Box<Progress>),
}

/// The sums of some chunks, in their order.
#[derive(Debug, Default)]
pub struct Measured {
    /// For each chunk, the inner products of every pair of inputs.
    sums: Vec<f64>,
    /// The chunks for which the base is to be taken, because an input is not finite there.
    replaced: Vec<usize>,
    chunks: usize,
    /// The sums of a sweep over elements.
    elements: Sums,
}

impl Statistic {
    /// The empty statistic for a group of `tensor`.
    pub(super) fn new(tensor: &TensorPlan) -> Self {
        if let Some(method) = method_of(tensor).elementwise() {
            let elements = (tensor.span != Span::Model).then_some(tensor.segment);
            return Self::Elements(Box::new(Progress::new(method, elements)));
        }
        match tensor.span {
            Span::FirstAxis => Self::GramByColumn(GramByColumn::new(tensor)),
            _ => Self::Gram(Gram::new(tensor.sources.len())),
        }
    }

    /// Tells if stretches must be added one after the other, in order, because their sums run on
    /// from one to the next.
    pub(super) fn is_sequential(&self) -> bool {
        match self {
            Self::Gram(_) | Self::Elements(_) => false,
            Self::GramByColumn(_) => true,
        }
    }

    /// Measures a stretch that follows the one before, on the threads of the bench. The caller must
    /// fold the result.
    ///
    /// # Errors
    ///
    /// As [`measure_run`].
    pub(super) fn add(&mut self, bench: &dyn Bench, stretch: &Stretch<'_>) -> Result<Measured> {
        match self {
            Self::Gram(_) => measure(bench, stretch),
            Self::Elements(_) => unreachable!("sweeps over elements have an order of their own"),
            Self::GramByColumn(columns) => {
                columns.add(bench, stretch).map(|()| Measured::default())
            }
        }
    }

    /// Folds in the sums of some chunks; the caller folds earlier chunks first.
    pub(super) fn fold(&mut self, measured: &Measured, chunks: &Range<usize>) {
        match self {
            Self::Gram(gram) => {
                let width = measured.sums.len() / measured.chunks.max(1);
                let sums = &measured.sums[chunks.start * width..chunks.end * width];
                // Sums to twice the digits are two for each pair, added one after the other.
                sums.chunks_exact(pair_count(gram.n()))
                    .for_each(|sums| gram.add(sums));
            }
            // Sums by column were added when they were measured.
            Self::GramByColumn(_) => {}
            Self::Elements(progress) => progress.fold(&measured.elements),
        }
    }

    /// Solves for the rule of a group whose last elements are of `tensor`.
    ///
    /// # Errors
    ///
    /// [`Kind::NonFinite`] for squares that underflow; a refusal by the method.
    pub(super) fn solve(self, bench: &dyn Bench, tensor: &TensorPlan) -> Result<Rule> {
        let method = method_of(tensor);
        match self {
            Self::Gram(gram) => solve_gram(tensor, method, &gram),
            Self::GramByColumn(columns) => columns.solve(bench, tensor, method).map(Rule::ByColumn),
            Self::Elements(progress) => {
                let method = method.elementwise().expect("elements are swept for it");
                Ok(Rule::ByElement(Box::new(progress.rule(method))))
            }
        }
    }
}

fn solve_gram(tensor: &TensorPlan, method: &dyn Method, gram: &Gram) -> Result<Rule> {
    let solution = match method.statistics() {
        Statistics::None => method.solve(&Gram::new(0)),
        statistics => {
            tiny::refuse(tensor, statistics, gram)?;
            method.solve(gram)
        }
    };
    solution.map(Rule::Combine)
}

impl Measured {
    /// Appends the sums of the next chunks.
    pub(super) fn append(&mut self, next: Self) {
        self.replaced
            .extend(next.replaced.iter().map(|chunk| self.chunks + chunk));
        self.chunks += next.chunks;
        self.sums.extend(next.sums);
        self.elements.append(next.elements);
    }

    /// The number of chunks.
    pub(super) fn chunks(&self) -> usize {
        self.chunks
    }

    /// Tells if the base is to be taken for one of `chunks`.
    pub(super) fn is_replaced(&self, chunks: &Range<usize>) -> bool {
        self.replaced.iter().any(|chunk| chunks.contains(chunk))
    }
}

impl Measured {
    /// The sums of one sweep over a stretch of elements, as one chunk.
    pub(super) fn of_elements(elements: Sums, replaced: bool) -> Self {
        Self {
            replaced: if replaced { vec![0] } else { vec![] },
            chunks: 1,
            elements,
            sums: vec![],
        }
    }
}

/// Measures all chunks of a stretch.
///
/// # Errors
///
/// As [`measure_run`].
pub(super) fn measure(bench: &dyn Bench, stretch: &Stretch<'_>) -> Result<Measured> {
    let all = 0..stretch.len();
    let most = bench.run_len(stretch.tensor(), all.len());
    measure_range(&mut *bench.seat()?, stretch, &all, most)
}

/// Measures a range of a stretch in runs of at most `most` elements.
///
/// # Errors
///
/// As [`measure_run`].
pub(super) fn measure_range(
    seat: &mut dyn Seat,
    stretch: &Stretch<'_>,
    range: &Range<usize>,
    most: usize,
) -> Result<Measured> {
    let mut measured = Measured::default();
    for range in cut(range, most) {
        let mut run = seat.load(stretch.elements(&range), stretch.tensor().dtype)?;
        let chunks: Vec<Range<usize>> = chunks(&(0..range.len())).collect();
        measured.append(measure_run(
            &mut *run,
            stretch.policy.moved(range.start),
            &chunks,
        )?);
    }
    Ok(measured)
}

/// Measures `chunks` of a run.
///
/// # Errors
///
/// [`Kind::NonFinite`] when an input holds NaN or infinity and that is not allowed, or when squares
/// overflow; [`Kind::Device`] when the device fails.
pub(super) fn measure_run(
    run: &mut dyn Run,
    policy: Policy<'_>,
    chunks: &[Range<usize>],
) -> Result<Measured> {
    let statistics = method_of(policy.tensor).statistics();
    if statistics == Statistics::None {
        return scan(run, policy, chunks);
    }
    let width = statistics.sums(run.host().inputs.len());
    let mut measured = Measured {
        sums: vec![0.0; chunks.len() * width],
        replaced: vec![],
        chunks: chunks.len(),
        elements: Sums::default(),
    };
    sum(run, statistics, chunks, false, &mut measured.sums)?;
    for (index, (chunk, sums)) in chunks
        .iter()
        .zip(measured.sums.chunks_exact_mut(width))
        .enumerate()
    {
        if !all_finite(sums) && is_replaced(run, policy, chunk)? {
            sums.fill(0.0);
            measured.replaced.push(index);
            continue;
        }
        if !all_finite(sums) {
            remeasure_finite(run, policy, chunk, sums)?;
        }
        let host = run.host();
        tiny::mark(host.kernels, host.inputs, chunk, statistics, sums);
    }
    Ok(measured)
}

/// Computes the sums for `statistics`, chunk by chunk; with `skip_nonfinite`, odd elements count as
/// zero.
fn sum(
    run: &mut dyn Run,
    statistics: Statistics,
    chunks: &[Range<usize>],
    skip_nonfinite: bool,
    sums: &mut [f64],
) -> Result<()> {
    match statistics {
        Statistics::None | Statistics::Elements => Ok(()),
        Statistics::Gram { center } => run.gram(
            chunks,
            GramOptions {
                center,
                skip_nonfinite,
            },
            sums,
        ),
        Statistics::Wide => run.gram_wide(chunks, skip_nonfinite, sums),
    }
}

/// Measures a chunk again without its elements that are not finite.
///
/// # Errors
///
/// [`Kind::NonFinite`] when the sums still overflow: so do the squares of finite values.
fn remeasure_finite(
    run: &mut dyn Run,
    policy: Policy<'_>,
    chunk: &Range<usize>,
    sums: &mut [f64],
) -> Result<()> {
    let statistics = method_of(policy.tensor).statistics();
    sum(run, statistics, std::slice::from_ref(chunk), true, sums)?;
    if all_finite(sums) {
        return Ok(());
    }
    let cause = "the squares of its values overflow f64";
    Err(Error::new(
        Kind::NonFinite,
        "cannot measure",
        &policy.tensor.name,
        cause,
    )
    .with_hint("values beyond 1e150 in an F64 tensor have no norm that f64 can hold"))
}

/// Looks for NaN and infinity when no sums are needed.
fn scan(run: &mut dyn Run, policy: Policy<'_>, chunks: &[Range<usize>]) -> Result<Measured> {
    let mut measured = Measured {
        chunks: chunks.len(),
        ..Measured::default()
    };
    if policy.lets_through() {
        return Ok(measured);
    }
    let odd = run.scan(chunks)?;
    for (index, chunk) in chunks.iter().enumerate().filter(|(index, _)| odd[*index]) {
        if is_replaced(run, policy, chunk)? {
            measured.replaced.push(index);
        }
    }
    Ok(measured)
}

fn is_replaced(run: &mut dyn Run, policy: Policy<'_>, chunk: &Range<usize>) -> Result<bool> {
    let host = run.host();
    policy.judge_chunk(host.kernels, host.inputs, chunk)
}

fn all_finite(sums: &[f64]) -> bool {
    sums.iter().all(|sum| sum.is_finite())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn statistics_are_saved_under_their_kind_and_keep_every_bit() {
        let mut gram = Gram::from_sums(2, vec![0.1, -0.0, f64::MAX]);
        gram.add(&[1e-300, 4.9e-324, f64::MAX]);
        let columns =
            json!({ "inputs": 2, "sums": [0.1, 1e-17, -0.0, 0.0, "inf", 4.9e-324], "odd": [true] });
        let columns = serde_json::from_value(columns).expect("sums of one column");
        for (kind, statistic) in [
            ("gram", Statistic::Gram(gram)),
            ("gram_by_column", Statistic::GramByColumn(columns)),
        ] {
            let text = serde_json::to_string(&statistic).expect("plain data");
            assert!(text.starts_with(&format!("{{\"{kind}\":")), "{text}");
            assert_eq!(
                serde_json::from_str::<Statistic>(&text).expect("a statistic"),
                statistic
            );
        }
        let torn = json!({ "gram_by_column": { "inputs": 1, "sums": [0.1], "odd": [false] } });
        assert!(serde_json::from_value::<Statistic>(torn).is_err());
    }

    #[test]
    fn chunks_that_are_appended_keep_their_places() {
        let part = |chunks, replaced| Measured {
            sums: vec![1.0; chunks],
            replaced,
            chunks,
            elements: Sums::default(),
        };
        let mut measured = part(3, vec![2]);
        measured.append(part(2, vec![0]));
        let replaced: Vec<bool> = (0..5)
            .map(|chunk| measured.is_replaced(&(chunk..chunk + 1)))
            .collect();
        assert_eq!(
            (measured.chunks(), replaced),
            (5, vec![false, false, true, true, false])
        );
    }
}
