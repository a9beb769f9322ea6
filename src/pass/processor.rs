//! The processor's bench: loops over the elements in place.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::ThreadPool;

use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernel::{Elements, Kernels, Scratch};
use crate::plan::tensor::TensorPlan;

use super::bench::{Bench, Host, Run, Seat};

/// Elements that short groups are taken together for.
const RUN: usize = 1 << 13;

/// The threads of a pool, a scratch for each.
pub struct Processor {
    kernels: Kernels,
    pool: ThreadPool,
    scratch: Vec<Mutex<Scratch>>,
}

impl Processor {
    /// A bench for the threads of `pool`.
    pub fn new(kernels: Kernels, pool: ThreadPool) -> Self {
        let scratch = (0..pool.current_num_threads())
            .map(|_| Mutex::default())
            .collect();
        Self {
            kernels,
            pool,
            scratch,
        }
    }
}

impl Bench for Processor {
    fn kernels(&self) -> Kernels {
        self.kernels
    }

    fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    fn for_groups(&self, _group: usize) -> &dyn Bench {
        self
    }

    /// Returns one group, or as many short ones as are still in the caches when they are combined
    /// after they were measured: each run costs a few allocations.
    fn run_len(&self, _tensor: &TensorPlan, group: usize) -> usize {
        (RUN / group.max(1)).max(1) * group
    }

    fn seat(&self) -> Result<Box<dyn Seat + '_>> {
        let index = rayon::current_thread_index().unwrap_or(0) % self.scratch.len();
        let scratch = self.scratch[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(Box::new(ThreadSeat {
            kernels: self.kernels,
            scratch,
        }))
    }
}

struct ThreadSeat<'a> {
    kernels: Kernels,
    scratch: MutexGuard<'a, Scratch>,
}

impl Seat for ThreadSeat<'_> {
    fn load<'r>(&'r mut self, inputs: Vec<Elements<'r>>, out: Dtype) -> Result<Box<dyn Run + 'r>> {
        Ok(Box::new(InPlace {
            kernels: self.kernels,
            inputs,
            out,
            scratch: &mut self.scratch,
        }))
    }
}

/// Elements that are computed in place.
struct InPlace<'a> {
    kernels: Kernels,
    inputs: Vec<Elements<'a>>,
    out: Dtype,
    scratch: &'a mut Scratch,
}

impl Run for InPlace<'_> {
    fn host(&mut self) -> Host<'_> {
        Host {
            kernels: self.kernels,
            inputs: &self.inputs,
            out: self.out,
            scratch: self.scratch,
        }
    }
}
