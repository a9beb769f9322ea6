//! Threads that compress shards, beside those that merge.

use std::sync::Arc;

use rayon::ThreadPoolBuilder;
use rayon::prelude::*;

use crate::error::{Error, Kind, Result};
use crate::output::{Output, Packers};
use crate::plan::Plan;

use super::Options;

/// Lets `output` compress its shards on the threads that the plan sets aside for it, until a stop
/// is asked for.
///
/// # Errors
///
/// Fails if the threads cannot be started.
pub fn pack_in_parallel(plan: &Plan, output: &mut Output, options: &Options) -> Result<()> {
    if plan.layout.zstd().is_none() {
        return Ok(());
    }
    let width = plan.memory.packers;
    let pool = ThreadPoolBuilder::new()
        .num_threads(width)
        .thread_name(|index| format!("thalweg-zstd-{index}"))
        .build()
        .map_err(|error| Error::new(Kind::Io, "cannot start threads", width, error))?;
    let (stop, monitor) = (options.stop.clone(), Arc::clone(&options.monitor));
    output.pack_with(Packers::new(
        width,
        Arc::new(move |count, work| {
            pool.install(|| (0..count).into_par_iter().with_max_len(1).for_each(work))
        }),
        Arc::new(move |bytes| {
            monitor.advance(bytes);
            !stop.asked()
        }),
    ));
    Ok(())
}
