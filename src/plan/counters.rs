//! Buffers that count (positions, steps, numbers of batches), which some programs store as integers
//! and others as floats, or as integers of another width.

use crate::checkpoint::TensorEntry;

use super::coverage::Dropped;
use super::job::Job;

/// Keeps only sources of the carried type if the inputs hold integers of different types, or some
/// of them floats: the base's type if it holds integers, else that of the first input that does.
/// Adds the others to `dropped`.
pub fn leave_floats_out(
    job: &Job,
    entries: &mut Vec<&TensorEntry>,
    sources: &mut Vec<(usize, String)>,
    dropped: &mut Vec<Dropped>,
) {
    let known = entries
        .iter()
        .all(|entry| entry.dtype.is_integer() || entry.dtype.is_mergeable());
    let base = sources.iter().position(|(input, _)| *input == job.donor);
    let mut order = base
        .into_iter()
        .chain(0..entries.len())
        .map(|at| entries[at].dtype);
    let Some(taken) = order.find(|dtype| dtype.is_integer()).filter(|_| known) else {
        return;
    };
    for (entry, source) in std::mem::take(entries)
        .into_iter()
        .zip(std::mem::take(sources))
    {
        if entry.dtype == taken {
            entries.push(entry);
            sources.push(source);
        } else {
            let (input, name) = source;
            let reason = format!(
                "its elements are {}, those that are carried unchanged are {taken}",
                entry.dtype
            );
            dropped.push(Dropped {
                input,
                name,
                reason,
                is_tied: false,
            });
        }
    }
}
