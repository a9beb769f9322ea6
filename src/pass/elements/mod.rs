//! Methods that work element by element: the sweeps over a stretch, and the rule applied to it, on
//! the processor for every bench.
//!
//! Elements are worked on in pieces of at most a chunk, counted from the start of the stretch, or
//! from the start of each row where rows must be seen together; the sums of a piece have a fixed
//! shape, so no bit depends on blocks.
//!
//! - `held`: the elements of base and models, their keys and sums. `selector`: what a rule keeps of
//!   them, piece by piece.

mod held;
mod selector;

use crate::error::Result;
use crate::kernel::Elements;
use crate::kernel::select::{Deltas, MixCounts, Power};
use crate::method::elementwise::{ElementRule, Elementwise, Progress, Stream, Sums, Sweep};
use crate::plan::schedule::is_measured;

use super::bench::{Bench, Host, Run, sliced};
use super::found::{Found, Selection};
use super::policy::Policy;
use super::rule::{self, Rule};
use super::statistic::Measured;
use super::stretch::{Stretch, chunks, cut};
use super::turn::Turn;
use held::Held;
use selector::Selector;

/// The tied elements of a group that went by, at the lower and at the upper edge of each selection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tied(Vec<[u64; 2]>);

impl Tied {
    /// Adds the tied elements of the next stretch.
    pub fn add(&mut self, next: &Self) {
        self.0.resize(self.0.len().max(next.0.len()), [0; 2]);
        for (own, next) in self.0.iter_mut().zip(&next.0) {
            own[0] += next[0];
            own[1] += next[1];
        }
    }

    fn at(&self, selection: usize) -> [u64; 2] {
        self.0.get(selection).copied().unwrap_or_default()
    }
}

/// One sweep over the elements of a run.
struct Sweeping<'a> {
    method: &'a Elementwise,
    sweep: &'a Sweep,
    /// True if elements that are not finite are looked for.
    is_first: bool,
    /// The tied elements before the run.
    tied: &'a Tied,
}

/// A rule that is applied to a run.
#[derive(Clone, Copy)]
pub(super) struct Applying<'a> {
    pub(super) rule: &'a ElementRule,
    /// The tied elements before the run.
    pub(super) tied: &'a Tied,
    /// True if elements that are not finite were looked for before.
    pub(super) measured: bool,
}

/// Makes the sweep of `turn` over a stretch.
///
/// # Errors
///
/// As [`measure`].
pub(super) fn measure_stretch(
    bench: &dyn Bench,
    stretch: &Stretch<'_>,
    turn: &Turn,
    tied: &Tied,
) -> Result<Measured> {
    let (Some(method), Some(sweep)) = (stretch.method().elementwise(), &turn.sweep) else {
        return Ok(Measured::default());
    };
    let sweeping = Sweeping {
        method,
        sweep,
        is_first: turn.is_first,
        tied,
    };
    let all = 0..stretch.len();
    let mut seat = bench.for_groups(1).seat()?;
    let mut run = seat.load(stretch.elements(&all), stretch.tensor().dtype)?;
    let (sums, replaced) = measure(run.host(), stretch.policy, &sweeping)?;
    Ok(Measured::of_elements(sums, replaced))
}

/// Counts the elements of a stretch that are tied at the edges of a rule.
///
/// # Errors
///
/// None on the processor.
pub(super) fn count_stretch(
    bench: &dyn Bench,
    stretch: &Stretch<'_>,
    rule: &ElementRule,
) -> Result<Tied> {
    let all = 0..stretch.len();
    let mut seat = bench.for_groups(1).seat()?;
    let mut run = seat.load(stretch.elements(&all), stretch.tensor().dtype)?;
    Ok(count_tied(run.host(), stretch.policy, rule))
}

/// Applies a rule to a stretch.
///
/// # Errors
///
/// As [`apply`].
pub(super) fn apply_stretch(
    bench: &dyn Bench,
    stretch: &Stretch<'_>,
    applying: Applying<'_>,
    output: &mut [u8],
) -> Result<Found> {
    let all = 0..stretch.len();
    let mut seat = bench.for_groups(1).seat()?;
    let mut run = seat.load(stretch.elements(&all), stretch.tensor().dtype)?;
    apply(run.host(), stretch.policy, applying, output)
}

/// Measures, solves and computes groups that are whole in the stretch; elements that need no
/// measuring at once.
///
/// # Errors
///
/// As [`measure`] and [`apply`].
pub(super) fn whole(
    bench: &dyn Bench,
    stretch: &Stretch<'_>,
    method: &Elementwise,
    output: &mut [u8],
) -> Result<Found> {
    let tensor = stretch.tensor();
    if !is_measured(tensor) {
        let rule = Progress::new(method, None).rule(method);
        let applying = Applying {
            rule: &rule,
            tied: &Tied::default(),
            measured: false,
        };
        return apply_stretch(bench, stretch, applying, output);
    }
    let group = usize::try_from(tensor.segment).expect("a block fits the memory");
    let mut seat = bench.for_groups(1).seat()?;
    let mut found = Found::default();
    for range in cut(&(0..stretch.len()), group.max(1)) {
        let policy = stretch.policy.moved(range.start);
        let mut run = seat.load(stretch.elements(&range), tensor.dtype)?;
        let rule = rule_of(&mut *run, policy, method)?;
        found.add(rule.found());
        let unit = tensor.dtype.bytes();
        let bytes = &mut output[range.start * unit..range.end * unit];
        found.add(apply_whole(&mut *run, policy, &rule, bytes)?);
    }
    Ok(found)
}

/// Applies the rule of a group that is whole in a run.
fn apply_whole(
    run: &mut dyn Run,
    policy: Policy<'_>,
    rule: &Rule,
    output: &mut [u8],
) -> Result<Found> {
    if let Rule::ByElement(rule) = rule {
        let applying = Applying {
            rule,
            tied: &Tied::default(),
            measured: true,
        };
        return apply(run.host(), policy, applying, output);
    }
    let all = 0..run.host().inputs.first().map_or(0, Elements::len);
    let pieces = chunks(&all).map(|chunk| (chunk, rule));
    Ok(Found {
        overflowed: rule::apply(run, policy, pieces, true, output)?,
        ..Found::default()
    })
}

/// Makes all sweeps over a group that is whole in a run.
fn rule_of(run: &mut dyn Run, policy: Policy<'_>, method: &Elementwise) -> Result<Rule> {
    let elements = run.host().inputs[method.base].len() as u64;
    let mut progress = Progress::new(method, Some(elements));
    loop {
        let sweep = progress.sweep().clone();
        let sweeping = Sweeping {
            method,
            sweep: &sweep,
            is_first: progress.is_first(method),
            tied: &Tied::default(),
        };
        let (sums, replaced) = measure(run.host(), policy, &sweeping)?;
        if replaced {
            return Rule::base_instead(policy.tensor);
        }
        progress.fold(&sums);
        if progress.advance(method).is_none() {
            return Ok(Rule::ByElement(Box::new(progress.rule(method))));
        }
    }
}

/// Makes a sweep over the elements of a run, which lie in `policy`; returns its sums, and the
/// chunks for which the base is to be taken.
///
/// # Errors
///
/// [`Kind::NonFinite`](crate::error::Kind::NonFinite) when an input holds NaN or infinity and that
/// is not allowed.
fn measure(host: Host<'_>, policy: Policy<'_>, sweeping: &Sweeping<'_>) -> Result<(Sums, bool)> {
    let Sweeping {
        method,
        sweep,
        is_first,
        tied,
    } = sweeping;
    let models = method.models.iter().map(|model| model.input);
    let mut held = Held::new(host, policy, method.base, models);
    let mut sums = Sums::default();
    if *is_first {
        sums.elements = held.len() as u64;
        let mut replaced = false;
        for chunk in held.pieces(false) {
            replaced |= policy.judge_chunk(held.host.kernels, held.host.inputs, &chunk)?;
        }
        if replaced {
            return Ok((sums, true));
        }
    }
    match sweep {
        Sweep::Scan => {}
        Sweep::Histogram(histogram) => held.count(histogram),
        Sweep::Refine(refinement) => held.count_in_bins(refinement),
        Sweep::Sums { rule, power } => sums.sums = kept_sums(&mut held, rule, tied, *power)?,
        Sweep::Shared { epsilon } => sums.shared = held.shared(*epsilon),
    }
    Ok((sums, false))
}

/// Sums over all and over the kept elements of each model, piece by piece.
fn kept_sums(
    held: &mut Held<'_, '_>,
    rule: &ElementRule,
    tied: &Tied,
    power: Power,
) -> Result<Vec<[f64; 2]>> {
    let mut sums: Vec<[f64; 2]> = Vec::new();
    let mut selector = Selector::new(rule, held, tied);
    selector.each(held, |held, piece, picks| {
        let models = sliced(&held.models, &piece);
        let deltas = Deltas {
            base: held.base.slice(piece),
            models: &models,
        };
        let at = sums.len();
        sums.resize(at + models.len(), [0.0; 2]);
        let Host {
            kernels, scratch, ..
        } = &mut held.host;
        kernels.kept_sums(deltas, picks, power, scratch, &mut sums[at..]);
        Ok(())
    })?;
    Ok(sums)
}

/// Counts the elements of a run that are tied at the edges of a rule.
fn count_tied(host: Host<'_>, policy: Policy<'_>, rule: &ElementRule) -> Tied {
    let models = rule.models.iter().map(|model| model.input);
    let mut held = Held::new(host, policy, rule.base, models);
    let keeps = rule.keeps();
    let mut tied = vec![[0; 2]; keeps.len()];
    for (at, (keep, tied)) in keeps.iter().zip(&mut tied).enumerate() {
        let edges = keep.edges();
        if edges == [None, None] {
            continue;
        }
        let stream = match rule.together {
            Some(_) => Stream::Deviation,
            None => Stream::Magnitude(at),
        };
        held.stream(stream, &mut |keys| {
            for (count, edge) in tied.iter_mut().zip(edges) {
                let Some(edge) = edge else { continue };
                *count += keys.iter().filter(|key| **key == edge.key).count() as u64;
            }
        });
    }
    Tied(tied)
}

/// Applies a rule to the elements of a run.
///
/// If they were not measured, elements that are not finite are refused here or let through.
///
/// # Errors
///
/// [`Kind::NonFinite`](crate::error::Kind::NonFinite) for such an element, or for an overflow that
/// would be NaN.
fn apply(
    host: Host<'_>,
    policy: Policy<'_>,
    applying: Applying<'_>,
    output: &mut [u8],
) -> Result<Found> {
    let (rule, measured) = (applying.rule, applying.measured);
    let out = host.out;
    let models = rule.models.iter().map(|model| model.input);
    let mut held = Held::new(host, policy, rule.base, models);
    let mut selector = Selector::new(rule, &held, applying.tied);
    let mut counts = MixCounts::new(rule.models.len());
    let mut overflowed = 0;
    selector.each(&mut held, |held, piece, picks| {
        let bytes = &mut output[piece.start * out.bytes()..piece.end * out.bytes()];
        counts.finite = true;
        let overflows = held.mix(&piece, picks, &rule.mix, bytes, &mut counts);
        let (kernels, inputs) = (held.host.kernels, held.host.inputs);
        if !measured && !counts.finite {
            policy.judge_chunk(kernels, inputs, &piece)?;
        }
        if overflows > 0 {
            policy.refuse_overflow(kernels, &piece, bytes)?;
        }
        overflowed += overflows;
        Ok(())
    })?;
    let elements = held.len() as u64;
    Ok(Found {
        overflowed,
        selection: Some(Box::new(Selection::applied(rule, &counts, elements))),
        ..Found::default()
    })
}
