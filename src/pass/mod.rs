//! The two passes over the elements, written once: the statistic of a group of elements, the rule
//! that follows from it, and the work of both on the processor or on a device.
//!
//! ```text
//!  Work (one stretch, any thread)          Group (plan order)               Work
//!  measure ──► settle ──► Measured ──fold──► Statistic ──solve──► Rule ──► apply
//!  Bench       Policy                        method/                       Bench
//! ```
//!
//! A [`Group`] is the set of elements under one statistic: a segment of a tensor, or the whole
//! model. Its stretches are measured by [`Work`] on any thread, chunk by chunk, and folded in plan
//! order, so no bit depends on blocks or threads. The NaN policy of the group decides about
//! non-finite elements on the way: no loop over elements knows the recipe. The group is then
//! solved, and the [`Rule`] applied to the same stretches.
//!
//! The pipeline, `verify --against` and merges in memory all drive these same steps. Nothing here
//! reads, writes or starts a thread: stretches come with their bytes, and the threads are those of
//! the bench's pool.
//!
//! - `bench`: the operations on runs of chunks; `processor` and `device`: their implementations.
//! - `statistic`: the kinds of statistics; `gram_by_column`: the one whose sums run on through a
//!   tensor.
//! - `rule`: the kinds of rules; `by_column`: the one with coefficients for each column.
//! - `elements`: methods that work element by element: their sweeps, and their rules applied.
//! - `turn`: the work of one sweep.
//! - `work`: one stretch: measured, combined, or both at once. `group`: folding and solving.
//! - `policy`: elements that are not finite, and overflow. `let_through`: NaN and infinity that
//!   sums would lose.
//! - `equal`: inputs that are copied, because all weighted inputs are equal. `tiny`: squares that
//!   vanish in f64.
//! - `found`: findings about a tensor, for its report. `stretch`, `tile`: elements in memory, as
//!   bytes and as f64.
//!
//! # Adding a method
//!
//! A method that needs inner products and gives coefficients is one file, `method/NAME.rs`, with
//! its line in `method/mod.rs`, and one row of the registry in `recipe/methods.rs`: nothing here
//! has an arm for a method.
//!
//! A method that selects and mixes differences from a base is a row in `recipe/elementwise.rs`, and
//! where none of the selections and mixes of [`method::elementwise`](crate::method::elementwise)
//! does, a variant there with its loop in `kernel/select/`.
//!
//! A method that needs another statistic, or computes the output in another way, also adds:
//!
//! - its statistic, as a variant of [`Statistics`](crate::method::Statistics);
//! - its loops, as a file of `kernel/`, called with a run's [`Host`], so that a device works at
//!   once and may override the operation later;
//! - an arm in `statistic`, which measures a chunk, folds chunks and solves for the rule;
//! - an arm in `rule`, which computes a chunk and saves the rule.
//!
//! The run note, the journal, `verify --against` and the device see [`Statistic`] and [`Rule`]
//! only.

mod bench;
mod by_column;
mod device;
mod elements;
mod equal;
mod found;
mod gram_by_column;
mod group;
mod let_through;
mod policy;
mod processor;
mod rule;
mod statistic;
mod stretch;
mod tile;
mod tiny;
mod turn;
mod work;

pub use bench::{Bench, Combined, Host, Piece, Run, Seat};
pub use by_column::ByColumn;
pub use device::Device;
pub use elements::Tied;
pub use found::{Found, SelectedModel, Selection};
pub use gram_by_column::GramByColumn;
pub use group::{Group, Solved};
pub use processor::Processor;
pub use rule::Rule;
pub use statistic::{Measured, Statistic};
pub use turn::Turn;
pub use work::Work;
