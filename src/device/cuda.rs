//! The driver over NVIDIA's driver library, which is loaded on first use if it is installed.

use std::ffi::{CString, c_void};
use std::ptr::NonNull;
use std::sync::OnceLock;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};

use crate::error::{Context, Error, Kind, Result};

use super::blas::Blas;
use super::{Address, Argument, Choice, Driver, Kernel, Multiplication, Stream};

/// The kernels for compute capability 8.0, which newer devices take too, as
/// `scripts/check/nvrtc.sh` makes them.
const PTX: &str = concat!(include_str!("cuda/kernels.ptx"), "\0");
/// The first version of the driver's interface that loads the kernels: 1000 · major + 10 · minor.
const LEAST_VERSION: i32 = 12010;
/// The least compute capability for the kernels.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// A CUDA device, its context, and the kernels loaded into it.
pub struct Cuda {
    device: sys::CUdevice,
    context: sys::CUcontext,
    module: sys::CUmodule,
    functions: [sys::CUfunction; Kernel::ALL.len()],
    name: String,
    /// The library for products of matrices, set on the first search for it.
    blas: OnceLock<Option<Blas>>,
}

// SAFETY: contexts, modules and functions of the driver may be used from any thread that has the
// context set, and every method sets it.
unsafe impl Send for Cuda {}
// SAFETY: as above; the driver locks what it has to.
unsafe impl Sync for Cuda {}

impl Cuda {
    /// Opens device `number`.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`]: no driver, one that is too old or does not work, no such device, one that is too old.
    pub fn open(number: u32) -> Result<Self> {
        let context = Context::new(Kind::Device, "cannot use device", Choice::Cuda(number));
        check_driver().map_err(|(cause, hint)| context.error(cause).with_hint(hint))?;
        let failed = |what: &'static str| move |error| context.error(failure(what, error));
        let count = result::device::get_count().map_err(failed("cannot count devices"))?;
        let ordinal = i32::try_from(number)
            .ok()
            .filter(|ordinal| *ordinal < count);
        let ordinal = ordinal.ok_or_else(|| {
            let hint = "CUDA_VISIBLE_DEVICES hides devices, if it is set";
            context.error(no_such_device(count)).with_hint(hint)
        })?;
        let device = result::device::get(ordinal).map_err(failed("cannot open"))?;
        let model = result::device::get_name(device).map_err(failed("cannot ask for the name"))?;
        let capability =
            capability(device).map_err(failed("cannot ask for the compute capability"))?;
        if capability < LEAST_CAPABILITY {
            let ((major, minor), (wanted, _)) = (capability, LEAST_CAPABILITY);
            return Err(context
                .error(format!(
                    "{model} is too old: wanted compute capability {wanted}.0, got {major}.{minor}"
                ))
                .with_hint("leave out --device: the bytes of the output are the same"));
        }
        // SAFETY: the device was just opened; the context is released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(failed("cannot make a context"))?;
        let opened = load(context);
        let (module, functions) = opened.map_err(|error| {
            // SAFETY: it was just retained, and nothing of it is left.
            let _ = unsafe { result::primary_ctx::release(device) };
            failed("cannot load the kernels")(error)
        })?;
        let name = format!("cuda:{number} ({model})");
        Ok(Self {
            device,
            context,
            module,
            functions,
            name,
            blas: OnceLock::new(),
        })
    }

    /// Makes the context the calling thread's, which every call needs, and runs `call`.
    fn within<T>(
        &self,
        what: &'static str,
        call: impl FnOnce() -> Result<T, DriverError>,
    ) -> Result<T> {
        // SAFETY: the context is retained as long as this lives.
        let outcome = unsafe { result::ctx::set_current(self.context) }.and_then(|()| call());
        outcome.map_err(|error| {
            let failure = Error::new(Kind::Device, what, &self.name, text(error));
            match error.0 {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                    failure.with_hint("give a smaller --device-memory or --memory, or end other programs on the device")
                }
                _ => failure.with_hint("run the same command again, or on the cpu: leave out --device"),
            }
        })
    }
}

impl Cuda {
    /// The library for products, if it is installed.
    fn blas(&self) -> Option<&Blas> {
        self.blas
            .get_or_init(|| {
                let loaded = self.within("cannot look for cuBLAS", || Ok(Blas::load()));
                loaded.ok().flatten()
            })
            .as_ref()
    }
}

/// Checks that the driver is there, new enough and working; else returns the reason and a hint.
fn check_driver() -> Result<(), (String, &'static str)> {
    const INSTEAD: &str =
        "install NVIDIA's driver, or leave out --device: the bytes of the output are the same";
    // SAFETY: loading the library runs its initialisers, which is what is asked for.
    if !unsafe { sys::is_culib_present() } {
        return Err((
            "the CUDA driver is missing (libcuda.so.1)".to_owned(),
            INSTEAD,
        ));
    }
    let mut version = 0;
    // SAFETY: the library is there and has this function since its first version.
    let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
    asked.map_err(|error| {
        (
            format!("the CUDA driver does not tell its version: {}", text(error)),
            INSTEAD,
        )
    })?;
    if version < LEAST_VERSION {
        let show = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
        let cause = format!(
            "the CUDA driver is too old: wanted one for CUDA {}, got {}",
            show(LEAST_VERSION),
            show(version)
        );
        return Err((
            cause,
            "update NVIDIA's driver to 530 or later, or leave out --device",
        ));
    }
    result::init().map_err(|error| {
        (
            format!("the CUDA driver does not start: {}", text(error)),
            INSTEAD,
        )
    })
}

fn capability(device: sys::CUdevice) -> Result<(i32, i32), DriverError> {
    // SAFETY: the device was opened by its number.
    let ask = |attribute| unsafe { result::device::get_attribute(device, attribute) };
    Ok((
        ask(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        ask(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ))
}

fn load(
    context: sys::CUcontext,
) -> Result<(sys::CUmodule, [sys::CUfunction; Kernel::ALL.len()]), DriverError> {
    // SAFETY: the context was just made, and the text ends with a zero byte.
    let module = unsafe {
        result::ctx::set_current(context)?;
        result::module::load_data(PTX.as_ptr().cast::<c_void>())?
    };
    let mut functions = [std::ptr::null_mut(); Kernel::ALL.len()];
    for kernel in Kernel::ALL {
        let name = CString::new(kernel.name()).expect("names of kernels have no zero byte");
        // SAFETY: the module was just loaded; it goes with the context if a function is missing.
        functions[kernel as usize] = unsafe { result::module::get_function(module, name)? };
    }
    Ok((module, functions))
}

/// The error's name and message, such as `CUDA_ERROR_OUT_OF_MEMORY: out of memory`.
fn text(error: DriverError) -> String {
    let name = error.error_name().map_or_else(
        |_| format!("{:?}", error.0),
        |name| name.to_string_lossy().into_owned(),
    );
    match error.error_string() {
        Ok(sentence) => format!("{name}: {}", sentence.to_string_lossy()),
        Err(_) => name,
    }
}

fn stream_of(stream: Stream) -> sys::CUstream {
    std::ptr::with_exposed_provenance_mut(stream.0)
}

impl Driver for Cuda {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn free_bytes(&self) -> Result<u64> {
        self.within("cannot ask for free memory", result::mem_get_info)
            .map(|(free, _)| free as u64)
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        // SAFETY: nobody reads the memory before it was written.
        self.within("cannot take device memory", || unsafe {
            result::malloc_sync(bytes)
        })
        .map(Address)
    }

    unsafe fn free(&self, memory: Address) {
        // SAFETY: the caller's. A failure here changes nothing that anybody could do.
        let _ = self.within("cannot free device memory", || unsafe {
            result::free_sync(memory.0)
        });
    }

    fn pin(&self, bytes: usize) -> Result<NonNull<u8>> {
        // SAFETY: as in `allocate`.
        let memory = self.within("cannot pin memory", || unsafe {
            result::malloc_host(bytes, 0)
        })?;
        NonNull::new(memory.cast()).ok_or_else(|| {
            Error::new(
                Kind::Device,
                "cannot pin memory",
                &self.name,
                "the driver gave none",
            )
        })
    }

    unsafe fn unpin(&self, memory: NonNull<u8>) {
        // SAFETY: as in `free`.
        let _ = self.within("cannot unpin memory", || unsafe {
            result::free_host(memory.as_ptr().cast())
        });
    }

    fn stream(&self) -> Result<Stream> {
        let make = || result::stream::create(result::stream::StreamKind::NonBlocking);
        self.within("cannot make a stream", make)
            .map(|stream| Stream(stream.expose_provenance()))
    }

    unsafe fn close(&self, stream: Stream) {
        // SAFETY: as in `free`.
        let _ = self.within("cannot end a stream", || unsafe {
            result::stream::destroy(stream_of(stream))
        });
    }

    unsafe fn copy_in(
        &self,
        stream: Stream,
        from: *const u8,
        to: Address,
        len: usize,
    ) -> Result<()> {
        self.within("cannot copy to the device", || {
            // SAFETY: the caller's.
            unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, from.cast(), len, stream_of(stream)) }.result()
        })
    }

    unsafe fn copy_out(
        &self,
        stream: Stream,
        from: Address,
        to: *mut u8,
        len: usize,
    ) -> Result<()> {
        self.within("cannot copy from the device", || {
            // SAFETY: the caller's.
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from.0, len, stream_of(stream)) }.result()
        })
    }

    unsafe fn launch(
        &self,
        stream: Stream,
        kernel: Kernel,
        grid: [u32; 2],
        arguments: &[Argument],
    ) -> Result<()> {
        let mut values = arguments.to_vec();
        let mut parameters: Vec<*mut c_void> = values
            .iter_mut()
            .map(|value| match value {
                Argument::Address(address) => (&raw mut address.0).cast::<c_void>(),
                Argument::Word(word) => (&raw mut *word).cast(),
            })
            .collect();
        let function = self.functions[kernel as usize];
        let (grid, block) = ((grid[0], grid[1], 1), (Kernel::BLOCK, 1, 1));
        self.within("cannot start a kernel", || {
            // SAFETY: the caller's; the parameters are copied before the call returns.
            unsafe {
                result::launch_kernel(function, grid, block, 0, stream_of(stream), &mut parameters)
            }
        })
    }

    fn multiplier(&self) -> &'static str {
        if self.blas().is_some() {
            "cuBLAS"
        } else {
            "its own kernel"
        }
    }

    unsafe fn multiply(&self, stream: Stream, product: &Multiplication) -> Result<()> {
        let Some(blas) = self.blas() else {
            // SAFETY: the arguments are made for this kernel; the caller's.
            return unsafe {
                self.launch(
                    stream,
                    Kernel::Product,
                    product.grid(),
                    &product.arguments(),
                )
            };
        };
        let queued = self.within("cannot start a product", || {
            // SAFETY: the caller's.
            let queued = unsafe { blas.multiply(stream, product) };
            Ok(queued)
        })?;
        queued.map_err(|error| {
            Error::new(
                Kind::Device,
                "cannot start a product",
                &self.name,
                format!("cuBLAS: {error}"),
            )
            .with_hint("run the same command again, or on the cpu: leave out --device")
        })
    }

    unsafe fn wait(&self, stream: Stream) -> Result<()> {
        // SAFETY: the caller's.
        self.within("device failed", || unsafe {
            result::stream::synchronize(stream_of(stream))
        })
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let (module, blas) = (self.module, self.blas.take());
        // SAFETY: nothing that was loaded or retained is used any more, as all of it is used
        // through this.
        unsafe {
            let _ = self.within("cannot unload cuBLAS", || {
                Ok(blas.flatten().map(Blas::unload))
            });
            let _ = self.within("cannot unload the kernels", || {
                result::module::unload(module)
            });
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// Says in words that a call of the driver failed.
fn failure(what: &str, error: DriverError) -> String {
    format!("{what}: {}", text(error))
}

/// Says which devices there are.
fn no_such_device(count: i32) -> String {
    match count {
        0 => "no such device: there is none".to_owned(),
        _ => format!("no such device: there are {count}, from 0 on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_kernels_are_all_there_for_the_least_device() {
        for kernel in Kernel::ALL {
            assert!(
                PTX.contains(&format!(".visible .entry {}(", kernel.name())),
                "{}",
                kernel.name()
            );
        }
        let (major, minor) = LEAST_CAPABILITY;
        assert!(PTX.contains(&format!("\n.target sm_{major}{minor}\n")));
        assert!(
            !PTX.contains("f64.ftz") && !PTX.contains("f32.ftz"),
            "subnormals are numbers like all others"
        );
    }

    #[test]
    fn without_a_driver_the_error_says_so() {
        // SAFETY: as in `check_driver`.
        if unsafe { sys::is_culib_present() } {
            return;
        }
        let error = Cuda::open(0).err().expect("there is no driver");
        assert_eq!(error.kind(), Kind::Device);
        assert!(
            error.to_string().contains("the CUDA driver is missing"),
            "{error}"
        );
        assert_eq!(error.exit_code(), 2);
    }
}
