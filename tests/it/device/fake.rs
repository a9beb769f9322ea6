//! A driver that queues what it is asked for, carries it out with the host's build of the kernels
//! when it is waited for, and fails where it is told to.

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::Path;
use std::process::Command;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use libloading::Library;
use thalweg::device::{Address, Argument, Driver, Kernel, Stream};
use thalweg::error::{Error, Kind, Result};

/// What a driver was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Allocate,
    Pin,
    Stream,
    CopyIn(Stream),
    CopyOut(Stream),
    Launch(Stream, Kernel),
    Wait(Stream),
}

/// Memory in whole lines, as a device gives it.
#[derive(Clone, Copy)]
#[repr(align(256))]
struct Line {
    _bytes: [u8; 256],
}

/// What the device's memory and the host's hold before anybody writes to them.
const POISON: u8 = 0xa5;

enum Queued {
    Copy {
        from: usize,
        to: usize,
        len: usize,
    },
    Launch {
        kernel: Kernel,
        grid: [u32; 2],
        arguments: Vec<Argument>,
    },
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    memory: HashMap<usize, Vec<Line>>,
    queues: HashMap<usize, Vec<Queued>>,
    streams: usize,
    most_busy: usize,
    /// The call that fails, and whether all after it do too.
    fails_at: Option<usize>,
    fails_on: bool,
}

pub struct Fake {
    state: Mutex<State>,
    free_bytes: u64,
}

impl Fake {
    pub fn new() -> Arc<Self> {
        Self::with(None)
    }

    /// A driver whose call of this number, counted from 0, fails.
    pub fn failing_at(call: usize) -> Arc<Self> {
        Self::with(Some(call))
    }

    fn with(fails_at: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                fails_at,
                ..State::default()
            }),
            free_bytes: 1 << 30,
        })
    }

    /// Lets every call from this one on fail.
    pub fn fail_from(&self, call: usize) {
        let mut state = self.lock();
        (state.fails_at, state.fails_on) = (Some(call), true);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Whether all memories and streams were given back; after a failure, tasks that nobody waits
    /// for any more end a moment later than the run.
    pub fn is_let_go(&self) -> bool {
        let given_back = || {
            let state = self.lock();
            state.memory.is_empty() && state.queues.is_empty()
        };
        (0..2000).any(|_| {
            let gone = given_back();
            if !gone {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            gone
        })
    }

    /// The most streams that had something to do at once.
    pub fn most_busy(&self) -> usize {
        self.lock().most_busy
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no call panics")
    }

    fn asked(&self, call: Call) -> Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        let number = state.calls.len();
        state.calls.push(call);
        match state.fails_at {
            Some(at) if at == number || (state.fails_on && number > at) => Err(Error::new(
                Kind::Device,
                "injected failure",
                number,
                format!("{call:?}"),
            )),
            _ => Ok(state),
        }
    }

    fn take(&self, call: Call, bytes: usize) -> Result<usize> {
        let mut state = self.asked(call)?;
        let mut lines = vec![
            Line {
                _bytes: [POISON; 256]
            };
            bytes.div_ceil(256)
        ];
        let address = lines.as_mut_ptr().expose_provenance();
        state.memory.insert(address, lines);
        Ok(address)
    }

    fn queue(&self, call: Call, stream: Stream, queued: Queued) -> Result<()> {
        let mut state = self.asked(call)?;
        if let Queued::Copy { from, to, len } = &queued {
            assert!(
                [from, to].into_iter().all(|at| state.has(*at, *len)),
                "{call:?} beyond what was taken"
            );
        }
        state
            .queues
            .get_mut(&stream.0)
            .expect("an open stream")
            .push(queued);
        let busy = state
            .queues
            .values()
            .filter(|queue| !queue.is_empty())
            .count();
        state.most_busy = state.most_busy.max(busy);
        Ok(())
    }
}

impl State {
    fn has(&self, at: usize, len: usize) -> bool {
        self.memory
            .iter()
            .any(|(begin, lines)| *begin <= at && at + len <= begin + lines.len() * 256)
    }
}

impl Driver for Fake {
    fn name(&self) -> String {
        "fake:0 (the host)".to_owned()
    }

    fn free_bytes(&self) -> Result<u64> {
        Ok(self.free_bytes)
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        self.take(Call::Allocate, bytes)
            .map(|address| Address(address as u64))
    }

    unsafe fn free(&self, memory: Address) {
        let address = usize::try_from(memory.0).expect("an address of this machine");
        assert!(self.lock().memory.remove(&address).is_some(), "freed twice");
    }

    fn pin(&self, bytes: usize) -> Result<NonNull<u8>> {
        let address = self.take(Call::Pin, bytes)?;
        Ok(NonNull::new(std::ptr::with_exposed_provenance_mut(address)).expect("memory"))
    }

    unsafe fn unpin(&self, memory: NonNull<u8>) {
        assert!(
            self.lock()
                .memory
                .remove(&memory.as_ptr().expose_provenance())
                .is_some(),
            "unpinned twice"
        );
    }

    fn stream(&self) -> Result<Stream> {
        let mut state = self.asked(Call::Stream)?;
        state.streams += 1;
        let number = state.streams;
        state.queues.insert(number, vec![]);
        Ok(Stream(number))
    }

    unsafe fn close(&self, stream: Stream) {
        let queue = self.lock().queues.remove(&stream.0);
        assert!(
            queue.is_some_and(|queue| queue.is_empty()),
            "closed before it was waited for, or twice"
        );
    }

    unsafe fn copy_in(
        &self,
        stream: Stream,
        from: *const u8,
        to: Address,
        len: usize,
    ) -> Result<()> {
        let (from, to) = (
            from.expose_provenance(),
            usize::try_from(to.0).expect("an address of this machine"),
        );
        self.queue(Call::CopyIn(stream), stream, Queued::Copy { from, to, len })
    }

    unsafe fn copy_out(
        &self,
        stream: Stream,
        from: Address,
        to: *mut u8,
        len: usize,
    ) -> Result<()> {
        let (from, to) = (
            usize::try_from(from.0).expect("an address of this machine"),
            to.expose_provenance(),
        );
        self.queue(
            Call::CopyOut(stream),
            stream,
            Queued::Copy { from, to, len },
        )
    }

    unsafe fn launch(
        &self,
        stream: Stream,
        kernel: Kernel,
        grid: [u32; 2],
        arguments: &[Argument],
    ) -> Result<()> {
        // What a device accepts.
        assert!(
            (1..1 << 31).contains(&grid[0]) && (1..1 << 16).contains(&grid[1]),
            "{kernel:?} on {grid:?}"
        );
        let arguments = arguments.to_vec();
        self.queue(
            Call::Launch(stream, kernel),
            stream,
            Queued::Launch {
                kernel,
                grid,
                arguments,
            },
        )
    }

    unsafe fn wait(&self, stream: Stream) -> Result<()> {
        // Others queue meanwhile, as beside a real device.
        std::thread::yield_now();
        let outcome = self.asked(Call::Wait(stream)).map(drop);
        let queue = self
            .lock()
            .queues
            .get_mut(&stream.0)
            .map(std::mem::take)
            .expect("an open stream");
        if outcome.is_ok() {
            queue.into_iter().for_each(carry_out);
        }
        outcome
    }
}

fn carry_out(queued: Queued) {
    match queued {
        Queued::Copy { from, to, len } => {
            let (from, to) = (
                std::ptr::with_exposed_provenance::<u8>(from),
                std::ptr::with_exposed_provenance_mut(to),
            );
            // SAFETY: both ranges were looked for when it was queued, and the caller leaves them
            // alone until now.
            unsafe { std::ptr::copy_nonoverlapping(from, to, len) }
        }
        Queued::Launch {
            kernel,
            grid,
            arguments,
        } => {
            let mut values: Vec<u64> = arguments
                .iter()
                .map(|argument| match argument {
                    Argument::Address(address) => address.0,
                    Argument::Word(word) => u64::from(*word),
                })
                .collect();
            let mut pointers: Vec<*mut c_void> = values
                .iter_mut()
                .map(|value| (&raw mut *value).cast())
                .collect();
            type Host = unsafe extern "C" fn(u32, u32, *mut *mut c_void);
            let name = format!("host_{}", kernel.name());
            // SAFETY: host.c declares the function so, and the engine has laid its arguments out
            // for it.
            unsafe {
                let host = library()
                    .get::<Host>(name.as_bytes())
                    .expect("a function for each kernel");
                host(grid[0], grid[1], pointers.as_mut_ptr());
            }
        }
    }
}

/// The kernels, compiled as plain C; warnings are errors.
fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let built = folder.path().join("kernels.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/device/cuda/host.c");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let output = Command::new(compiler)
            .args([
                "-std=c99",
                "-O2",
                "-ffp-contract=off",
                "-fPIC",
                "-shared",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-o",
            ])
            .args([&built, &source])
            .arg("-lm")
            .output()
            .expect("a C compiler, which building zstd needs too");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        // SAFETY: it was just built, and loading it runs nothing.
        unsafe { Library::new(&built) }.expect("a library")
    })
}
