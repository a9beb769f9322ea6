//! Which root is solved when.
//!
//! A root is *stale* when something that it depends on has moved since it was solved. Sweeps solve the stale roots, each
//! sweep in an order of its own, until none is left; to solve one that is not stale would find what was found before. So
//! where no two roots act on one tensor, as in a transformer whose residual stream is fixed, one sweep solves each once.

use super::problem::Problem;
use super::solve::{least_bytes as least_of_root, solve};
use super::terms::Tree;
use super::{Matched, Residual, Step};
use crate::align::{Symmetries, Transform};
use crate::error::{Error, Kind, Result};

/// What moves the residual stream: first of all, and again whenever other roots have moved.
pub(in crate::align) trait ResidualStep {
    /// Moves it, in the first sweep by what nothing else acts on; says whether anything moved.
    ///
    /// # Errors
    ///
    /// Those of solving, and those that end the run.
    fn solve(&mut self, run: &mut Run<'_, '_>, first: bool) -> Result<bool>;
}

/// A run amid its sweeps.
pub(in crate::align) struct Run<'a, 'p> {
    /// What is solved.
    pub problem: &'a Problem<'p>,
    /// Where everything is by now.
    pub current: Transform,
    sweep: usize,
    replay: &'a [Step],
    trees: Vec<Root>,
    /// The last step of each root, in their order.
    steps: Vec<Option<Step>>,
}

/// A root and what it acts on.
struct Root {
    tree: Tree,
    tensors: Vec<String>,
    stale: bool,
}

/// Solves all roots of `problem` but those of the residual stream, unless the options have them permuted, from `start`
/// on; `residual`, if given, moves the residual stream in another way.
pub(in crate::align) fn run(
    problem: &Problem<'_>,
    start: &Transform,
    replay: &[Step],
    residual: Option<&mut dyn ResidualStep>,
) -> Result<Matched> {
    let mut run = Run::new(problem, start, replay);
    let anchored = run.anchored();
    let mut anchor = anchored.map(|at| Anchored { at });
    let mut residual = residual.or(anchor.as_mut().map(|anchor| anchor as &mut dyn ResidualStep));
    let mut sweeps = 0;
    for sweep in 0..problem.options.sweeps {
        run.sweep = sweep;
        let others: Vec<usize> = run.order().into_iter().filter(|at| Some(*at) != anchored).collect();
        problem.watch.planned(run.planned());
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
        // The first time the residual stream was moved by a part of its tensors only.
        let again = residual.is_some() && (moved || sweep == 0);
        if !again && run.trees.iter().all(|root| !root.stale) {
            break;
        }
    }
    run.finish(sweeps)
}

/// The one residual root of a transformer, on the tensors that have nothing else to align, then on all.
struct Anchored {
    at: usize,
}

impl ResidualStep for Anchored {
    fn solve(&mut self, run: &mut Run<'_, '_>, first: bool) -> Result<bool> {
        if !first {
            return if run.trees[self.at].stale { run.step(self.at, None) } else { Ok(false) };
        }
        let own = &run.trees[self.at];
        let others: Vec<&Root> = run.trees.iter().filter(|root| root.tree.root != own.tree.root).collect();
        let alone = |tensor: &&String| others.iter().all(|other| !other.tensors.contains(tensor));
        let anchors: Vec<String> = own.tensors.iter().filter(alone).cloned().collect();
        let moved = !anchors.is_empty() && run.step(self.at, Some(&anchors))?;
        run.trees[self.at].stale = true;
        Ok(moved)
    }
}

/// The least memory in which every root that a run solves can be.
pub(super) fn least_bytes(problem: &Problem<'_>) -> u64 {
    let symmetries = problem.symmetries;
    let least = |root: &Root| {
        let tensors: Vec<&str> = root.tensors.iter().map(String::as_str).collect();
        least_of_root(problem, &root.tree, &tensors)
    };
    Run::new(problem, &Transform::identity(symmetries), &[]).trees.iter().map(least).max().unwrap_or(0)
}

impl<'a, 'p> Run<'a, 'p> {
    fn new(problem: &'a Problem<'p>, start: &Transform, replay: &'a [Step]) -> Self {
        let (symmetries, options) = (problem.symmetries, problem.options);
        let residual = |group: usize| symmetries.groups[group].residual && options.residual == Residual::Fixed;
        let roots = (0..symmetries.groups.len()).filter(|at| symmetries.groups[*at].within.is_none() && !residual(*at));
        let trees: Vec<Root> = roots
            .map(|root| Tree::of(symmetries, root))
            .filter(|tree| tree.is_free(symmetries, options.signs))
            .map(|tree| Root { tensors: tree.tensors(symmetries).map(str::to_owned).collect(), tree, stale: true })
            .collect();
        let steps = vec![None; trees.len()];
        Self { problem, current: start.clone(), sweep: 0, replay, trees, steps }
    }

    /// The only residual root, where no two others act on one tensor.
    fn anchored(&self) -> Option<usize> {
        let residual = |at: &usize| self.problem.symmetries.groups[self.trees[*at].tree.root].residual;
        let (residual, others): (Vec<usize>, Vec<usize>) = (0..self.trees.len()).partition(residual);
        let apart = others.iter().all(|at| others.iter().all(|other| at == other || !self.meet(*at, *other)));
        match residual[..] {
            [one] if apart => Some(one),
            _ => None,
        }
    }

    /// Whether two roots act on one tensor.
    fn meet(&self, one: usize, other: usize) -> bool {
        self.trees[one].tensors.iter().any(|tensor| self.trees[other].tensors.contains(tensor))
    }

    /// The order of this sweep: by hashes of seed, sweep and name, so that it is the same everywhere.
    fn order(&self) -> Vec<usize> {
        let groups = &self.problem.symmetries.groups;
        let key = |at: usize| {
            let name = &groups[self.trees[at].tree.root].name;
            *blake3::hash(format!("{} {} {name}", self.problem.options.seed, self.sweep).as_bytes()).as_bytes()
        };
        let mut order: Vec<usize> = (0..self.trees.len()).collect();
        if order.iter().any(|one| order.iter().any(|other| one < other && self.meet(*one, *other)))
            && self.anchored().is_none()
        {
            order.sort_by_key(|at| key(*at));
        }
        order
    }

    /// Floating-point operations of the stale roots.
    fn planned(&self) -> u64 {
        let stale = self.trees.iter().filter(|root| root.stale);
        stale.map(|root| root.tree.operations(self.problem.symmetries, &root.tensors)).sum()
    }

    /// Solves root `at` on `tensors`, or on all of its own; says whether it moved.
    fn step(&mut self, at: usize, tensors: Option<&[String]>) -> Result<bool> {
        self.problem.watch.go_on()?;
        let root = &self.trees[at];
        let tensors: Vec<&str> = tensors.unwrap_or(&root.tensors).iter().map(String::as_str).collect();
        let step = if let Some((step, rest)) = self.replay.split_first() {
            self.replay = rest;
            self.current = self.replayed(step, &root.tree)?;
            step.clone()
        } else {
            let (step, transform) = solve(self.problem, &root.tree, &tensors, &self.current, self.sweep)?;
            self.current = transform;
            self.problem.watch.taken(&step)?;
            step
        };
        let moved = !step.elements.is_empty();
        self.trees[at].stale = false;
        if moved {
            for other in 0..self.trees.len() {
                let depends = if other == at { self.is_coupled_to_itself(at) } else { self.meet(at, other) };
                self.trees[other].stale |= depends;
            }
        }
        self.steps[at] = Some(step);
        Ok(moved)
    }

    /// Whether the root acts on two axes of one tensor, so that the best order depends on its own.
    fn is_coupled_to_itself(&self, at: usize) -> bool {
        let Root { tree, tensors, .. } = &self.trees[at];
        let symmetries: &Symmetries = self.problem.symmetries;
        let twice = |tensor: &String| tree.parts(symmetries, tensor).iter().any(|part| part.times(tree.root) > 1);
        tensors.iter().any(twice)
    }

    /// The transform after a recorded step.
    fn replayed(&self, step: &Step, tree: &Tree) -> Result<Transform> {
        let groups = &self.problem.symmetries.groups;
        let refused = |cause: String| {
            Error::new(Kind::Resume, "cannot go on with recorded steps", groups[tree.root].name.escape_debug(), cause)
                .with_hint("they are of another run: other models, symmetries or options")
        };
        if (step.sweep, step.root) != (self.sweep, tree.root) {
            let cause = format!(
                "wanted group {} in sweep {}, got group {} in sweep {}",
                tree.root, self.sweep, step.root, step.sweep
            );
            return Err(refused(cause));
        }
        let mut transform = self.current.clone();
        for (group, element) in &step.elements {
            if !tree.groups().any(|mine| mine == *group) {
                return Err(refused(format!("group {group} is not one of this step")));
            }
            transform = transform
                .with(self.problem.symmetries, *group, element.clone())
                .map_err(|error| refused(error.to_string()))?;
        }
        Ok(transform)
    }

    fn finish(self, sweeps: usize) -> Result<Matched> {
        if let Some(step) = self.replay.first() {
            let cause = format!("{} steps are left, the first of sweep {}", self.replay.len(), step.sweep);
            return Err(Error::new(Kind::Resume, "cannot go on with recorded steps", "end of the run", cause)
                .with_hint("they are of another run: other models, symmetries or options"));
        }
        Ok(Matched { transform: self.current, steps: self.steps.into_iter().flatten().collect(), sweeps })
    }
}
