//! The work on one stretch of a tensor, on any thread of a bench: it is measured, combined by a
//! known rule, or both at once if its groups are whole in it.

use std::ops::Range;

use crate::checkpoint::Window;
use crate::error::Result;
use crate::kernel::CHUNK;
use crate::method::Gram;
use crate::plan::Plan;
use crate::plan::schedule::{Block, is_measured};
use crate::plan::tensor::Action;

use super::bench::{Bench, Seat};
use super::elements::{self, Applying, Tied};
use super::found::Found;
use super::group::Group;
use super::rule::{self, Rule};
use super::statistic::{self, Measured};
use super::stretch::{Stretch, chunks, cut};
use super::turn::Turn;

/// The work on the elements of one block.
pub struct Work<'a> {
    bench: &'a dyn Bench,
    stretch: Stretch<'a>,
}

impl<'a> Work<'a> {
    /// The work on `block` of `plan`, whose bytes are in `windows`, one for each source.
    pub fn new(bench: &'a dyn Bench, plan: &'a Plan, block: &Block, windows: &'a [Window]) -> Self {
        Self {
            bench,
            stretch: Stretch::new(plan, block, windows),
        }
    }

    /// Measures all elements as `turn` says, to be folded into a group in plan order; `tied`
    /// elements of the group went by before.
    ///
    /// # Errors
    ///
    /// [`Kind::NonFinite`](crate::error::Kind::NonFinite) when an input holds NaN or infinity and
    /// that is not allowed, or when squares overflow; [`Kind::Device`](crate::error::Kind::Device)
    /// when the device fails.
    pub fn measure(&self, turn: &Turn, tied: &Tied) -> Result<Measured> {
        match turn.sweep {
            None => statistic::measure(self.bench, &self.stretch),
            Some(_) => elements::measure_stretch(self.bench, &self.stretch, turn, tied),
        }
    }

    /// Counts the elements that are tied at the thresholds of the current sweep's rule.
    ///
    /// # Errors
    ///
    /// None on the processor, which does this for every bench.
    pub fn count_tied_in(&self, turn: &Turn) -> Result<Tied> {
        match turn.rule() {
            Some(rule) => elements::count_stretch(self.bench, &self.stretch, rule),
            None => Ok(Tied::default()),
        }
    }

    /// Counts the elements that are tied at the thresholds of `rule`.
    ///
    /// # Errors
    ///
    /// None on the processor, which does this for every bench.
    pub fn count_tied(&self, rule: &Rule) -> Result<Tied> {
        match rule {
            Rule::ByElement(rule) => elements::count_stretch(self.bench, &self.stretch, rule),
            _ => Ok(Tied::default()),
        }
    }

    /// Measures all elements, which follow those added to `group` before, and folds them in.
    ///
    /// # Errors
    ///
    /// As [`Work::measure`].
    pub fn add_to(&self, group: &mut Group) -> Result<()> {
        group.add(self.bench, &self.stretch)
    }

    /// Combines all elements, which must have been measured, by `rule` into `output`, the bytes of
    /// the stretch in the output tensor; `tied` elements of the group went by before.
    ///
    /// # Errors
    ///
    /// [`Kind::NonFinite`](crate::error::Kind::NonFinite) for an overflow that would be NaN;
    /// [`Kind::Device`](crate::error::Kind::Device) when the device fails.
    pub fn apply(&self, rule: &Rule, tied: &Tied, output: &mut [u8]) -> Result<Found> {
        if let Rule::ByElement(rule) = rule {
            let applying = Applying {
                rule,
                tied,
                measured: true,
            };
            return elements::apply_stretch(self.bench, &self.stretch, applying, output);
        }
        let all = 0..self.stretch.len();
        let bench = rule.bench(self.bench);
        let most = bench.run_len(self.stretch.tensor(), all.len());
        let overflowed = self.apply_range(
            &mut *bench.seat()?,
            &all,
            most,
            Applied {
                rule,
                measured: true,
            },
            output,
        )?;
        Ok(Found {
            overflowed,
            ..Found::default()
        })
    }

    /// Combines a range in runs of at most `most` elements; returns the number of finite values
    /// that overflowed.
    fn apply_range(
        &self,
        seat: &mut dyn Seat,
        range: &Range<usize>,
        most: usize,
        applied: Applied<'_>,
        output: &mut [u8],
    ) -> Result<u64> {
        let tensor = self.stretch.tensor();
        let mut overflowed = 0;
        let mut rest = output;
        for range in cut(range, most) {
            let (bytes, after) = rest.split_at_mut(range.len() * tensor.dtype.bytes());
            let mut run = seat.load(self.stretch.elements(&range), tensor.dtype)?;
            let chunks = chunks(&(0..range.len())).map(|chunk| (chunk, applied.rule));
            let policy = self.stretch.policy.moved(range.start);
            overflowed += rule::apply(&mut *run, policy, chunks, applied.measured, bytes)?;
            rest = after;
        }
        Ok(overflowed)
    }

    /// Measures, solves and combines groups that are whole in the stretch; copies carried bytes.
    ///
    /// # Errors
    ///
    /// As [`Work::measure`] and [`Work::apply`], or a refusal by the method.
    pub fn whole(&self, output: &mut [u8]) -> Result<Found> {
        let tensor = self.stretch.tensor();
        if let Action::Carry(taken) = tensor.action {
            return Ok(self.carry(taken, output));
        }
        if let Some(method) = self.stretch.method().elementwise() {
            return elements::whole(self.bench, &self.stretch, method, output);
        }
        if !is_measured(tensor) {
            return self.combine_unmeasured(output);
        }
        let group = usize::try_from(tensor.segment)
            .expect("a block fits the memory")
            .max(1);
        let bench = self.bench.for_groups(group);
        let most = bench.run_len(tensor, group);
        let mut seat = bench.seat()?;
        let mut found = Found::default();
        for range in cut(&(0..self.stretch.len()), most.max(group)) {
            let bytes =
                &mut output[range.start * tensor.dtype.bytes()..range.end * tensor.dtype.bytes()];
            found.add(match range.len() <= most {
                true => self.groups(&mut *seat, &range, group, bytes)?,
                false => self.group(&mut *seat, &range, most, bytes)?,
            });
        }
        Ok(found)
    }

    /// Combines elements whose rule does not depend on them.
    fn combine_unmeasured(&self, output: &mut [u8]) -> Result<Found> {
        let all = 0..self.stretch.len();
        let tensor = self.stretch.tensor();
        let rule = Rule::Combine(
            self.stretch
                .method()
                .solve(&Gram::new(tensor.sources.len()))?,
        );
        let most = self.bench.run_len(tensor, all.len());
        let applied = Applied {
            rule: &rule,
            measured: false,
        };
        let overflowed = self.apply_range(&mut *self.bench.seat()?, &all, most, applied, output)?;
        Ok(Found {
            overflowed,
            ..Found::default()
        })
    }

    /// Measures, solves and combines one group in several runs.
    fn group(
        &self,
        seat: &mut dyn Seat,
        range: &Range<usize>,
        most: usize,
        output: &mut [u8],
    ) -> Result<Found> {
        let mut group = Group::new(self.stretch.tensor());
        group.fold(&statistic::measure_range(seat, &self.stretch, range, most)?);
        let rule = group.rule(self.bench, self.stretch.tensor())?;
        let applied = Applied {
            rule: &rule,
            measured: true,
        };
        let overflowed = self.apply_range(seat, range, most, applied, output)?;
        let mut found = rule.found();
        found.overflowed += overflowed;
        Ok(found)
    }

    /// Measures, solves and combines the groups of one run.
    fn groups(
        &self,
        seat: &mut dyn Seat,
        range: &Range<usize>,
        len: usize,
        output: &mut [u8],
    ) -> Result<Found> {
        let tensor = self.stretch.tensor();
        let policy = self.stretch.policy.moved(range.start);
        let mut run = seat.load(self.stretch.elements(range), tensor.dtype)?;
        let groups = || cut(&(0..range.len()), len);
        let all: Vec<Range<usize>> = groups().flat_map(|group| chunks(&group)).collect();
        let measured = statistic::measure_run(&mut *run, policy, &all)?;
        let mut found = Found::default();
        let mut rules = Vec::with_capacity(range.len().div_ceil(len));
        let mut first = 0;
        for range in groups() {
            let of_group = first..first + range.len().div_ceil(CHUNK);
            first = of_group.end;
            let mut group = Group::new(tensor);
            group.fold_chunks(&measured, &of_group);
            let rule = group.rule(self.bench, self.stretch.tensor())?;
            found.add(rule.found());
            rules.push((of_group, rule));
        }
        let pieces = rules.iter().flat_map(|(chunks, rule)| {
            all[chunks.clone()]
                .iter()
                .map(move |chunk| (chunk.clone(), rule))
        });
        found.overflowed += rule::apply(&mut *run, policy, pieces, true, output)?;
        Ok(found)
    }

    /// Copies a carried tensor's bytes from source `taken`, and reports the inputs that hold other
    /// bytes.
    fn carry(&self, taken: usize, output: &mut [u8]) -> Found {
        let windows = self.stretch.elements(&(0..self.stretch.len()));
        output.copy_from_slice(windows[taken].bytes);
        let differing = self
            .stretch
            .tensor()
            .sources
            .iter()
            .zip(&windows)
            .filter(|(_, window)| *window.bytes != *output);
        Found {
            differing: differing.map(|(source, _)| source.input).collect(),
            ..Found::default()
        }
    }
}

/// A rule, and a flag, true if the elements that it is applied to were measured before.
#[derive(Clone, Copy)]
struct Applied<'a> {
    rule: &'a Rule,
    measured: bool,
}
