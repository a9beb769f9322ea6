//! The straight-through estimator: the transform for which the midpoint of two networks has a small
//! loss on data.
//!
//! As in Ainsworth, Hayase, Srinivasa, "Git Re-Basin" (ICLR 2023), Algorithm 2, min_T L((A +
//! π_T(B)) / 2): π_T is the transform by which weight matching brings B nearest to T. The forward
//! pass takes the midpoint with π_T(B); the backward pass acts as if T stood in its place, so the
//! gradient by T is half of that by the midpoint. T begins at A. The matching of each step begins
//! with the last one's transform.
//!
//! The paper keeps the transform whose minibatch had the smallest loss. Losses of different
//! minibatches cannot be compared well, so here the best and the last transform of each epoch are
//! evaluated on all samples, and the best of these is kept. The result of plain weight matching is
//! evaluated too: nothing worse is ever returned.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::matching::{self, Start, Watch, match_weights};
use super::network::{check_finite, parameters, store};
use super::weights::{Numbers, Store, Transformed, Weights};
use crate::data::DataSet;
use crate::error::Result;
use crate::kernel::Kernels;
use crate::net::{Adam, AdamOptions, Network, Parameters, evaluate, order};
use crate::symmetry::{Alignment, Symmetries, Transform};

/// Copies of the parameters that are held at once: A, T, π(B), the midpoint, its gradient, two
/// moments, and the copy for matching.
const COPIES: u64 = 9;

/// The settings of the descent of T.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MidpointOptions {
    /// The number of times that each sample is seen.
    pub epochs: usize,
    /// Samples of a step.
    pub batch: usize,
    /// The learning rate of Adam.
    pub rate: f64,
    /// The seed for the order of samples.
    pub seed: u64,
}

impl Default for MidpointOptions {
    fn default() -> Self {
        Self {
            epochs: 20,
            batch: 100,
            rate: 1e-2,
            seed: 0,
        }
    }
}

/// Two networks, and the data on which their midpoint should have a small loss.
pub struct Problem<'a> {
    /// The model that stays.
    pub reference: &'a dyn Weights,
    /// The model that is transformed.
    pub moving: &'a Arc<Store>,
    /// The symmetries of both.
    pub symmetries: &'a Arc<Symmetries>,
    /// The network of both models.
    pub network: &'a Network,
    /// The samples.
    pub data: &'a DataSet,
    /// The kernels.
    pub kernels: Kernels,
}

/// The mean losses of the midpoint over all samples, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// The loss for the models unchanged.
    pub naive: f64,
    /// The loss under the transform of weight matching.
    pub weights: f64,
    /// The loss under the transform that is returned.
    pub found: f64,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Learned {
    /// The element of every group.
    pub transform: Transform,
    /// The losses before and after.
    pub losses: Losses,
}

/// Returns the memory of a run besides that of weight matching, in bytes.
pub fn bytes(network: &Network, data: &DataSet, options: &MidpointOptions) -> u64 {
    let batch = options.batch.min(data.samples());
    // Values and their gradients.
    let pass = 2 * network.forward_bytes(batch, &|_| true);
    let evaluation = network.forward_bytes(network.batch().min(data.samples()), &|_| false);
    COPIES * Parameters::zeros(network).bytes() + pass.max(evaluation)
}

/// Searches for a transform on the threads of the current pool; the result is the same for every
/// number of threads.
///
/// `matching` holds the options for matching T; its memory is for that alone.
///
/// # Errors
///
/// Passes on the errors of reading models and data, of weight matching, and of `watch`, which is
/// told of every step's operations.
pub fn straight_through(
    problem: &Problem<'_>,
    options: &MidpointOptions,
    matching: &matching::MatchOptions,
    watch: &dyn Watch,
) -> Result<Learned> {
    let mut run = MidpointRun::new(problem, matching, watch)?;
    let steps = problem.data.samples().div_ceil(options.batch.max(1)) * options.epochs;
    watch.planned(run.operations(options.batch) * steps as u64);
    let identity = Transform::identity(problem.symmetries);
    let naive = run.loss(&identity)?;
    let start = run.matched(problem.reference, &identity)?;
    let weights = run.loss(&start)?;
    let mut best = if weights < naive {
        (weights, start.clone())
    } else {
        (naive, identity)
    };
    let rate = AdamOptions {
        rate: options.rate,
        decay: 0.0,
        ..Default::default()
    };
    let mut descent = Descent {
        target: run.reference.clone(),
        adam: Adam::new(problem.network, rate),
        current: start,
    };
    for epoch in 0..options.epochs {
        let of_epoch = run.descend(options, epoch, &mut descent)?;
        for candidate in of_epoch.into_iter().chain([descent.current.clone()]) {
            let loss = run.loss(&candidate)?;
            if loss < best.0 {
                best = (loss, candidate);
            }
        }
    }
    Ok(Learned {
        losses: Losses {
            naive,
            weights,
            found: best.0,
        },
        transform: best.1,
    })
}

/// The state of the descent of T.
struct Descent {
    /// T, which is pulled along the gradient.
    target: Parameters,
    adam: Adam,
    /// The transform that brings the model nearest to T.
    current: Transform,
}

struct MidpointRun<'a> {
    problem: &'a Problem<'a>,
    matching: &'a matching::MatchOptions,
    watch: &'a dyn Watch,
    reference: Parameters,
    /// The transforms that were evaluated last, since epochs often end at the transform with which
    /// they began.
    evaluated: Vec<(Transform, f64)>,
}

impl<'a> MidpointRun<'a> {
    fn new(
        problem: &'a Problem<'a>,
        matching: &'a matching::MatchOptions,
        watch: &'a dyn Watch,
    ) -> Result<Self> {
        let reference = parameters(problem.network, problem.reference)?;
        Ok(Self {
            problem,
            matching,
            watch,
            reference,
            evaluated: Vec::new(),
        })
    }

    /// Descends over all samples once; returns the transform under which a batch had the least loss.
    fn descend(
        &mut self,
        options: &MidpointOptions,
        epoch: usize,
        descent: &mut Descent,
    ) -> Result<Option<Transform>> {
        let samples = self.problem.data.samples();
        let mut best: Option<(f64, Transform)> = None;
        for samples in order(samples, options.seed, epoch).chunks(options.batch.max(1)) {
            self.watch.go_on()?;
            // The forward pass takes the transform that brings the model nearest to T; the
            // gradient goes straight through to T.
            let target = self.over_reference(&descent.target);
            descent.current = self.matched(&target, &descent.current)?;
            let (loss, gradients) = self.gradients(&descent.current, samples)?;
            if best.as_ref().is_none_or(|(least, _)| loss < *least) {
                best = Some((loss, descent.current.clone()));
            }
            descent.adam.step(&mut descent.target, &gradients);
            self.watch.advanced(self.operations(options.batch));
        }
        Ok(best.map(|(_, transform)| transform))
    }

    /// Counts the multiplications and additions of a step: two for each number of each sample
    /// forward, four backward, as if every number were used once. For convolutions that is only a
    /// fraction; the count is for a progress bar.
    fn operations(&self, batch: usize) -> u64 {
        6 * batch as u64 * self.reference.bytes() / size_of::<f32>() as u64
    }

    /// Returns the transform that weight matching finds from `start` on.
    fn matched(&self, reference: &dyn Weights, start: &Transform) -> Result<Transform> {
        let Problem {
            moving, symmetries, ..
        } = self.problem;
        let found = match_weights(
            reference,
            moving,
            symmetries,
            Start {
                transform: start,
                steps: &[],
            },
            self.matching,
            &Inner(self.watch),
        )?;
        Ok(found.transform)
    }

    /// Completes T with the reference's tensors, for tensors that the network does not compute
    /// with.
    fn over_reference(&self, target: &Parameters) -> Over<'a> {
        Over {
            over: store(target, self.problem.kernels),
            under: self.problem.reference,
        }
    }

    fn midpoint(&self, transform: &Transform) -> Result<Parameters> {
        let Problem {
            moving,
            symmetries,
            network,
            ..
        } = self.problem;
        let alignment = Alignment {
            symmetries: Arc::clone(symmetries),
            transform: Arc::new(transform.clone()),
        };
        let moved = parameters(network, &Transformed::new(Arc::clone(moving), alignment))?;
        Ok(self.reference.combine(0.5, &moved, 0.5))
    }

    /// Computes the loss of the midpoint on a minibatch, and its gradients by T.
    fn gradients(&self, transform: &Transform, samples: &[usize]) -> Result<(f64, Parameters)> {
        let Problem { network, data, .. } = self.problem;
        let midpoint = self.midpoint(transform)?;
        let (loss, gradients) = network.gradients(&midpoint, network.gathered(data, samples)?);
        gradients
            .iter()
            .try_for_each(|(name, _, slopes)| check_finite(name, slopes))?;
        Ok((loss, gradients.combine(0.5, &gradients, 0.0)))
    }

    /// Computes the loss of the midpoint over all samples.
    fn loss(&mut self, transform: &Transform) -> Result<f64> {
        if let Some((_, loss)) = self.evaluated.iter().find(|(known, _)| known == transform) {
            return Ok(*loss);
        }
        let Problem { network, data, .. } = self.problem;
        let midpoint = self.midpoint(transform)?;
        // The budget covers one batch at a time.
        let memory = network.forward_bytes(network.batch().min(data.samples()), &|_| false);
        let loss = evaluate(network, &midpoint, data, memory, &|| self.watch.go_on())?.loss;
        self.evaluated.truncate(1);
        self.evaluated.insert(0, (transform.clone(), loss));
        Ok(loss)
    }
}

/// Weights of which some are replaced.
struct Over<'a> {
    over: Store,
    under: &'a dyn Weights,
}

impl Weights for Over<'_> {
    fn shape(&self, tensor: &str) -> Option<&[u64]> {
        self.over.shape(tensor).or_else(|| self.under.shape(tensor))
    }

    fn tensor(&self, tensor: &str) -> Result<Box<dyn Numbers + '_>> {
        if self.over.shape(tensor).is_some() {
            self.over.tensor(tensor)
        } else {
            self.under.tensor(tensor)
        }
    }
}

/// Lets the caller end a matching, but reports neither its steps nor its progress.
struct Inner<'a>(&'a dyn Watch);

impl Watch for Inner<'_> {
    fn go_on(&self) -> Result<()> {
        self.0.go_on()
    }
}
