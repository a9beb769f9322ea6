//! The mean of many models, each under its transform, read block by block.

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;

use crate::align::matching::Cost;
use crate::align::{Numbers, Store, Transformed, Weights};
use crate::error::{Error, Kind, Result};
use crate::symmetry::Symmetries;
use crate::view::Aligned;

/// Elements whose squares are summed at a time.
const PIECE: u64 = 1 << 20;
/// Elements that are averaged at a time.
const BLOCK: usize = 1 << 14;

/// The weight of each tensor of one model in a mean.
pub(super) struct Scales(HashMap<String, f64>);

impl Scales {
    /// Returns one over the norm of each compared tensor, so that all models count alike in it;
    /// zero for tensors of zeros. With raw costs every scale is one.
    ///
    /// # Errors
    ///
    /// [`Kind::NonFinite`] when a tensor holds NaN or infinity; the errors of reading the model.
    pub fn of(
        store: &Store,
        symmetries: &Symmetries,
        cost: Cost,
        go_on: &(dyn Fn() -> Result<()> + Sync),
    ) -> Result<Self> {
        let tensors = symmetries.tensors.iter();
        let acted = tensors.filter(|(_, tensor)| tensor.is_acted_on());
        let scales = acted.map(|(name, _)| {
            let norm = finite_norm(store, name, go_on)?;
            let scale = match cost {
                Cost::Raw => 1.0,
                Cost::Normalised if norm > 0.0 => norm.recip(),
                Cost::Normalised => 0.0,
            };
            Ok((name.clone(), scale))
        });
        scales.collect::<Result<_>>().map(Self)
    }
}

/// Computes the norm of a tensor, which must be finite.
fn finite_norm(store: &Store, name: &str, go_on: &(dyn Fn() -> Result<()> + Sync)) -> Result<f64> {
    let norm = norm(store, name, go_on)?;
    if norm.is_finite() {
        return Ok(norm);
    }
    Err(Error::new(
        Kind::NonFinite,
        "cannot match weights",
        name.escape_debug(),
        "a model holds NaN or infinity in it",
    )
    .with_hint("no unit can be told from another by such numbers; repair the checkpoint first"))
}

/// Computes the norm of a tensor in f64, adding pieces in order.
fn norm(store: &Store, name: &str, go_on: &(dyn Fn() -> Result<()> + Sync)) -> Result<f64> {
    let count: u64 = store.shape(name).unwrap_or_default().iter().product();
    let sums = (0..count.div_ceil(PIECE))
        .into_par_iter()
        .map(|piece| {
            go_on()?;
            let range = piece * PIECE..count.min((piece + 1) * PIECE);
            let len = usize::try_from(range.end - range.start).expect("a piece fits the memory");
            let mut values = vec![0.0_f32; len];
            store.tensor(name)?.read(range, &mut values)?;
            let squares = values
                .iter()
                .map(|value| f64::from(*value) * f64::from(*value));
            Ok(squares.sum::<f64>())
        })
        .collect::<Result<Vec<f64>>>()?;
    Ok(sums.iter().sum::<f64>().sqrt())
}

/// The weighted mean of some models; in fact their weighted sum, as only its direction counts.
pub(super) struct Mean<'a> {
    pub members: Vec<Member<'a>>,
}

/// A model under its transform, with its weight in the mean.
pub(super) struct Member<'a> {
    pub model: Transformed,
    pub weight: f64,
    pub scales: &'a Scales,
}

impl Member<'_> {
    /// Returns the factor of a tensor in the sum.
    fn factor(&self, tensor: &str) -> Result<f64> {
        // An expert's norm is stored under the expert's old name.
        let source = Aligned::source_name(self.model.alignment(), tensor)?;
        let scale = self.scales.0.get(&source).copied().unwrap_or(1.0);
        Ok(self.weight * scale)
    }
}

impl Weights for Mean<'_> {
    fn shape(&self, tensor: &str) -> Option<&[u64]> {
        self.members.first()?.model.shape(tensor)
    }

    fn tensor(&self, tensor: &str) -> Result<Box<dyn Numbers + '_>> {
        let mut terms = Vec::with_capacity(self.members.len());
        for member in &self.members {
            terms.push((member.factor(tensor)?, member.model.tensor(tensor)?));
        }
        Ok(Box::new(Terms {
            terms,
            part: Vec::new(),
            sums: Vec::new(),
        }))
    }
}

/// The same tensor of all models, and the weight of each.
struct Terms<'a> {
    terms: Vec<(f64, Box<dyn Numbers + 'a>)>,
    part: Vec<f32>,
    sums: Vec<f64>,
}

impl Numbers for Terms<'_> {
    fn read(&mut self, range: Range<u64>, into: &mut [f32]) -> Result<()> {
        let mut at = range.start;
        for block in into.chunks_mut(BLOCK) {
            let end = at + block.len() as u64;
            self.part.resize(block.len(), 0.0);
            self.sums.clear();
            self.sums.resize(block.len(), 0.0);
            for (factor, numbers) in &mut self.terms {
                numbers.read(at..end, &mut self.part)?;
                self.sums
                    .iter_mut()
                    .zip(&self.part)
                    .for_each(|(sum, value)| *sum += *factor * f64::from(*value));
            }
            #[expect(clippy::cast_possible_truncation, reason = "rounding is wanted")]
            block
                .iter_mut()
                .zip(&self.sums)
                .for_each(|(value, sum)| *value = *sum as f32);
            at = end;
        }
        Ok(())
    }

    fn prefetch(&self, range: Range<u64>) {
        self.terms
            .iter()
            .for_each(|(_, numbers)| numbers.prefetch(range.clone()));
    }
}
