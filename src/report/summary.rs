//! The summary at the end of a merge.

use std::fmt;

use serde::Serialize;

use crate::budget::{format_bytes, peak_resident_bytes};
use crate::error::shown_name;
use crate::output::Manifest;
use crate::plan::agree::Partial;
use crate::plan::tensor::Action;
use crate::plan::{AlignmentFile, Plan};

use super::words::{counted, grouped};
use super::{Combined, Met, Noticed, Oddity, Selected};

/// Advice for users of compressed shards.
const UNPACK: &str =
    "thalweg reads .zst shards as they are; for transformers unpack them with `zstd -d --rm *.zst`";

/// The most files that a line names before it only counts.
const FILES_NAMED: usize = 8;

/// The result of a merge, for people (`Display`) and for programs (serde).
///
/// # Examples
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/support/mod.rs"));
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = models()?;
/// # let text = recipe(folder.path());
/// # use thalweg::{Options, Plan, Recipe, Target, merge};
/// # let plan = Plan::of(&Recipe::parse(&text, "recipe.yml")?)?;
/// let report = merge(plan, Target::new(folder.path().join("merged")), Options::default())?;
/// println!("{report}"); // for people
/// let json = serde_json::to_value(&report)?; // for programs
/// assert_eq!(json["status"], "merged");
/// assert_eq!(json["tensors"], 2);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `merged`, `resumed`, `complete already`, or `written` for one model that is written anew.
    pub status: &'static str,
    /// The folder that was written.
    pub out: String,
    /// The combination of the inputs.
    pub combined: Combined,
    /// The processor that computed: `cpu`, or the device's name; `None` when there was nothing to
    /// do.
    pub device: Option<String>,
    /// Output tensors.
    pub tensors: usize,
    /// Output tensors that were averaged.
    pub merged: usize,
    /// Output shards.
    pub shards: usize,
    /// Bytes of tensor data in the output.
    pub output_bytes: u64,
    /// Bytes of all shards on the disk, headers included, after compression.
    pub stored_bytes: u64,
    /// Bytes of tensor data that were read again at the end, all of which matched; `None` without
    /// `--verify`.
    pub verified_bytes: Option<u64>,
    /// Bytes that this run read from the inputs.
    pub read_bytes: u64,
    /// Bytes of tensor data that this run wrote.
    pub written_bytes: u64,
    /// Seconds that this run took.
    pub seconds: f64,
    /// The largest resident size of the process, in bytes, where the system tells.
    pub peak_resident_bytes: Option<u64>,
    /// The memory that it was allowed.
    pub memory_limit_bytes: u64,
    /// Mean angle between inputs and means over all segments, in radians.
    pub mean_angle: Option<f64>,
    /// The largest angle between an input and a mean, in radians.
    pub largest_angle: Option<f64>,
    /// Solutions by the way in which they ended.
    pub solved: Solved,
    /// The elements kept by a method that selects them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selected: Option<Selected>,
    /// The transform files by which inputs were aligned.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alignments: Vec<AlignmentFile>,
    /// Files beside the base's weights that were not taken along.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_beside: Vec<String>,
    /// Tensors that were merged over fewer models than there are, and the models that lack them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub partial: Vec<Partial>,
    /// The checks made on an output that was complete before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub looked_at: Option<String>,
    /// Notes that need no action.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// The number of solutions that ended in each way.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Solved {
    /// In closed form.
    pub exact: u64,
    /// Below the tolerance.
    pub converged: u64,
    /// At the level where rounding keeps the residual from falling further.
    pub floor: u64,
    /// At the limit of iterations.
    pub exhausted: u64,
    /// The most iterations of one solution.
    pub most_iterations: u32,
}

/// The data that one run moved.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moved {
    /// Bytes read from inputs, counting a second reading.
    pub read: u64,
    /// Bytes of tensor data written.
    pub written: u64,
    /// Seconds that it took.
    pub seconds: f64,
}

impl Report {
    /// Summarises a merge with the findings `noticed`.
    pub fn new(
        plan: &Plan,
        out: String,
        status: &'static str,
        moved: Moved,
        noticed: Noticed,
    ) -> Self {
        let all = noticed.all.clone();
        let merged = plan
            .tensors
            .iter()
            .filter(|tensor| matches!(tensor.action, Action::Merge(_)))
            .count();
        Self {
            status,
            out,
            combined: Combined::of(plan),
            device: None,
            tensors: plan.tensors.len(),
            merged,
            shards: plan.layout.shards().len(),
            output_bytes: plan.output_bytes(),
            stored_bytes: plan.layout.file_bytes(),
            verified_bytes: None,
            read_bytes: moved.read,
            written_bytes: moved.written,
            seconds: moved.seconds,
            peak_resident_bytes: peak_resident_bytes(),
            memory_limit_bytes: plan.memory.limit,
            mean_angle: all.mean_angle(),
            largest_angle: (all.angle_count > 0).then_some(all.largest_angle),
            solved: Solved {
                exact: all.exact,
                converged: all.converged,
                floor: all.floor,
                exhausted: all.exhausted,
                most_iterations: all.iterations,
            },
            selected: all.selection.as_deref().map(|all| Selected::of(plan, all)),
            partial: plan.partial.clone(),
            alignments: plan.job.alignment_files.clone(),
            left_beside: Vec::new(),
            looked_at: None,
            notes: plan.notes(),
            warnings: plan
                .warnings
                .iter()
                .cloned()
                .chain(warnings(plan, noticed))
                .collect(),
        }
    }

    /// Adds the device that computed.
    #[must_use]
    pub fn with_device(mut self, device: Option<String>) -> Self {
        self.device = device;
        self
    }

    /// Adds the names of the base's files that were not taken along.
    #[must_use]
    pub fn with_left_beside(mut self, names: Vec<String>) -> Self {
        self.left_beside = names;
        self
    }

    /// Adds the checks of a merge that was complete before, in which `looked_at` files beside the
    /// weights were checked, and the warnings `said` about them.
    #[must_use]
    pub fn with_looked_at(mut self, looked_at: Option<usize>, said: Vec<String>) -> Self {
        let shards = self.shards;
        self.looked_at = looked_at.map(|sides| {
            format!(
                "the manifest, the index, the sizes of the shards ({shards}) and all of the other files ({sides}); \
                 `thalweg verify {}` reads the weights too",
                self.out
            )
        });
        self.warnings.extend(said);
        self
    }

    /// Sets the sizes that the shards have on the disk.
    #[must_use]
    pub fn with_stored(mut self, manifest: &Manifest) -> Self {
        self.stored_bytes = manifest
            .shards
            .iter()
            .map(|shard| shard.compressed_size.unwrap_or(shard.size))
            .sum();
        self
    }

    /// Adds the bytes that were read back and matched.
    #[must_use]
    pub fn with_verified(mut self, bytes: Option<u64>) -> Self {
        self.verified_bytes = bytes;
        self
    }
}

/// Writes one line for each oddity, with the tensors where it was met.
fn warnings(plan: &Plan, noticed: Noticed) -> Vec<String> {
    let noticed = noticed.met(|tensor| taken_from(plan, tensor));
    let model = |input: usize| plan.inputs[input].root().display();
    let lines = noticed.into_iter().map(|met: Met| {
        let line = match met.oddity {
            Oddity::Flag(sentence) => sentence.to_owned(),
            Oddity::Overflow => {
                "values became infinite or NaN when they were narrowed to the output's dtype"
                    .to_owned()
            }
            Oddity::Differs { taken, input } => {
                let from =
                    taken.map_or_else(|| "the base".to_owned(), |taken| model(taken).to_string());
                format!(
                    "carried unchanged from {from} although {} holds other values",
                    model(input)
                )
            }
        };
        format!("{line}: {}", named(&met.first, met.count))
    });
    lines.collect()
}

/// Returns the input from which a tensor is carried unchanged, when that is not the donor.
fn taken_from(plan: &Plan, tensor: usize) -> Option<usize> {
    let tensor = plan.tensors.get(tensor)?;
    match tensor.action {
        Action::Carry(taken) => {
            Some(tensor.sources[taken].input).filter(|input| *input != plan.job.donor)
        }
        Action::Merge(_) => None,
    }
}

/// Lists file names on one line, the first few of many.
pub fn listed_files(names: &[String]) -> String {
    let shown: Vec<_> = names
        .iter()
        .take(FILES_NAMED)
        .map(|name| name.escape_debug().to_string())
        .collect();
    match names.len().saturating_sub(FILES_NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn named(first: &[String], count: usize) -> String {
    let shown: Vec<String> = first.iter().map(|name| shown_name(name)).collect();
    match count.saturating_sub(first.len()) {
        0 => shown.join(", "),
        more => format!("{} and {more} more tensors", shown.join(", ")),
    }
}

impl Report {
    /// Writes time, memory and device.
    fn write_costs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.seconds > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
            let rate = (self.read_bytes + self.written_bytes) as f64 / self.seconds / 1e9;
            let (read, written) = (
                format_bytes(self.read_bytes),
                format_bytes(self.written_bytes),
            );
            writeln!(f, "moved: {read} read, {written} written, {rate:.2} GB/s")?;
        }
        if let Some(peak) = self.peak_resident_bytes {
            let limit = format_bytes(self.memory_limit_bytes);
            writeln!(
                f,
                "memory: at most {} resident of {limit} allowed",
                format_bytes(peak)
            )?;
        }
        if let Some(device) = &self.device {
            writeln!(f, "computed on: {device}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.headline())?;
        if let Some(weights) = self.combined.weights() {
            writeln!(f, "weights: {weights}")?;
        }
        writeln!(f, "output: {}", self.output())?;
        if let (Some(mean), Some(largest)) = (self.mean_angle, self.largest_angle) {
            writeln!(
                f,
                "angles to the mean: {mean:.6} rad on average, {largest:.6} at most"
            )?;
        }
        if let Some(solved) = self.solved.in_words() {
            writeln!(f, "solved: {solved}")?;
        }
        if let Some(selected) = &self.selected {
            write!(f, "{selected}")?;
        }
        self.write_costs(f)?;
        if self.stored_bytes < self.output_bytes {
            writeln!(
                f,
                "compressed: {} on the disk; {UNPACK}",
                format_bytes(self.stored_bytes)
            )?;
        }
        if let Some(bytes) = self.verified_bytes {
            writeln!(
                f,
                "verified: {} read back, every block matches its checksum",
                format_bytes(bytes)
            )?;
        }
        if let Some(what) = &self.looked_at {
            writeln!(f, "looked at: {what}")?;
        }
        if !self.left_beside.is_empty() {
            writeln!(f, "not taken along: {}", listed_files(&self.left_beside))?;
        }
        self.notes
            .iter()
            .try_for_each(|note| writeln!(f, "note: {note}"))?;
        self.warnings
            .iter()
            .try_for_each(|warning| writeln!(f, "warning: {warning}"))
    }
}

impl Report {
    /// Says what was merged, into which folder, and how long it took.
    fn headline(&self) -> String {
        let (what, out) = (self.combined.headline(), &self.out);
        match self.status {
            "complete already" => format!("complete already: {out} holds {what}"),
            "resumed" => format!(
                "merged {what} into {out}, going on with an earlier run, in {:.1} s",
                self.seconds
            ),
            status => format!("{status} {what} into {out} in {:.1} s", self.seconds),
        }
    }

    /// Says what lies in the output.
    fn output(&self) -> String {
        let dtypes = self.combined.dtypes();
        let carried = match (self.tensors - self.merged) as u64 {
            0 => String::new(),
            count => format!(", of them {} unchanged", grouped(count)),
        };
        format!(
            "{}{carried}, {}{}{dtypes} in {}",
            counted(self.tensors as u64, "tensor"),
            format_bytes(self.output_bytes),
            if dtypes.is_empty() { "" } else { " of " },
            counted(self.shards as u64, "shard")
        )
    }
}

impl Solved {
    /// Says how solutions ended, without the ways in which none did; `None` if there were no
    /// solutions.
    fn in_words(&self) -> Option<String> {
        let Self {
            exact,
            converged,
            floor,
            exhausted,
            most_iterations,
        } = *self;
        let ways = [
            (exact, "in closed form"),
            (converged, "to the tolerance"),
            (floor, "to the rounding floor"),
            (exhausted, "to the iteration limit"),
        ];
        let ways = ways.into_iter().filter(|(count, _)| *count > 0);
        let said: Vec<String> = ways
            .map(|(count, way)| format!("{} {way}", grouped(count)))
            .collect();
        let steps = counted(most_iterations.into(), "iteration");
        let steps = if most_iterations > 0 {
            format!("; at most {steps}")
        } else {
            String::new()
        };
        (!said.is_empty()).then(|| said.join(", ") + &steps)
    }
}
