//! Computing on a graphics processor: the sums and roundings of [`kernel`](crate::kernel), with
//! the same bits; and products of matrices, whose sums have an order of their own.
//!
//! A [`Driver`] has the operations of a device: memory, streams, copies, launches. [`Lanes`] are a
//! few streams with memory of their own on both sides; a thread with a stretch of elements takes a
//! lane, copies the stretch over, has it measured, scanned or combined, and gives the lane back.
//! With two lanes or more, copies in one overlap work in another. The kernels are CUDA C in
//! `src/device/cuda`, which tests also compile for the host and compare with the portable loops;
//! they are shipped as PTX, so they need only NVIDIA's driver, which is loaded when the program
//! runs.
//!
//! - `choice`: the device that a user asks for, and opening it.
//! - `cuda`: the driver over the CUDA driver library.
//! - `layout`: the layout of a lane's memory.
//! - `lanes`: the lanes: their owners, and their memory on both sides.
//! - `resident`: the work on elements in a lane.
//! - `products`: sums of products of matrices; `multiplication`: one product; `cut`, `factors`:
//!   cutting and copying its factors.
//! - `gather`: reordered columns.
//! - `blas`: the vendor's library for products, where it is installed.

#[cfg(feature = "cuda")]
mod blas;
mod choice;
#[cfg(feature = "cuda")]
mod cuda;
mod cut;
mod factors;
mod gather;
mod lanes;
mod layout;
mod multiplication;
mod products;
mod resident;

use std::ptr::NonNull;

use crate::error::Result;

pub use choice::{Choice, Opened, open};
pub use lanes::{LaneGuard, Lanes};
pub use layout::LaneLayout;
pub use multiplication::{DEPTH, Factor, Multiplication, SQUARE};
pub use products::Products;
pub use resident::{Mix, Resident};

/// The least elements of a solved segment that goes to a device; a shorter one costs more to copy
/// than to compute.
pub const LEAST_SEGMENT: usize = 1024;

/// An address in the memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address(pub u64);

impl Address {
    /// The address `bytes` further on.
    #[must_use]
    pub fn at(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// A queue of copies and launches, carried out in order and in parallel to other streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(pub usize);

/// A kernel of `src/device/cuda/kernels.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Inner products of every pair of inputs.
    GramSums,
    /// The first element that is not finite.
    Scan,
    /// Weighted sums, rounded once.
    Combine,
    /// Sums of products of matrices in f32.
    Product,
    /// Elements moved by an index along the last axis.
    Gather,
}

impl Kernel {
    /// Every kernel.
    pub const ALL: [Self; 5] = [
        Self::GramSums,
        Self::Scan,
        Self::Combine,
        Self::Product,
        Self::Gather,
    ];

    /// Threads of a block, in every kernel.
    pub const BLOCK: u32 = 256;

    /// The name of its function.
    pub fn name(self) -> &'static str {
        match self {
            Self::GramSums => "thalweg_gram",
            Self::Scan => "thalweg_scan",
            Self::Combine => "thalweg_combine",
            Self::Product => "thalweg_product",
            Self::Gather => "thalweg_gather",
        }
    }
}

/// A parameter of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    /// A pointer into the device's memory.
    Address(Address),
    /// A number of 32 bits.
    Word(u32),
}

/// The operations of a device. All methods may be called from any thread.
///
/// Every error is of kind [`Kind::Device`](crate::error::Kind::Device).
pub trait Driver: Send + Sync {
    /// The name for a report, such as `cuda:0 (NVIDIA A100)`.
    fn name(&self) -> String;

    /// Bytes of its memory that are free now.
    fn free_bytes(&self) -> Result<u64>;

    /// Allocates `bytes` of its memory, aligned to 256 bytes, uninitialised.
    fn allocate(&self, bytes: usize) -> Result<Address>;

    /// Gives memory back.
    ///
    /// # Safety
    ///
    /// `memory` came from [`Driver::allocate`], and no queued work uses it any more.
    unsafe fn free(&self, memory: Address);

    /// Pins `bytes` of the host's memory, so that copies run in parallel to other work.
    fn pin(&self, bytes: usize) -> Result<NonNull<u8>>;

    /// Gives pinned memory back.
    ///
    /// # Safety
    ///
    /// `memory` came from [`Driver::pin`], and no queued work uses it any more.
    unsafe fn unpin(&self, memory: NonNull<u8>);

    /// Makes a stream.
    fn stream(&self) -> Result<Stream>;

    /// Ends a stream.
    ///
    /// # Safety
    ///
    /// It came from [`Driver::stream`] and is not used any more.
    unsafe fn close(&self, stream: Stream);

    /// Queues a copy of `len` bytes to the device.
    ///
    /// # Safety
    ///
    /// `from` is pinned and neither written nor given back before [`Driver::wait`] returns; both
    /// ranges are allocated.
    unsafe fn copy_in(
        &self,
        stream: Stream,
        from: *const u8,
        to: Address,
        len: usize,
    ) -> Result<()>;

    /// Queues a copy of `len` bytes from the device.
    ///
    /// # Safety
    ///
    /// `to` is pinned and neither read, written nor given back before [`Driver::wait`] returns;
    /// both ranges are allocated.
    unsafe fn copy_out(&self, stream: Stream, from: Address, to: *mut u8, len: usize)
    -> Result<()>;

    /// Queues `kernel` on `grid` blocks of [`Kernel::BLOCK`] threads.
    ///
    /// # Safety
    ///
    /// The arguments are those of the kernel, and lead to memory of the device as the kernel
    /// expects it.
    unsafe fn launch(
        &self,
        stream: Stream,
        kernel: Kernel,
        grid: [u32; 2],
        arguments: &[Argument],
    ) -> Result<()>;

    /// Waits until all queued work is done.
    ///
    /// # Safety
    ///
    /// The stream came from [`Driver::stream`] and is open.
    unsafe fn wait(&self, stream: Stream) -> Result<()>;

    /// Loads the library that multiplies matrices, and returns its name for a report.
    fn multiplier(&self) -> &'static str {
        "its own kernel"
    }

    /// Queues a product of matrices: by [`Kernel::Product`], unless a faster library is loaded.
    ///
    /// # Safety
    ///
    /// Factors and sums are allocated, as large as the product says.
    unsafe fn multiply(&self, stream: Stream, product: &Multiplication) -> Result<()> {
        // SAFETY: the arguments are made for this kernel; the caller's.
        unsafe {
            self.launch(
                stream,
                Kernel::Product,
                product.grid(),
                &product.arguments(),
            )
        }
    }
}
