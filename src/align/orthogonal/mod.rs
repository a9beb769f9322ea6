//! Matching with a dense map of the residual stream: models whose norms are folded (see
//! [`fold`](crate::symmetry::fold)).
//!
//! Alternates two exact steps, which can only raise Σ_t w_t ⟨A_t, Q π(B)_t⟩: the orthogonal Q of a
//! Procrustes problem, with all other groups held fixed; and every other root by
//! [`match_weights`](super::matching::match_weights)'s schedule, with Q held. The first Q is found
//! from the tensors on which only the stream acts, embeddings and head. The run ends when Q is
//! solved again and the objective has risen by less than [`TOLERANCE`] of itself since the last Q,
//! or when the sweeps are used up. Between small independent networks about ten sweeps were
//! measured.
//!
//! A [`Step`] of the stream is recorded without its map, which is a function of the elements
//! recorded before it. So an interrupted run computes the last map again: the same map, or on
//! another backend the same up to the rounding of products.

mod cross;
mod procrustes;

use std::sync::{Arc, Mutex, PoisonError};

use super::matching::problem::{Moving, Problem};
use super::matching::schedule::{self, ResidualStep, Sweeps};
use super::matching::{MatchOptions, Matched, Proof, Residual, Start, Step, Watch};
use super::{Store, Transformed, Weights, kept};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::symmetry::fold::Fold;
use crate::symmetry::{Alignment, Element, OrthogonalMap, Symmetries, Transform};

/// The share of the objective by which two consecutive solutions of Q must differ for another sweep
/// to be worth it.
pub const TOLERANCE: f64 = 1e-5;
/// The error of sums in f32, as a share of the objective. A smaller gain does not count, and the
/// units stay in their places.
const ROUNDING: f64 = 1e-7;

/// Brings `moving` as near to `reference` as possible, with its residual stream under any
/// orthogonal map, or under the map of `start`.
///
/// # Errors
///
/// As [`match_weights`](super::matching::match_weights); [`Kind::Mismatch`] when `symmetries` are
/// not those of a folded model.
pub(super) fn match_mapped(
    reference: &dyn Weights,
    moving: &Arc<Store>,
    symmetries: &Arc<Symmetries>,
    start: Start<'_>,
    options: &MatchOptions,
    watch: &dyn Watch,
) -> Result<Matched> {
    let residual = residual_of(symmetries)?;
    let (kept, options) = shared_out(symmetries, residual, options)?;
    let mapped = Mapped::new(moving, symmetries, residual, kept);
    let problem = Problem::new(reference, &mapped, symmetries, &options, watch);
    if options.residual == Residual::Map {
        return schedule::run(&problem, start, None);
    }
    let mut stream = Stream {
        residual,
        mapped: &mapped,
        last: None,
    };
    schedule::run(&problem, start, Some(&mut stream))
}

/// Returns the least memory for matching these models, whose other roots need `tiles` bytes.
pub(super) fn least_bytes(symmetries: &Symmetries, tiles: u64) -> u64 {
    let Ok(residual) = residual_of(symmetries) else {
        return tiles;
    };
    let Needs {
        solving, holding, ..
    } = Needs::of(symmetries, residual);
    solving.max(holding + tiles)
}

/// The bytes that the steps of a run take.
struct Needs {
    /// Bytes for solving a map: the current map, the new map, and all intermediate matrices.
    solving: u64,
    /// Bytes held while another root is solved: the map, and that root's mapped tensors.
    holding: u64,
    /// The part of `holding` that the tensors take.
    kept: u64,
}

impl Needs {
    fn of(symmetries: &Symmetries, residual: usize) -> Self {
        let size = symmetries.groups[residual].units;
        let map = 8 * (size as u64).pow(2);
        let kept = most_kept(symmetries, residual);
        let solving = 2 * map + cross::bytes(size as u64) + procrustes::bytes(size);
        Self {
            solving,
            holding: map + kept,
            kept,
        }
    }
}

/// Returns the bytes that may be kept, and the options of the other roots with the memory left to
/// them.
fn shared_out(
    symmetries: &Symmetries,
    residual: usize,
    options: &MatchOptions,
) -> Result<(u64, MatchOptions)> {
    let Needs {
        solving,
        holding,
        kept,
    } = Needs::of(symmetries, residual);
    let least = solving.max(holding + 1);
    if options.memory < least {
        let size = symmetries.groups[residual].units;
        let cause = format!(
            "a map of {size} units takes at least {least} bytes, got {}",
            options.memory
        );
        return Err(
            Error::new(Kind::Budget, "cannot match weights", "memory budget", cause).with_hint(
                "give more --memory, or leave the residual stream as it is, `residual: fixed`",
            ),
        );
    }
    Ok((
        kept,
        MatchOptions {
            memory: options.memory - holding,
            ..options.clone()
        },
    ))
}

/// Returns the most bytes that the tensors of one root and of the groups within it take as f32.
fn most_kept(symmetries: &Symmetries, residual: usize) -> u64 {
    let mut bytes = vec![0; symmetries.groups.len()];
    for tensor in symmetries.tensors.values() {
        let named = (0..symmetries.groups.len()).filter(|group| {
            tensor
                .index
                .as_ref()
                .is_some_and(|index| index.group == *group)
                || tensor.axes.iter().any(|axis| axis.names(*group))
        });
        let mut roots: Vec<usize> = named
            .map(|group| symmetries.outermost(group))
            .filter(|root| *root != residual)
            .collect();
        roots.sort_unstable();
        roots.dedup();
        roots
            .into_iter()
            .for_each(|root| bytes[root] += 4 * tensor.shape.iter().product::<u64>());
    }
    bytes.into_iter().max().unwrap_or(0)
}

fn residual_of(symmetries: &Symmetries) -> Result<usize> {
    let residual = symmetries.groups.iter().position(|group| group.residual);
    residual.filter(|_| symmetries.fold.is_some()).ok_or_else(|| {
        let cause = "the weights of its norms are not folded, so that no map but a signed order keeps its function";
        Error::new(Kind::Mismatch, "cannot match weights", &symmetries.spec, cause)
    })
}

/// The moving model with its stream mapped; mapped tensors are computed for one root at a time, and
/// kept.
struct Mapped<'a> {
    store: &'a Arc<Store>,
    residual: usize,
    /// The symmetries of the mapped model, in which no norm is left to fold.
    plain: Arc<Symmetries>,
    /// The most bytes of tensors that are kept.
    most: u64,
    kept: Mutex<Option<Kept>>,
}

/// The mapped tensors of one root.
struct Kept {
    map: OrthogonalMap,
    tensors: Vec<String>,
    store: Arc<Store>,
}

impl Kept {
    /// True if these tensors are kept under this map.
    fn holds(&self, map: &OrthogonalMap, tensors: &[&str]) -> bool {
        let is_kept = |tensor: &&str| self.tensors.iter().any(|kept| kept == tensor);
        self.map.is(map) && tensors.iter().all(is_kept)
    }
}

impl<'a> Mapped<'a> {
    fn new(
        store: &'a Arc<Store>,
        symmetries: &Arc<Symmetries>,
        residual: usize,
        most: u64,
    ) -> Self {
        let plain = Symmetries {
            fold: Some(Arc::new(Fold::default())),
            ..(**symmetries).clone()
        };
        Self {
            store,
            residual,
            plain: Arc::new(plain),
            most,
            kept: Mutex::default(),
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Kept>> {
        // The kept value is replaced as a whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the model under `transform` without a map.
    fn unmapped(&self, symmetries: &Arc<Symmetries>, transform: &Transform) -> Result<Transformed> {
        let unmapped = transform
            .clone()
            .with(symmetries, self.residual, Element::default())?;
        let alignment = Alignment {
            symmetries: Arc::clone(symmetries),
            transform: Arc::new(unmapped),
        };
        Ok(Transformed::new(Arc::clone(self.store), alignment))
    }
}

impl Moving for Mapped<'_> {
    fn under(&self, symmetries: &Arc<Symmetries>, transform: &Transform) -> Box<dyn Weights + '_> {
        let map = transform.elements()[self.residual].map.as_ref();
        let kept = self.kept();
        if let (Some(kept), Some(map)) = (&*kept, map)
            && kept.map.is(map)
            && let Ok(moved) =
                transform
                    .clone()
                    .with(&self.plain, self.residual, Element::default())
        {
            let alignment = Alignment {
                symmetries: Arc::clone(&self.plain),
                transform: Arc::new(moved),
            };
            return Box::new(Transformed::new(Arc::clone(&kept.store), alignment));
        }
        let alignment = Alignment {
            symmetries: Arc::clone(symmetries),
            transform: Arc::new(transform.clone()),
        };
        Box::new(Transformed::new(Arc::clone(self.store), alignment))
    }

    fn dtype(&self, tensor: &str) -> Option<Dtype> {
        self.store.dtype(tensor)
    }

    fn prepare(
        &self,
        problem: &Problem<'_>,
        tensors: &[&str],
        transform: &Transform,
    ) -> Result<()> {
        let Some(map) = &transform.elements()[self.residual].map else {
            return Ok(());
        };
        if self
            .kept()
            .as_ref()
            .is_some_and(|kept| kept.holds(map, tensors))
        {
            return Ok(());
        }
        *self.kept() = None;
        let symmetries = problem.symmetries;
        let element = Element {
            map: Some(map.clone()),
            ..Element::default()
        };
        let only = Transform::identity(symmetries).with(symmetries, self.residual, element)?;
        let alignment = Alignment {
            symmetries: Arc::clone(symmetries),
            transform: Arc::new(only),
        };
        let model = Transformed::new(Arc::clone(self.store), alignment);
        let store = kept::keep(&model, tensors, self.store.kernels(), self.most, &|| {
            problem.watch.go_on()
        })?;
        let tensors = tensors.iter().map(|&tensor| tensor.to_owned()).collect();
        *self.kept() = Some(Kept {
            map: map.clone(),
            tensors,
            store: Arc::new(store),
        });
        Ok(())
    }
}

/// Solves for the map of the stream.
struct Stream<'a> {
    residual: usize,
    mapped: &'a Mapped<'a>,
    /// The objective at the last solution of the map, if that was on all tensors.
    last: Option<f64>,
}

impl ResidualStep for Stream<'_> {
    fn solve(&mut self, run: &mut Sweeps<'_, '_>, first: bool) -> Result<bool> {
        let step = match run.recorded(self.residual)? {
            // Nothing moved, or another map follows that does not depend on this one.
            Some((step, last)) if step.elements.is_empty() || !last => step,
            Some((step, _)) => {
                let solved = self.solved(run, first)?;
                // Sums of another backend are rounded differently.
                if (solved.best - step.after).abs() > solved.rounding {
                    let cause = format!("wanted the objective {}, got {}", step.after, solved.best);
                    return Err(Error::new(
                        Kind::Resume,
                        "cannot go on with recorded steps",
                        "residual stream",
                        cause,
                    )
                    .with_hint("they are of another run: other models, symmetries or options"));
                }
                run.current = self.with_map(run, solved.map)?;
                step
            }
            None => {
                let solved = self.solved(run, first)?;
                let step = self.step(run, &solved);
                if !step.elements.is_empty() {
                    run.current = self.with_map(run, solved.map)?;
                }
                run.problem.watch.taken(&step)?;
                step
            }
        };
        let rose = self
            .last
            .is_none_or(|last| step.after - last > TOLERANCE * step.after);
        self.last = (!first).then_some(step.after);
        let moved = !step.elements.is_empty();
        run.keep(step);
        Ok(moved && rose)
    }

    fn operations(&self, run: &Sweeps<'_, '_>, first: bool) -> u64 {
        operations(
            run.problem.symmetries,
            self.residual,
            &run.along(self.residual, first),
        )
    }
}

/// Counts the floating-point operations of the products of both models along the stream.
fn operations(symmetries: &Symmetries, residual: usize, tensors: &[&str]) -> u64 {
    let size = symmetries.groups[residual].units;
    let elements = |tensor: &&str| symmetries.tensors[*tensor].shape.iter().product::<u64>();
    2 * size as u64 * tensors.iter().map(elements).sum::<u64>()
}

impl Stream<'_> {
    fn with_map(&self, run: &Sweeps<'_, '_>, map: OrthogonalMap) -> Result<Transform> {
        let element = Element {
            map: Some(map),
            ..Element::default()
        };
        run.current
            .clone()
            .with(run.problem.symmetries, self.residual, element)
    }

    /// Solves for the best map, with everything else held.
    fn solved(&self, run: &Sweeps<'_, '_>, first: bool) -> Result<SolvedStream> {
        *self.mapped.kept() = None;
        let (problem, residual) = (run.problem, self.residual);
        let moved = self.mapped.unmapped(problem.symmetries, &run.current)?;
        let tensors = run.along(residual, first);
        let cross = cross::cross(problem, &moved, moved.alignment(), &tensors, residual)?;
        let size = problem.symmetries.groups[residual].units;
        let before = match &run.current.elements()[residual].map {
            Some(map) => map
                .elements()
                .iter()
                .zip(&cross.sums)
                .map(|(x, y)| x * y)
                .sum(),
            None => (0..size).map(|unit| cross.sums[unit * size + unit]).sum(),
        };
        let (map, best) = procrustes::procrustes(size, &cross.sums)?;
        Ok(SolvedStream {
            map,
            before,
            best,
            rounding: ROUNDING * cross.scale,
        })
    }

    fn step(&self, run: &Sweeps<'_, '_>, solved: &SolvedStream) -> Step {
        let gains = solved.best - solved.before > solved.rounding;
        let units = run.problem.symmetries.groups[self.residual].units;
        let mapped = gains || run.current.elements()[self.residual].map.is_some();
        Step {
            sweep: run.sweep(),
            root: self.residual,
            elements: if gains {
                vec![(self.residual, Element::default())]
            } else {
                Vec::new()
            },
            before: solved.before,
            after: if gains { solved.best } else { solved.before },
            units,
            moved: if mapped { units } else { 0 },
            proof: if mapped {
                Proof::Optimal(solved.rounding)
            } else {
                Proof::Identity
            },
        }
    }
}

/// A solution for the map.
struct SolvedStream {
    map: OrthogonalMap,
    /// The objective with the previous map.
    before: f64,
    /// The objective with the new map.
    best: f64,
    /// The rounding error of both objectives.
    rounding: f64,
}
