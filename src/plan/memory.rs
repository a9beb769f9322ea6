//! Splits the memory into fixed costs, input windows and output buffers, and derives the block
//! size.

use crate::budget::{self, format_bytes};
use crate::checkpoint::{Checkpoint, Container, FRAME_BYTES};
use crate::error::{Error, Kind, Result};
use crate::kernel::{CHUNK, Scratch, pair_count};
use crate::recipe::OwnKeys;

use super::staging;
use super::tensor::TensorPlan;

/// Resident bytes of the program itself: code, stacks, allocator, channels. Measured at about half
/// of this.
const PROGRAM_BYTES: u64 = 24 << 20;
/// Stack and allocator arena that a worker thread touches.
const THREAD_BYTES: u64 = 1 << 20;
/// Bytes that an output tensor takes from planning to the end, besides its sources: its plan, its
/// place, its header entry, the record of its bytes, and its line of the manifest.
const TENSOR_BYTES: u64 = 900;
/// Bytes that each of its sources takes.
const SOURCE_BYTES: u64 = 112;
/// The most bytes of findings about tensors that wait for a commit; a commit on its way holds as
/// many again.
const CLAIMS_BYTES: u64 = 8 << 20;
/// Extra bytes of a window, which is mapped in whole pages, and the kernel maps some around it.
pub const WINDOW_EDGE_BYTES: u64 = 64 << 10;
/// The largest input window of a block: beyond this, bigger blocks gain nothing.
const WINDOW_CAP_BYTES: u64 = 4 << 20;
/// The most bytes of all windows of a block together.
const BLOCK_CAP_BYTES: u64 = 64 << 20;
/// Buffers for an input that must be decoded or converted to be read: compressed, or some PyTorch
/// files.
const DECODER_BYTES: u64 = 24 << 20;
/// Output bytes that are gathered before they are written to the disk.
const STAGE_BYTES: usize = 4 << 20;

/// The user's limits for memory and threads; they do not change the output.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// The most memory that may be resident, in bytes.
    pub memory: u64,
    /// Threads that compute.
    pub threads: usize,
    /// Bytes of one input's part of a block; chosen by the plan when `None`.
    pub block_bytes: Option<u64>,
}

impl Default for Wish {
    /// Takes the share of free memory that [`budget::default_bytes`] returns, and a thread for each
    /// core.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            memory: budget::default_bytes(),
            threads,
            block_bytes: None,
        }
    }
}

impl Wish {
    /// Reads the keys `memory` and `threads` of a recipe; the defaults where it has none.
    ///
    /// # Examples
    ///
    /// ```
    /// # use thalweg::{Recipe, Wish};
    /// # fn main() -> thalweg::Result<()> {
    /// let text = "merge_method: karcher\nmodels: [{model: a}, {model: b}]\nmemory: 4GiB\n";
    /// let recipe = Recipe::parse(text, "recipe.yml")?;
    /// let wish = Wish { threads: 2, ..Wish::of(&recipe.documents[0].own) };
    /// assert_eq!(wish.memory, 4 << 30);
    /// # Ok(())
    /// # }
    /// ```
    pub fn of(own: &OwnKeys) -> Self {
        let default = Self::default();
        let threads = own
            .threads
            .and_then(|threads| usize::try_from(threads).ok());
        Self {
            memory: own.memory.unwrap_or(default.memory),
            threads: threads.unwrap_or(default.threads),
            ..default
        }
    }
}

/// The memory that a device offers, and that it takes on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceWish {
    /// The most of its memory that may be used, in bytes.
    pub memory: u64,
    /// Memory that its driver keeps resident on the host, in bytes.
    pub host: u64,
}

/// The lanes of a device: streams with memory of their own on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Staging {
    /// The number of lanes.
    pub lanes: usize,
    /// Bytes of each lane, pinned on the host, and as many on the device.
    pub lane_bytes: usize,
}

/// The shares of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The most memory that may be resident, in bytes.
    pub limit: u64,
    /// Of it: the fixed costs of the process, whatever it works on.
    pub fixed: u64,
    /// Of it: windows on the inputs.
    pub input: u64,
    /// Of it: buffers on their way to the shards.
    pub output: u64,
    /// Elements of a block, whole chunks.
    pub block: u64,
    /// Threads that compute.
    pub threads: usize,
    /// Threads that compress; none when nothing is compressed.
    pub packers: usize,
    /// The lanes of the device, if there is one; part of the fixed memory.
    pub staging: Option<Staging>,
}

/// Costs of a block at worst over all tensors: bytes per element, and fixed bytes.
#[derive(Debug, Clone, Copy)]
struct Costs {
    sources: u64,
    input: u64,
    widest: u64,
    output: u64,
    fixed: u64,
    /// The fewest elements of a block: whole chunks that hold a row where rows are looked at.
    least: u64,
}

impl Memory {
    /// Shares out `wish.memory` for these tensors, of which `aligned` bytes are taken already by
    /// alignments and the metadata of headers.
    ///
    /// # Errors
    ///
    /// [`Kind::Budget`], naming the smallest memory that suffices, when this one is too small;
    /// [`Kind::Device`], naming the smallest device memory that suffices.
    pub fn share_out(
        wish: &Wish,
        device: Option<&DeviceWish>,
        inputs: &[Checkpoint],
        tensors: &[TensorPlan],
        zstd: Option<i32>,
        aligned: u64,
    ) -> Result<Self> {
        let mut costs = Costs::of(wish, inputs, tensors, aligned);
        let packers = zstd.map_or(0, |level| packers(wish, level));
        costs.fixed += packers as u64 * zstd.map_or(0, packer_bytes);
        let staging = device
            .map(|device| staging::share_out(wish, device, tensors))
            .transpose()?
            .flatten();
        if let (Some(staging), Some(device)) = (&staging, device) {
            costs.fixed += (staging.lanes * staging.lane_bytes) as u64 + device.host;
        }
        let smallest = costs.fixed + costs.block(costs.least);
        if wish.memory < smallest {
            return Err(Error::new(
                Kind::Budget,
                "memory is too small",
                format_bytes(wish.memory),
                format!(
                    "{} input tensors at once need at least {}",
                    costs.sources,
                    format_bytes(smallest)
                ),
            )
            .with_hint(format!(
                "give --memory {}MiB or more, or fewer --threads",
                smallest.div_ceil(1 << 20)
            )));
        }
        let stream = wish.memory - costs.fixed;
        let wanted = wish.threads as u64 + 2;
        let mut block = costs.largest_block(wish.block_bytes);
        while block > costs.least && wanted * costs.block(block) > stream {
            block /= 2;
        }
        let slots = (stream / costs.block(block)).clamp(1, 2 * wanted);
        let output = slots * costs.output * block;
        Ok(Self {
            limit: wish.memory,
            fixed: costs.fixed,
            input: stream - output,
            output,
            block,
            threads: wish.threads,
            packers,
            staging,
        })
    }
}

/// Bytes that headers may take of any budget, so that a budget too small for the merge is refused
/// with the least that suffices.
const HEADERS_BYTES: u64 = 16 << 20;

impl Wish {
    /// Returns the bytes that the headers of one more input may take besides those of `opened`.
    pub fn left_for_headers(&self, opened: &[&Checkpoint]) -> u64 {
        self.memory
            .saturating_sub(process_bytes(self.threads, opened))
            .max(HEADERS_BYTES)
    }
}

/// Returns the fixed bytes of a process, whatever it computes on these inputs: its own code and
/// threads, headers, decoders.
pub fn process_bytes(threads: usize, inputs: &[&Checkpoint]) -> u64 {
    let headers: u64 = inputs
        .iter()
        .map(|input| input.metadata_bytes() + decoder_bytes(input))
        .sum();
    PROGRAM_BYTES + threads as u64 * (THREAD_BYTES + Scratch::bytes(2) as u64) + headers
}

/// Returns the bytes that compressing one frame takes: the frame, the result, and the tables of the
/// level, for frames of 2 MiB.
fn packer_bytes(level: i32) -> u64 {
    let tables: u64 = match level {
        ..=3 => 2 << 20,
        4..=6 => 5 << 20,
        7..=10 => 14 << 20,
        _ => 37 << 20,
    };
    tables + 2 * FRAME_BYTES as u64 + THREAD_BYTES
}

/// Returns the number of frames compressed at once: at most one for each thread, within a quarter
/// of the memory.
fn packers(wish: &Wish, level: i32) -> usize {
    let most = wish.memory / 4 / packer_bytes(level);
    usize::try_from(most)
        .unwrap_or(usize::MAX)
        .clamp(1, wish.threads.max(1))
}

impl Costs {
    fn of(wish: &Wish, inputs: &[Checkpoint], tensors: &[TensorPlan], aligned: u64) -> Self {
        let most =
            |of: &dyn Fn(&TensorPlan) -> u64| tensors.iter().map(of).max().unwrap_or(1).max(1);
        let sources = most(&|tensor| tensor.sources.len() as u64);
        let widest = most(&|tensor| {
            (0..tensor.sources.len())
                .map(|i| tensor.source_unit(i))
                .max()
                .unwrap_or(1)
        });
        let record = |tensor: &TensorPlan| {
            TENSOR_BYTES + 3 * tensor.name.len() as u64 + SOURCE_BYTES * tensor.sources.len() as u64
        };
        let records = tensors.iter().map(record).sum::<u64>();
        let headers: u64 = inputs.iter().map(Checkpoint::metadata_bytes).sum();
        let decoders: u64 = inputs.iter().map(decoder_bytes).sum();
        let gathers = tensors
            .iter()
            .map(TensorPlan::gather_bytes)
            .max()
            .unwrap_or(0);
        let groups = tensors
            .iter()
            .map(TensorPlan::group_bytes)
            .max()
            .unwrap_or(0);
        let threads = wish.threads as u64 * thread_bytes(sources, tensors);
        Self {
            sources,
            input: most(&TensorPlan::window_units),
            widest,
            output: most(&TensorPlan::output_unit),
            fixed: PROGRAM_BYTES
                + STAGE_BYTES as u64
                + threads
                + records
                + records.min(CLAIMS_BYTES)
                + headers
                + decoders
                + groups
                + gathers
                + aligned,
            least: least_block(tensors),
        }
    }

    /// Returns the bytes of one block in flight: its windows, its output and its sums.
    fn block(&self, elements: u64) -> u64 {
        let pairs =
            pair_count(usize::try_from(self.sources).expect("sources are counted in memory"))
                as u64;
        let sums = elements.div_ceil(CHUNK as u64) * pairs * 8;
        elements * (self.input + self.output) + self.sources * WINDOW_EDGE_BYTES + sums
    }

    fn largest_block(&self, block_bytes: Option<u64>) -> u64 {
        let window = block_bytes.unwrap_or(WINDOW_CAP_BYTES) / self.widest;
        let whole = if block_bytes.is_some() {
            window
        } else {
            window.min(BLOCK_CAP_BYTES / self.input)
        };
        // A power of two, so that blocks of one tensor meet the check blocks of the output.
        let floor = if whole.is_power_of_two() {
            whole
        } else {
            whole.next_power_of_two() / 2
        };
        floor.max(self.least)
    }
}

/// Returns the bytes of a thread that computes on up to `sources` inputs at once.
fn thread_bytes(sources: u64, tensors: &[TensorPlan]) -> u64 {
    let scratch = Scratch::bytes(usize::try_from(sources).unwrap_or(usize::MAX)) as u64;
    let selecting = tensors.iter().map(TensorPlan::selection_bytes);
    THREAD_BYTES + scratch + selecting.max().unwrap_or(0)
}

/// Returns the fewest elements of a block: a chunk, or as many as hold the longest row that is
/// looked at as a whole.
fn least_block(tensors: &[TensorPlan]) -> u64 {
    let whole = tensors.iter().map(TensorPlan::whole_elements);
    let whole = whole.max().unwrap_or(1).next_power_of_two();
    whole.max(CHUNK as u64)
}

fn decoder_bytes(input: &Checkpoint) -> u64 {
    let as_it_is = |container| matches!(container, Container::Plain | Container::Torch);
    if input.files().iter().all(|file| as_it_is(file.container)) {
        0
    } else {
        DECODER_BYTES
    }
}
