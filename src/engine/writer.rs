//! The writing stage: waits for each piece in plan order, writes it at its offset, and lets a syncer make durable what
//! has been written while it goes on with what comes next.

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::error::Result;
use crate::monitor::Monitor;
use crate::output::{Output, Pending};
use crate::plan::Plan;
use crate::report::Found;

use super::dispatch::{Order, answer_of};

/// Written bytes after which they are made durable and journalled: what a kill can cost.
const COMMIT_BYTES: u64 = 128 << 20;

/// The writing stage.
pub struct Writer<'a> {
    /// What is merged.
    pub plan: &'a Plan,
    /// Where it goes.
    pub output: &'a mut Output,
    /// For each tensor, the bytes that an earlier run made durable; they are not written again.
    pub durable: &'a [u64],
    /// Who is told.
    pub monitor: &'a dyn Monitor,
}

impl Writer<'_> {
    /// Carries out `orders` until they end, committing on the way and at the end. What was written before a failure
    /// is committed too.
    ///
    /// # Errors
    ///
    /// The first failure of a piece, of writing, or of syncing.
    pub fn run(self, orders: &Receiver<Order>) -> Result<()> {
        std::thread::scope(|scope| {
            let (commits, inbox) = bounded::<Pending>(1);
            let syncer = scope.spawn(move || inbox.into_iter().try_for_each(Pending::run));
            let written = self.write_all(orders, &commits);
            drop(commits);
            let synced = syncer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // When syncing fails, the writer ends since nobody takes its commits; the syncer knows why.
            synced.and(written)
        })
    }

    fn write_all(self, orders: &Receiver<Order>, commits: &Sender<Pending>) -> Result<()> {
        let Self { plan, output, durable, monitor } = self;
        let written =
            Pieces { plan, output, durable, monitor, found: Found::default(), uncommitted: 0 }.write(orders, commits);
        let last = output.prepare_commit()?;
        let _ = commits.send(last);
        written
    }
}

struct Pieces<'a> {
    plan: &'a Plan,
    output: &'a mut Output,
    durable: &'a [u64],
    monitor: &'a dyn Monitor,
    /// What was found so far about the tensor that is being written.
    found: Found,
    uncommitted: u64,
}

impl Pieces<'_> {
    fn write(&mut self, orders: &Receiver<Order>, commits: &Sender<Pending>) -> Result<()> {
        for order in orders {
            match order {
                Order::Found(found) => self.found.add(*found),
                Order::Solved(solution) => {
                    let value = serde_json::to_value(&*solution).expect("a solution is plain data");
                    self.output.set_run_note(value);
                }
                Order::Piece { tensor, offset, made } => {
                    let (buffer, found) = answer_of(&made)?;
                    self.found.add(found);
                    self.piece(tensor, offset, &buffer)?;
                }
            }
            if self.uncommitted >= COMMIT_BYTES {
                self.uncommitted = 0;
                if commits.send(self.output.prepare_commit()?).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn piece(&mut self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset + bytes.len() as u64;
        if end == self.plan.tensors[tensor].output_bytes() {
            // Before the last bytes, so that no commit can claim the tensor without what was found about it.
            let found = std::mem::take(&mut self.found);
            self.output.set_note(tensor, serde_json::to_value(found).expect("findings are plain data"));
        }
        let done = self.durable[tensor].saturating_sub(offset);
        let bytes = &bytes[usize::try_from(done).unwrap_or(usize::MAX).min(bytes.len())..];
        if !bytes.is_empty() {
            self.output.write(tensor, end - bytes.len() as u64, bytes)?;
        }
        self.uncommitted += bytes.len() as u64;
        self.monitor.advance(bytes.len() as u64);
        Ok(())
    }
}
