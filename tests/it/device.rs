//! The device backend without a device: the CUDA kernels compiled for the host, and a driver that
//! runs and records them.

mod aligning;
mod choices;
mod fake;
mod gathers;
mod kernels;
mod merges;
mod products;
mod shipped;
