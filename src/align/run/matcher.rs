//! The criterion that matches units: weights, activations or midpoint loss.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::align::activations::{self, match_activations};
use crate::align::matching::{self, Proof, Residual, Start, Step, Watch, match_weights};
use crate::align::network::network;
use crate::align::straight_through::{self, Losses, Problem, straight_through};
use crate::align::{Store, Weights};
use crate::checkpoint::{Checkpoint, SourceOptions};
use crate::data::DataSet;
use crate::engine::Options;
use crate::error::Result;
use crate::net::Network;
use crate::symmetry::{Symmetries, Transform, fingerprint};

use super::{Findings, Pair};

/// The criterion that decides which units are matched.
pub enum Matcher {
    /// The weights.
    Weights,
    /// The activations of the units on data.
    Activations {
        /// The reference's activations.
        reference: Box<Checkpoint>,
        /// The model's activations, on the same samples.
        model: Box<Checkpoint>,
        /// The options of the comparison; the run fills in their memory.
        options: activations::ActivationOptions,
    },
    /// The loss of the midpoint.
    StraightThrough {
        /// The network of both models.
        network: Box<Network>,
        /// The samples.
        data: Box<DataSet>,
        /// The fingerprint of the samples.
        print: String,
        /// The options of the descent.
        options: straight_through::MidpointOptions,
    },
}

/// The result of a matcher.
pub struct MatchResult {
    /// The element of every group.
    pub transform: Transform,
    /// Sweeps over all groups.
    pub sweeps: usize,
    /// Losses of the midpoint, if they were evaluated.
    pub losses: Option<Losses>,
}

/// The models of a run, and the options of carrying it out.
pub struct Models<'a> {
    /// The pair.
    pub pair: &'a Pair,
    /// The reference's weights as they are compared.
    pub reference: &'a dyn Weights,
    /// The reference's weights as stored.
    pub stored: &'a Store,
    /// The model's weights.
    pub moving: &'a Arc<Store>,
    /// The options of the run.
    pub options: &'a Options,
}

impl Models<'_> {
    /// Matches units by the weights of both models.
    fn by_weights(
        &self,
        matching: &matching::MatchOptions,
        earlier: &[Step],
        watch: &dyn Watch,
    ) -> Result<MatchResult> {
        let start = Start {
            transform: &self.pair.start()?,
            steps: earlier,
        };
        let symmetries = &self.pair.symmetries;
        let (reference, moving) = (self.reference, self.moving);
        let found = match_weights(reference, moving, symmetries, start, matching, watch)?;
        Ok(MatchResult {
            transform: found.transform,
            sweeps: found.sweeps,
            losses: None,
        })
    }

    /// Matches units by recorded activations of both models.
    fn by_activations(
        &self,
        recorded: [&Checkpoint; 2],
        options: &activations::ActivationOptions,
        earlier: &[Step],
        watch: &dyn Watch,
    ) -> Result<MatchResult> {
        let sources = SourceOptions {
            io: self.options.io,
            scratch: None,
        };
        let open = |model| Store::open(model, &sources, self.options.kernels);
        let [reference, model] = [open(recorded[0])?, open(recorded[1])?];
        let symmetries = &self.pair.symmetries;
        let found = match_activations(&reference, &model, symmetries, earlier, options, watch)?;
        Ok(MatchResult {
            transform: found.transform,
            sweeps: found.sweeps,
            losses: None,
        })
    }
}

/// Searches for the transform of the smallest loss half way between the models.
fn by_midpoint(
    problem: &Problem<'_>,
    options: &straight_through::MidpointOptions,
    matching: &matching::MatchOptions,
    watch: &dyn Watch,
) -> Result<MatchResult> {
    let found = straight_through(problem, options, matching, watch)?;
    let groups = problem.symmetries.groups.iter().enumerate();
    let roots = groups.filter(|(_, group)| {
        let is_fixed = group.residual && matching.residual == Residual::Fixed;
        group.within.is_none() && !is_fixed
    });
    for (root, _) in roots {
        watch.taken(&unproved(root, &found.transform))?;
    }
    Ok(MatchResult {
        transform: found.transform,
        sweeps: options.epochs,
        losses: Some(found.losses),
    })
}

impl Matcher {
    /// Takes recorded activations, tensors \[samples, units\] with the names of the groups.
    ///
    /// # Errors
    ///
    /// Fails if one of the two cannot be opened.
    pub fn activations(
        reference: &Path,
        model: &Path,
        options: activations::ActivationOptions,
    ) -> Result<Self> {
        let open = |path| Checkpoint::open(path).map(Box::new);
        Ok(Self::Activations {
            reference: open(reference)?,
            model: open(model)?,
            options,
        })
    }

    /// Takes the loss on the data set `data` of the midpoint of `pair`.
    ///
    /// # Errors
    ///
    /// Fails if the data set cannot be used, or there is no forward pass for the models.
    pub fn straight_through(
        pair: &Pair,
        data: &Path,
        options: straight_through::MidpointOptions,
        run: &Options,
    ) -> Result<Self> {
        let print = fingerprint::of(&Checkpoint::open(data)?)?;
        let data = DataSet::open(data, run.kernels)?;
        let network = network(
            &pair.symmetries,
            pair.reference.config()?.as_ref(),
            data.shape(),
        )?;
        Ok(Self::StraightThrough {
            network: Box::new(network),
            data: Box::new(data),
            print,
            options,
        })
    }

    /// Adds the criterion to the identity of a run.
    ///
    /// # Errors
    ///
    /// Fails if activations cannot be read.
    pub fn add_to(&self, identity: &mut Value) -> Result<()> {
        identity["by"] = match self {
            // Matching by weights adds nothing, as before other criteria existed.
            Self::Weights => return Ok(()),
            Self::Activations {
                reference,
                model,
                options,
            } => json!({
                "activations": [fingerprint::of(reference)?, fingerprint::of(model)?],
                "options": options,
            }),
            Self::StraightThrough { print, options, .. } => {
                json!({ "data": print, "options": options })
            }
        };
        Ok(())
    }

    /// Returns the least memory, in bytes, with which the transform can be found.
    pub fn least_memory(
        &self,
        reference: &Store,
        moving: &Arc<Store>,
        symmetries: &Arc<Symmetries>,
        matching: &matching::MatchOptions,
    ) -> u64 {
        let by_weights = || matching::least_memory(reference, moving, symmetries, matching);
        match self {
            Self::Weights => by_weights(),
            Self::Activations { .. } => activations::least_memory(symmetries),
            Self::StraightThrough {
                network,
                data,
                options,
                ..
            } => straight_through::bytes(network, data, options) + by_weights(),
        }
    }

    /// Adds the findings that only this criterion has.
    pub fn add_findings(
        &self,
        found: &mut Findings,
        steps: &[Step],
        pair: &Pair,
        losses: Option<Losses>,
    ) {
        found.losses = losses;
        if !matches!(self, Self::Activations { .. }) {
            return;
        }
        for step in steps {
            let name = &pair.symmetries.groups[step.root].name;
            if let Some(root) = found.roots.iter_mut().find(|root| root.name == *name) {
                root.activations = Some([step.before, step.after]);
            }
        }
    }

    /// Finds the transform, on the threads of the current pool.
    ///
    /// # Errors
    ///
    /// Passes on the errors of the matchers.
    pub fn solve(
        &self,
        models: &Models<'_>,
        matching: &matching::MatchOptions,
        earlier: &[Step],
        watch: &dyn Watch,
    ) -> Result<MatchResult> {
        match self {
            Self::Weights => models.by_weights(matching, earlier, watch),
            Self::Activations {
                reference,
                model,
                options,
            } => {
                let options = activations::ActivationOptions {
                    memory: matching.memory,
                    backend: matching.backend.clone(),
                    ..options.clone()
                };
                models.by_activations([reference, model], &options, earlier, watch)
            }
            Self::StraightThrough {
                network,
                data,
                options,
                ..
            } => {
                let own = straight_through::bytes(network, data, options);
                let matching = matching::MatchOptions {
                    memory: matching.memory.saturating_sub(own),
                    ..matching.clone()
                };
                let problem = Problem {
                    reference: models.stored,
                    moving: models.moving,
                    symmetries: &models.pair.symmetries,
                    network,
                    data,
                    kernels: models.options.kernels,
                };
                by_midpoint(&problem, options, &matching, watch)
            }
        }
    }
}

/// Makes the step of a root of which only the moves of its units are known; its part of the
/// objective was not evaluated.
fn unproved(root: usize, transform: &Transform) -> Step {
    let elements = vec![(root, transform.elements()[root].clone())];
    Step {
        sweep: 0,
        root,
        elements,
        before: 0.0,
        after: 0.0,
        units: 0,
        moved: 0,
        proof: Proof::Parts,
    }
}
