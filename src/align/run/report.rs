//! Findings and reports of an alignment.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use crate::align::angles::angle;
use crate::align::many::ManyOptions;
use crate::align::matching::{MatchOptions, Proof};
use crate::align::straight_through::Losses;
use crate::budget::format_bytes;
use crate::error::shown_name;

/// The findings about a pair of models: the same for the same models, spec and options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// The options of matching.
    pub options: MatchOptions,
    /// The number of sweeps over all roots until nothing moved, including the last.
    pub sweeps: usize,
    /// Losses of the midpoint, if the alignment was found by them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losses: Option<Losses>,
    /// The groups that lie within no other, each with the groups within it, in the order in which
    /// they were first solved.
    pub roots: Vec<RootFound>,
    /// The tensors on which some group acts.
    pub tensors: Vec<Cosines>,
}

/// The findings about one root.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootFound {
    /// The root's name.
    pub name: String,
    /// The root's kind: its key in the spec.
    pub kind: String,
    /// The number of units of the root and of the groups within it.
    pub units: usize,
    /// The number of units that change places or signs, or are turned.
    pub moved: usize,
    /// The sum of the cosines of the tensors on which the root acts, before alignment: its part of
    /// the objective when every tensor counts alike.
    pub before: f64,
    /// The same sum for the reference and the aligned model.
    pub after: f64,
    /// The certificate of the root's last step.
    pub proof: Proof,
    /// The cosine of both models' activations before and after, if the root was matched by them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<[f64; 2]>,
}

/// The cosine between one tensor of both models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cosines {
    /// The tensor's name.
    pub tensor: String,
    /// The cosine before alignment; none where a tensor is zero.
    pub before: Option<f64>,
    /// The cosine of the reference and the aligned model.
    pub after: Option<f64>,
}

/// The report of an alignment, for people (`Display`) and for programs (serde).
#[derive(Debug, Clone, Serialize)]
pub struct AlignmentReport {
    /// `aligned`, `resumed` or `complete already`.
    pub status: &'static str,
    /// The model that stays.
    pub reference: String,
    /// The model that is aligned to it.
    pub model: String,
    /// The transform file, if one was written.
    pub out: Option<String>,
    /// The spec's name.
    pub spec: String,
    /// The findings.
    pub findings: Findings,
    /// The sum of all tensors' cosines before and after: the objective when every tensor counts
    /// alike.
    pub objective: [f64; 2],
    /// The mean angle of these tensors before and after, in radians: a diagnostic, not a measure of
    /// quality.
    pub mean_angle: [Option<f64>; 2],
    /// The number of units that change places or signs, or are turned, over all roots.
    pub moved: usize,
    /// Seconds that this run took.
    pub seconds: f64,
    /// The largest resident size of the process, in bytes, if the system reports it.
    pub peak_resident_bytes: Option<u64>,
    /// The memory limit of the run, in bytes.
    pub memory_limit_bytes: u64,
    /// The place where products were summed: `cpu`, or the device's name and its multiplier; `None`
    /// if there was nothing to do.
    pub device: Option<String>,
}

/// The report of an alignment of many models, for people (`Display`) and for programs (serde).
#[derive(Debug, Clone, Serialize)]
pub struct ManyReport {
    /// The findings about each model except the one that stays unchanged.
    pub models: Vec<AlignmentReport>,
    /// The options of the alignment.
    pub options: ManyOptions,
    /// The model that stays unchanged, counted from 0.
    pub reference: usize,
    /// The number of rounds over all models until none moved, including the first and the last.
    pub rounds: usize,
    /// True if the run ended because no model moved.
    pub settled: bool,
    /// The share of units that do not come back to their places when they are moved from model to
    /// model and back.
    pub cycle_error: f64,
}

impl fmt::Display for ManyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, model) in self.models.iter().enumerate() {
            match at == self.reference {
                true => writeln!(f, "{}: {} stays as it is", model.status, model.model)?,
                false => writeln!(f, "{}", model.headline())?,
            }
        }
        for (at, model) in self
            .models
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != self.reference)
        {
            let [before, after] = model.objective;
            let tensors = model.findings.tensors.len();
            writeln!(
                f,
                "model {}: {before:.4} -> {after:.4}, the sum of the cosines of {tensors} tensors",
                at + 1
            )?;
        }
        let end = if self.settled {
            "nothing moves any more"
        } else {
            "the rounds were over"
        };
        write!(
            f,
            "rounds: {}, {end}; cycle error {}",
            self.rounds, self.cycle_error
        )?;
        let Some(model) = self.models.first() else {
            return writeln!(f);
        };
        writeln!(f, "; in {:.1} s", model.seconds)?;
        match &model.device {
            Some(device) => writeln!(f, "computed on: {device}"),
            None => Ok(()),
        }
    }
}

impl Findings {
    /// Sums the cosines of all tensors, before and after.
    pub fn objective(&self) -> [f64; 2] {
        self.each(|cosines| cosines.sum())
    }

    /// Averages the angles of the tensors that have one, before and after, in radians.
    pub fn mean_angle(&self) -> [Option<f64>; 2] {
        self.each(|cosines| {
            let angles: Vec<f64> = cosines.map(angle).collect();
            #[expect(clippy::cast_precision_loss, reason = "a count of tensors")]
            let count = angles.len() as f64;
            (count > 0.0).then(|| angles.iter().sum::<f64>() / count)
        })
    }

    /// Counts the units that move, over all roots.
    pub fn moved(&self) -> usize {
        self.roots.iter().map(|root| root.moved).sum()
    }

    /// Returns the names of the roots that were matched by activations, and the activations'
    /// cosines before and after.
    fn activations(&self) -> impl Iterator<Item = (String, [f64; 2])> {
        self.roots
            .iter()
            .filter_map(|root| Some((shown_name(&root.name), root.activations?)))
    }

    fn each<T>(&self, of: impl Fn(&mut dyn Iterator<Item = f64>) -> T) -> [T; 2] {
        let sides: [fn(&Cosines) -> Option<f64>; 2] =
            [|cosines| cosines.before, |cosines| cosines.after];
        sides.map(|side| of(&mut self.tensors.iter().filter_map(side)))
    }

    /// Groups the roots by kind, in the order in which kinds first occur.
    fn kinds(&self) -> Vec<Vec<&RootFound>> {
        let mut kinds: Vec<Vec<&RootFound>> = Vec::new();
        for root in &self.roots {
            match kinds
                .iter_mut()
                .find(|kind| kind.iter().all(|other| other.kind == root.kind))
            {
                Some(kind) => kind.push(root),
                None => kinds.push(vec![root]),
            }
        }
        kinds
    }
}

impl AlignmentReport {
    /// Returns one line that names the models and counts the units that move.
    pub fn headline(&self) -> String {
        let to = self
            .out
            .as_ref()
            .map_or(String::new(), |out| format!(", in {out}"));
        let moved = match self.moved {
            0 => "nothing worth moving".to_owned(),
            moved => {
                format!(
                    "{moved} of {} units move",
                    self.findings
                        .roots
                        .iter()
                        .map(|root| root.units)
                        .sum::<usize>()
                )
            }
        };
        format!(
            "{}: {} to {} by the spec {}{to}: {moved}",
            self.status, self.model, self.reference, self.spec
        )
    }

    /// Returns a table with a row for every root.
    pub fn roots(&self) -> String {
        let rows = self
            .findings
            .roots
            .iter()
            .map(|root| Row::of(&root.name, &[root]));
        table("group", rows)
    }
}

impl fmt::Display for AlignmentReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.headline())?;
        let kinds = self.findings.kinds();
        if !kinds.is_empty() {
            let rows = kinds
                .iter()
                .filter_map(|kind| Some(Row::of(&kind.first()?.kind, kind)));
            writeln!(f, "{}", table("kind", rows))?;
        }
        let [before, after] = self.objective;
        let tensors = self.findings.tensors.len();
        writeln!(
            f,
            "objective: {before:.4} -> {after:.4}, the sum of the cosines of {tensors} tensors"
        )?;
        if let [Some(before), Some(after)] = self.mean_angle {
            writeln!(
                f,
                "angles: {before:.4} -> {after:.4} rad on average; a diagnostic, it does not say how well a merge will do"
            )?;
        }
        if let Some(Losses {
            naive,
            weights,
            found,
        }) = self.findings.losses
        {
            writeln!(
                f,
                "loss of the midpoint: {found:.4}; of the models as they are {naive:.4}, by weights {weights:.4}"
            )?;
        }
        for (name, [before, after]) in self.findings.activations() {
            writeln!(
                f,
                "activations of {name}: {before:.4} -> {after:.4}, the cosine between both models"
            )?;
        }
        let sweeps = self.findings.sweeps;
        write!(f, "sweeps: {sweeps}, in {:.1} s", self.seconds)?;
        match self.peak_resident_bytes {
            Some(peak) => {
                let limit = format_bytes(self.memory_limit_bytes);
                writeln!(
                    f,
                    "; at most {} resident of {limit} allowed",
                    format_bytes(peak)
                )?;
            }
            None => writeln!(f)?,
        }
        match &self.device {
            Some(device) => writeln!(f, "computed on: {device}"),
            None => Ok(()),
        }
    }
}

/// A line of a table.
struct Row {
    name: String,
    groups: usize,
    units: usize,
    moved: usize,
    before: f64,
    after: f64,
    proof: String,
}

impl Row {
    fn of(name: &str, roots: &[&RootFound]) -> Self {
        Self {
            name: shown_name(name),
            groups: roots.len(),
            units: roots.iter().map(|root| root.units).sum(),
            moved: roots.iter().map(|root| root.moved).sum(),
            before: roots.iter().map(|root| root.before).sum(),
            after: roots.iter().map(|root| root.after).sum(),
            proof: proofs(roots),
        }
    }
}

/// Words the certificates of these roots; if they differ, each with its count.
fn proofs(roots: &[&RootFound]) -> String {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for root in roots {
        let words = words_of(root.proof);
        match counted.iter_mut().find(|(known, _)| *known == words) {
            Some((_, count)) => *count += 1,
            None => counted.push((words, 1)),
        }
    }
    match counted.as_slice() {
        [(words, _)] => (*words).to_owned(),
        several => several
            .iter()
            .map(|(words, count)| format!("{words} {count}"))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn words_of(proof: Proof) -> &'static str {
    match proof {
        Proof::Identity => "identity certified",
        Proof::Optimal(_) => "certified optimal",
        Proof::Parts => "parts optimal",
    }
}

fn table(first: &str, rows: impl Iterator<Item = Row>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        first,
        "groups",
        "units",
        "moved",
        "before",
        "after",
        "certificate",
    ]);
    for row in rows {
        let Row {
            name,
            groups,
            units,
            moved,
            before,
            after,
            proof,
        } = row;
        let counts = [groups, units, moved].map(|count| count.to_string());
        let sums = [before, after].map(|sum| format!("{sum:.4}"));
        table.add_row([name].into_iter().chain(counts).chain(sums).chain([proof]));
    }
    for column in 1..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}
