//! Embeddings and heads: tensors with a row for each token.

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};

use super::tensor::TensorPlan;

/// Ends of the names of input embeddings.
const EMBEDDINGS: [&str; 9] = [
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "tokens_embed.weight",
    "embed_in.weight",
    "embeddings.weight",
    "shared.weight",
    "embed.weight",
];
/// Parts of the names of tensors with a row for each token.
const BY_TOKEN: [&str; 3] = ["embed", "lm_head", "wte"];

/// The rule for filling up tensors with a row for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vocabulary {
    /// Rows of these tensors in the donor.
    rows: u64,
    /// The number of rows is filled up to a multiple of this.
    multiple: u64,
}

impl Vocabulary {
    /// Returns the rule for filling the donor's embeddings up to `multiple`, if that is requested.
    ///
    /// # Errors
    ///
    /// Fails when the donor's config cannot be read, or neither it nor a tensor tells the size of
    /// the vocabulary.
    pub fn of(donor: &Checkpoint, multiple: Option<u64>) -> Result<Option<Self>> {
        let Some(multiple) = multiple.filter(|multiple| *multiple > 1) else {
            return Ok(None);
        };
        let config = donor.config()?.unwrap_or_default();
        let size = |value: &Value| value.get("vocab_size").and_then(Value::as_u64);
        let stated = size(&config).or_else(|| config.get("text_config").and_then(size));
        let rows = stated.or_else(|| stored_rows(donor)).ok_or_else(|| {
                let cause =
                    "neither a `vocab_size` in its config.json nor input embeddings tell how many tokens there are";
                Error::new(Kind::Mismatch, "cannot use pad_to_multiple_of", donor.root().display(), cause)
            })?;
        Ok(Some(Self { rows, multiple }))
    }

    /// Fills up `shape`, that of the tensor `name`, if it has a row for each token; `stored` is its
    /// shape in a model.
    pub fn fill_up(self, name: &str, stored: &[u64], shape: &mut [u64]) {
        let by_token =
            stored.first() == Some(&self.rows) && BY_TOKEN.iter().any(|part| name.contains(part));
        if let Some(rows) = shape.first_mut().filter(|_| by_token && stored.len() <= 2) {
            *rows = rows
                .checked_next_multiple_of(self.multiple)
                .unwrap_or(*rows);
        }
    }
}

/// Returns the rows of the written input embeddings, if they are not as many as the donor's.
pub fn changed_rows(donor: &Checkpoint, tensors: &[TensorPlan]) -> Option<u64> {
    let embeddings = tensors.iter().find(|tensor| is_embedding(&tensor.name))?;
    let (written, stored) = (
        embeddings.shape.first()?,
        donor.tensors().get(&embeddings.name)?.shape.first()?,
    );
    (written != stored).then_some(*written)
}

fn is_embedding(name: &str) -> bool {
    EMBEDDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Returns the number of rows of the input embeddings.
fn stored_rows(donor: &Checkpoint) -> Option<u64> {
    let mut tensors = donor.tensors().iter();
    let (_, entry) = tensors.find(|(name, _)| is_embedding(name))?;
    entry.shape.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tensors_with_a_row_for_each_token_are_filled_up() {
        let vocabulary = Vocabulary {
            rows: 10,
            multiple: 8,
        };
        let filled = |name: &str, stored: &[u64]| {
            let mut shape = stored.to_vec();
            vocabulary.fill_up(name, stored, &mut shape);
            shape
        };
        assert_eq!(filled("model.embed_tokens.weight", &[10, 4]), [16, 4]);
        assert_eq!(filled("lm_head.weight", &[10, 4]), [16, 4]);
        assert_eq!(filled("lm_head.bias", &[10]), [16]);
        assert_eq!(filled("transformer.wte.weight", &[10, 4]), [16, 4]);
        assert_eq!(filled("embed_positions.weight", &[12, 4]), [12, 4]);
        assert_eq!(filled("layers.0.mlp.weight", &[10, 4]), [10, 4]);
    }
}
