//! What goes beside the weights: the donor's config, kept true, its tokenizer and other files.

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::output::config::with_dtype;
use crate::output::{Contents, SideFile};
use crate::plan::Plan;
use crate::plan::tensor::Action;

const CONFIG: &str = "config.json";

/// The files that go beside the weights of `plan`.
///
/// # Errors
///
/// When the donor's folder or config cannot be read.
pub fn side_files(plan: &Plan) -> Result<Vec<SideFile>> {
    let donor = &plan.inputs[plan.job.donor];
    let mut files = Vec::new();
    for name in donor.side_files()? {
        files.push(side_file(donor, &name, plan)?);
    }
    Ok(files)
}

fn side_file(donor: &Checkpoint, name: &Path, plan: &Plan) -> Result<SideFile> {
    let carried = || {
        let folder = donor.folder().unwrap_or_else(|| donor.root());
        SideFile::new(name, Contents::CopyOf(folder.join(name)))
    };
    if name != Path::new(CONFIG) {
        return carried();
    }
    match (donor.config()?, written_dtype(plan)) {
        (Some(config), Some(dtype)) => match with_dtype(&config, dtype) {
            Some(changed) => SideFile::new(name, Contents::Bytes(pretty(&changed)?)),
            None => carried(),
        },
        _ => carried(),
    }
}

/// The dtype that most of the merged bytes have.
fn written_dtype(plan: &Plan) -> Option<Dtype> {
    let bytes_of = |dtype: Dtype| -> u64 {
        let merged = plan.tensors.iter().filter(|tensor| matches!(tensor.action, Action::Merge(_)));
        merged.filter(|tensor| tensor.dtype == dtype).map(|tensor| tensor.output_bytes()).sum()
    };
    Dtype::MERGEABLE.into_iter().filter(|dtype| bytes_of(*dtype) > 0).max_by_key(|dtype| bytes_of(*dtype))
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    let mut text =
        serde_json::to_vec_pretty(value).map_err(|error| Error::new(Kind::Input, "cannot write", CONFIG, error))?;
    text.push(b'\n');
    Ok(text)
}
