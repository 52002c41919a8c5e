//! A simulated GPU: real kernels, as ordinary Rust functions, on the CPU.
//!
//! A [`Machine`] has ranks; a rank has SMs, streams and device memory, and a host thread, its [`Actor`]. A kernel is a
//! function that every simulated thread runs; it calls [`device`] for everything a GPU thread can do. A simulated thread
//! is a stackful coroutine: it runs native code and switches at barriers, warp collectives and failed polls. One executor
//! runs all kernels of all ranks, so that ranks that wait for each other make progress together.
//!
//! [`Mode::Fast`] runs on all cores. [`Mode::Seeded`] runs one adversarial schedule that its seed names: a rank, block or
//! warp runs far ahead or stays far behind, bulk copies are late, and the same seed does the same again. Time is virtual,
//! a hang is a report ([`SimError::Deadlock`]), a broken rule names the kernel, the thread and the source line, and nothing
//! runs or waits for ever ([`MachineConfig::watchdog`], [`MachineConfig::patience`]).
//!
//! Ranks may be processes, each with a machine of its own that shares device memory with the others ([`Machine::of_process`]).
//!
//! **What a kernel must keep to.** Its frames hold only values without `Drop`: a thread that never ends is abandoned, not
//! unwound. It spins on nothing but [`device::poll_pause`] and its like: a bare loop on a flag never gives up its turn.
//! A kernel that polls more than 64 times before it does something by itself is taken as stuck: after 64 rounds in which
//! every thread of the machine polled in vain, time jumps to the next deadline, or the machine halts with the report. What
//! waits for a while waits with a deadline ([`device::PollWait::deadline_ns`]) or [`device::sleep_until`].
//!
//! **Where things are.** [`device`] is what a kernel calls, `host` what a host thread calls. What they mirror is the engine:
//! `engine` (the machine's books, queues, blocks, threads and time, which both modes share), `worker` (who runs the threads:
//! `fast`, or `seeded` by its schedule) and `memory`, to which all accesses come through one door. `check` finds broken rules.
//!
//! The simulator runs on Linux: its memory and its stacks are built on what `mmap` and `madvise` do there.
//!
//! ```
//! use epoxide_sim::{Launch, Machine, MachineConfig, Mode, device};
//! use device::{Address, Order, Scope, Space, Strength};
//!
//! let machine = Machine::new(MachineConfig::new(1, Mode::Fast { workers: 1 }))?;
//! let actor = machine.actor(0)?;
//! let stream = actor.create_stream();
//! let out = machine.allocate(0, 8 * 64, 256)?;
//! let weak = Strength { order: Order::Weak, scope: Scope::Gpu };
//! let launch = Launch::new("squares", 1, 64, move || {
//!     let lane = u64::from(device::thread_index());
//!     device::store(Address { space: Space::Global, at: out + 8 * lane }, lane * lane, weak);
//! });
//! // SAFETY: the kernel's frames hold numbers only, and it writes its own allocation.
//! unsafe { actor.launch(stream, launch)? };
//! actor.synchronize(stream)?;
//! assert_eq!(machine.read(out, 64)?[9], 81);
//! # Ok::<(), epoxide_sim::SimError>(())
//! ```

#[cfg(not(target_os = "linux"))]
compile_error!(
    "epoxide-sim runs on Linux only: its device memory and the stacks of its threads rely on Linux's mmap and madvise"
);

mod check;
mod config;
pub mod device;
mod engine;
mod error;
mod host;
mod memory;
mod mutation;
mod worker;

pub use config::{Death, MachineConfig, Mode};
pub use engine::launch::Launch;
pub use engine::stream::{Event, Stream};
pub use error::SimError;
pub use host::{Actor, Machine};
pub use memory::allocation::{Allocation, MemoryKind, Region};
pub use mutation::Mutation;
