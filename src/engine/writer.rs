//! The writing stage, three threads in a row: one waits for each piece in plan order and hashes it,
//! one writes it at its offset, and one makes written pieces durable and journals them while the
//! others go on.

use std::ops::Range;
use std::thread::ScopedJoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::budget::Buffer;
use crate::budget::most_open_files;
use crate::error::Result;
use crate::monitor::Monitor;
use crate::output::{Output, Pending, Place};
use crate::pass::Found;
use crate::plan::Plan;

use super::dispatch::Order;
use super::promise::answer_of;
use super::{no_thread, stage};

/// Pieces that may wait between hashing and writing; their buffers are paid for by the budget.
const TASKS: usize = 4;

/// The most bytes of findings about tensors that are held until a commit.
pub const CLAIMED_BYTES: usize = 1 << 20;
/// The divisor of the limit on open files for the shards of one commit: several commits are under
/// way, one more is being gathered, and each shard is open twice.
const SHARE_OF_FILES: u64 = 8;

/// The writing stage.
pub struct Writer<'a> {
    /// The plan that is merged.
    pub plan: &'a Plan,
    /// The output.
    pub output: &'a mut Output,
    /// For each tensor, the bytes that an earlier run made durable; they are not written again.
    pub durable: &'a [u64],
    /// The observer of progress.
    pub monitor: &'a dyn Monitor,
    /// Bytes written between two commits.
    pub commit_bytes: u64,
}

/// An operation on the disk; they are carried out in order.
enum Task {
    /// Writes bytes.
    Write(Place, Buffer, Range<usize>),
    /// Makes written bytes durable.
    Commit(Pending),
}

impl Writer<'_> {
    /// Carries out `orders` until they end, with commits on the way and at the end. Pieces written
    /// before a failure are committed too.
    ///
    /// # Errors
    ///
    /// The first failure of a piece, of writing, or of syncing.
    pub fn run(self, orders: &Receiver<Order>) -> Result<()> {
        std::thread::scope(|scope| {
            let (tasks, inbox) = bounded::<Task>(TASKS);
            let (commits, pending) = bounded::<Pending>(1);
            let storer = stage("store")
                .spawn_scoped(scope, move || store(&inbox, &commits))
                .map_err(no_thread)?;
            let syncer = stage("sync")
                .spawn_scoped(scope, move || {
                    pending.into_iter().try_for_each(Pending::run)
                })
                .map_err(no_thread)?;
            let hashed = self.hash_all(orders, &tasks);
            drop(tasks);
            let ended = [join(syncer), join(storer), hashed];
            // A stage whose successor is gone ends without an error of its own, so the error of the
            // last stage comes first.
            ended.into_iter().collect()
        })
    }

    fn hash_all(self, orders: &Receiver<Order>, tasks: &Sender<Task>) -> Result<()> {
        let Self {
            plan,
            output,
            durable,
            monitor,
            commit_bytes,
        } = self;
        let found = Found::default();
        let most_shards = usize::try_from(most_open_files() / SHARE_OF_FILES)
            .unwrap_or(usize::MAX)
            .max(1);
        let mut pieces = Pieces {
            plan,
            output,
            durable,
            monitor,
            commit_bytes,
            found,
            uncommitted: 0,
            most_shards,
        };
        let hashed = pieces.take(orders, tasks);
        let last = output.prepare_commit()?;
        let _ = tasks.send(Task::Commit(last));
        hashed
    }
}

fn join(stage: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    stage
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Writes pieces, and passes each commit on once everything before it was written.
fn store(tasks: &Receiver<Task>, commits: &Sender<Pending>) -> Result<()> {
    for task in tasks {
        match task {
            Task::Write(place, buffer, range) => place.write(&buffer[range])?,
            Task::Commit(pending) => {
                if commits.send(pending).is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

struct Pieces<'a> {
    plan: &'a Plan,
    output: &'a mut Output,
    durable: &'a [u64],
    monitor: &'a dyn Monitor,
    commit_bytes: u64,
    /// The findings so far about the tensor that is being written.
    found: Found,
    uncommitted: u64,
    /// The most shards with new bytes in one commit.
    most_shards: usize,
}

impl Pieces<'_> {
    fn take(&mut self, orders: &Receiver<Order>, tasks: &Sender<Task>) -> Result<()> {
        for order in orders {
            match order {
                Order::Found(found) => self.found.add(*found),
                Order::Solved(rule) => {
                    self.output.set_run_note(rule.save());
                    // Finding it took a pass over the whole model, so it is committed at once.
                    self.uncommitted = self.commit_bytes;
                }
                Order::Piece {
                    tensor,
                    offset,
                    made,
                } => {
                    let (buffer, found) = answer_of(&made)?;
                    self.found.add(found);
                    if let Some(task) = self.piece(tensor, offset, buffer)?
                        && tasks.send(task).is_err()
                    {
                        return Ok(());
                    }
                }
            }
            let full = self.output.unclaimed_bytes() >= CLAIMED_BYTES
                || self.output.open_shards() >= self.most_shards;
            if full || self.uncommitted >= self.commit_bytes {
                self.uncommitted = 0;
                if tasks
                    .send(Task::Commit(self.output.prepare_commit()?))
                    .is_err()
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Hashes the part of a piece that is not durable yet.
    fn piece(&mut self, tensor: usize, offset: u64, buffer: Buffer) -> Result<Option<Task>> {
        let end = offset + buffer.len() as u64;
        if end == self.plan.tensors[tensor].output_bytes() {
            // Before the last bytes, so that no commit can claim the tensor without the findings
            // about it.
            let found = std::mem::take(&mut self.found);
            self.output.set_note(
                tensor,
                &serde_json::to_value(found).expect("findings are plain data"),
            );
        }
        let done = self.durable[tensor].saturating_sub(offset);
        let fresh = usize::try_from(done)
            .unwrap_or(usize::MAX)
            .min(buffer.len())..buffer.len();
        if fresh.is_empty() {
            return Ok(None);
        }
        self.uncommitted += fresh.len() as u64;
        self.monitor.advance(fresh.len() as u64);
        let place = self
            .output
            .place(tensor, end - fresh.len() as u64, &buffer[fresh.clone()])?;
        Ok(place.map(|place| Task::Write(place, buffer, fresh)))
    }
}
