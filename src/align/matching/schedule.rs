//! The order in which roots are solved.
//!
//! A root is *stale* if something that it depends on has moved since it was solved. Sweeps solve
//! the stale roots, each sweep in an order of its own, until none is left; solving any other root
//! would find the same result again. So if no two roots act on one tensor, as in a transformer
//! whose residual stream is fixed, one sweep solves each once.

use std::collections::HashMap;
use std::fmt::Display;

use super::problem::Problem;
use super::solve::{least_bytes as least_of_root, solve};
use super::terms::Tree;
use super::{Matched, Residual, Start, Step};
use crate::error::{Context, Kind, Result};
use crate::symmetry::{Symmetries, Transform};

/// A step that moves the residual stream: before all others, and again after other roots have
/// moved.
pub(in crate::align) trait ResidualStep {
    /// Moves the stream, in the first sweep by the tensors on which nothing else acts; returns true
    /// if anything moved.
    ///
    /// # Errors
    ///
    /// Passes on the errors of solving, and those that end the run.
    fn solve(&mut self, run: &mut Sweeps<'_, '_>, first: bool) -> Result<bool>;

    /// Counts the floating-point operations of a solution, besides those of stale roots.
    fn operations(&self, run: &Sweeps<'_, '_>, first: bool) -> u64 {
        let _ = (run, first);
        0
    }
}

/// The state of a run between its sweeps.
pub(in crate::align) struct Sweeps<'a, 'p> {
    /// The problem to solve.
    pub problem: &'a Problem<'p>,
    /// The transform so far.
    pub current: Transform,
    sweep: usize,
    replay: &'a [Step],
    trees: Vec<Root>,
    /// For each pair of different roots, true if they act on a common tensor.
    meets: Vec<Vec<bool>>,
    /// The last step of each root, in their order.
    steps: Vec<Option<Step>>,
    /// The last step of a residual stream that is not one of the roots.
    residual: Option<Step>,
}

/// A root and what it acts on.
struct Root {
    tree: Tree,
    tensors: Vec<String>,
    stale: bool,
}

/// Solves all roots of `problem` from `start` on, those of the residual stream only if the options
/// have them permuted; `residual`, if given, moves the residual stream in another way.
pub(in crate::align) fn run(
    problem: &Problem<'_>,
    start: Start<'_>,
    residual: Option<&mut dyn ResidualStep>,
) -> Result<Matched> {
    let mut run = Sweeps::new(problem, start);
    let anchored = run.anchored();
    let mut anchor = anchored.map(|at| Anchored { at });
    let mut residual = residual.or(anchor
        .as_mut()
        .map(|anchor| anchor as &mut dyn ResidualStep));
    let mut sweeps = 0;
    for sweep in 0..problem.options.sweeps {
        run.sweep = sweep;
        let others = run.order(anchored);
        let more = residual
            .as_ref()
            .map_or(0, |residual| residual.operations(&run, sweep == 0));
        problem.watch.planned(run.planned() + more);
        let mut moved = match &mut residual {
            Some(residual) => residual.solve(&mut run, sweep == 0)?,
            None => false,
        };
        if moved && anchored.is_none() {
            others.iter().for_each(|at| run.trees[*at].stale = true);
        }
        let mut solved = residual.is_some();
        for at in others {
            if run.trees[at].stale {
                solved = true;
                moved |= run.step(at, None)?;
            }
        }
        sweeps += usize::from(solved);
        // In the first sweep the residual stream was moved by only a part of its tensors.
        let again = residual.is_some() && (moved || sweep == 0);
        if !again && run.trees.iter().all(|root| !root.stale) {
            break;
        }
    }
    run.finish(sweeps)
}

/// The only residual root of a transformer: solved first on the tensors that have nothing else to
/// align, then on all.
struct Anchored {
    at: usize,
}

impl ResidualStep for Anchored {
    fn solve(&mut self, run: &mut Sweeps<'_, '_>, first: bool) -> Result<bool> {
        if !first {
            return if run.trees[self.at].stale {
                run.step(self.at, None)
            } else {
                Ok(false)
            };
        }
        let own = &run.trees[self.at];
        let others: Vec<&Root> = run
            .trees
            .iter()
            .filter(|root| root.tree.root != own.tree.root)
            .collect();
        let alone = |tensor: &&String| others.iter().all(|other| !other.tensors.contains(tensor));
        let anchors: Vec<String> = own.tensors.iter().filter(alone).cloned().collect();
        let moved = !anchors.is_empty() && run.step(self.at, Some(&anchors))?;
        run.trees[self.at].stale = true;
        Ok(moved)
    }
}

/// Returns the least memory in which every root of a run can be solved.
pub(super) fn least_bytes(problem: &Problem<'_>) -> u64 {
    let symmetries = problem.symmetries;
    let start = Start {
        transform: &Transform::identity(symmetries),
        steps: &[],
    };
    let roots = Sweeps::new(problem, start).trees;
    let bytes = roots.iter().map(|root| {
        let tensors: Vec<&str> = root.tensors.iter().map(String::as_str).collect();
        least_of_root(problem, &root.tree, &tensors)
    });
    bytes.max().unwrap_or(0)
}

impl<'a, 'p> Sweeps<'a, 'p> {
    fn new(problem: &'a Problem<'p>, start: Start<'a>) -> Self {
        let (symmetries, options) = (problem.symmetries, problem.options);
        let permutes = options.residual == Residual::Permute;
        let groups = symmetries.groups.iter().enumerate();
        let roots =
            groups.filter(|(_, group)| group.within.is_none() && (permutes || !group.residual));
        let trees: Vec<Root> = roots
            .map(|(root, _)| Tree::of(symmetries, root))
            .filter(|tree| tree.is_free(symmetries, options.signs))
            .map(|tree| Root {
                tensors: tree.tensors(symmetries).map(str::to_owned).collect(),
                tree,
                stale: true,
            })
            .collect();
        let (meets, steps) = (meetings(&trees), vec![None; trees.len()]);
        Self {
            problem,
            current: start.transform.clone(),
            sweep: 0,
            replay: start.steps,
            trees,
            meets,
            steps,
            residual: None,
        }
    }

    /// Returns the number of the sweep, counted from 0.
    pub fn sweep(&self) -> usize {
        self.sweep
    }

    /// Returns the next recorded step of the residual group, and true if no later one moves it
    /// again.
    ///
    /// # Errors
    ///
    /// [`Kind::Resume`] when another step was recorded.
    pub fn recorded(&mut self, residual: usize) -> Result<Option<(Step, bool)>> {
        let Some((step, rest)) = self.replay.split_first() else {
            return Ok(None);
        };
        self.fits(step, residual)?;
        self.replay = rest;
        let again = |step: &Step| step.root == residual && !step.elements.is_empty();
        Ok(Some((step.clone(), !rest.iter().any(again))))
    }

    /// Keeps a step of the residual group, which is not one of the roots.
    pub fn keep(&mut self, step: Step) {
        self.residual = Some(step);
    }

    /// Returns the tensors on which the residual group acts; if `first`, those on which nothing
    /// else acts, if there are any.
    pub fn along(&self, residual: usize, first: bool) -> Vec<&'p str> {
        let symmetries: &'p Symmetries = self.problem.symmetries;
        let acts = |node: &crate::symmetry::Node| node.names(residual);
        let all = symmetries
            .tensors
            .iter()
            .filter(|(_, tensor)| tensor.axes.iter().any(acts));
        let all: Vec<&str> = all.map(|(name, _)| name.as_str()).collect();
        let has = |root: &Root, name: &str| root.tensors.iter().any(|tensor| tensor == name);
        let is_alone = |name: &&str| !self.trees.iter().any(|root| has(root, name));
        let alone: Vec<&str> = all.iter().copied().filter(is_alone).collect();
        if first && !alone.is_empty() {
            alone
        } else {
            all
        }
    }

    /// Returns the only residual root, if no two other roots act on one tensor.
    fn anchored(&self) -> Option<usize> {
        let groups = &self.problem.symmetries.groups;
        let (residual, others): (Vec<usize>, Vec<usize>) =
            (0..self.trees.len()).partition(|at| groups[self.trees[*at].tree.root].residual);
        let apart = others.iter().all(|at| {
            others
                .iter()
                .all(|other| at == other || !self.meets[*at][*other])
        });
        match residual[..] {
            [one] if apart => Some(one),
            _ => None,
        }
    }

    /// Returns the order of this sweep: that of the groups if the order does not matter, else by
    /// hashes of seed, sweep and name, so that it is the same on every machine.
    fn order(&self, anchored: Option<usize>) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.trees.len())
            .filter(|at| Some(*at) != anchored)
            .collect();
        if order.iter().any(|one| {
            order
                .iter()
                .any(|other| one < other && self.meets[*one][*other])
        }) {
            order.sort_by_cached_key(|at| {
                let name = &self.problem.symmetries.groups[self.trees[*at].tree.root].name;
                let text = format!("{} {} {name}", self.problem.options.seed, self.sweep);
                *blake3::hash(text.as_bytes()).as_bytes()
            });
        }
        order
    }

    /// Counts the floating-point operations of the stale roots.
    fn planned(&self) -> u64 {
        let stale = self.trees.iter().filter(|root| root.stale);
        stale
            .map(|root| root.tree.operations(self.problem.symmetries, &root.tensors))
            .sum()
    }

    /// Solves root `at` on `tensors`, or on all its tensors; returns true if it moved.
    fn step(&mut self, at: usize, tensors: Option<&[String]>) -> Result<bool> {
        self.problem.watch.go_on()?;
        let root = &self.trees[at];
        let tensors: Vec<&str> = tensors
            .unwrap_or(&root.tensors)
            .iter()
            .map(String::as_str)
            .collect();
        let step = if let Some((step, rest)) = self.replay.split_first() {
            self.replay = rest;
            self.current = self.replayed(step, &root.tree)?;
            self.problem
                .watch
                .advanced(root.tree.operations(self.problem.symmetries, &root.tensors));
            step.clone()
        } else {
            self.problem
                .moving
                .prepare(self.problem, &tensors, &self.current)?;
            let (step, transform) = solve(
                self.problem,
                &root.tree,
                &tensors,
                &self.current,
                self.sweep,
            )?;
            self.current = transform;
            self.problem.watch.taken(&step)?;
            step
        };
        let moved = !step.elements.is_empty();
        self.trees[at].stale = false;
        if moved {
            for other in 0..self.trees.len() {
                let depends = if other == at {
                    self.is_coupled_to_itself(at)
                } else {
                    self.meets[at][other]
                };
                self.trees[other].stale |= depends;
            }
        }
        self.steps[at] = Some(step);
        Ok(moved)
    }

    /// True if the root acts on two axes of one tensor, so that its best order depends on its own
    /// current order.
    fn is_coupled_to_itself(&self, at: usize) -> bool {
        let Root { tree, tensors, .. } = &self.trees[at];
        let symmetries: &Symmetries = self.problem.symmetries;
        let mut parts = tensors
            .iter()
            .flat_map(|tensor| tree.parts(symmetries, tensor));
        parts.any(|part| part.times(tree.root) > 1)
    }

    /// Checks that a recorded step is that of `root` in this sweep.
    fn fits(&self, step: &Step, root: usize) -> Result<()> {
        if (step.sweep, step.root) == (self.sweep, root) {
            return Ok(());
        }
        let (sweep, got) = (self.sweep, step.root);
        self.unfit(root).fail(format!(
            "wanted group {root} in sweep {sweep}, got group {got} in sweep {}",
            step.sweep
        ))
    }

    /// The failures of steps that were recorded for another run, at the root `root`.
    fn unfit(&self, root: usize) -> Context<impl Display> {
        unfit(self.problem.symmetries.groups[root].name.escape_debug())
    }

    /// Returns the transform after a recorded step.
    fn replayed(&self, step: &Step, tree: &Tree) -> Result<Transform> {
        let context = self.unfit(tree.root);
        self.fits(step, tree.root)?;
        let mut transform = self.current.clone();
        for (group, element) in &step.elements {
            if !tree.groups().any(|mine| mine == *group) {
                return context.fail(format!("group {group} is not one of this step"));
            }
            transform = transform
                .with(self.problem.symmetries, *group, element.clone())
                .map_err(|error| context.error(error))?;
        }
        Ok(transform)
    }

    fn finish(self, sweeps: usize) -> Result<Matched> {
        if let Some(step) = self.replay.first() {
            let cause = format!(
                "{} steps are left, the first of sweep {}",
                self.replay.len(),
                step.sweep
            );
            return unfit("end of the run").fail(cause);
        }
        Ok(Matched {
            transform: self.current,
            steps: self
                .residual
                .into_iter()
                .chain(self.steps.into_iter().flatten())
                .collect(),
            sweeps,
        })
    }
}

/// Marks the pairs of different roots that act on a common tensor.
fn meetings(roots: &[Root]) -> Vec<Vec<bool>> {
    let mut acting: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, root) in roots.iter().enumerate() {
        root.tensors
            .iter()
            .for_each(|tensor| acting.entry(tensor).or_default().push(at));
    }
    let mut meets = vec![vec![false; roots.len()]; roots.len()];
    for together in acting.values() {
        for one in together {
            together
                .iter()
                .for_each(|other| meets[*one][*other] = one != other);
        }
    }
    meets
}

/// The failures of recorded steps.
fn unfit<S: Display>(subject: S) -> Context<S> {
    Context::new(Kind::Resume, "cannot go on with recorded steps", subject)
        .with_hint("they are of another run: other models, symmetries or options")
}
