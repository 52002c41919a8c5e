//! The simulated GPU as a runtime.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use epoxide_dsl::{Kernel, KernelArg};
use epoxide_plan::RegionBytes;
use epoxide_sim::{Actor, Allocation, Event, Machine, MemoryKind, Stream};

use super::Mapped;
use super::recordings::{Recordings, SimGraph, Work};
use crate::error::{Error, Result};
use crate::pool::{self, Block};

/// One rank of a simulated machine.
pub(crate) struct SimRuntime {
    /// The rank's host thread; a mutex, because a rank may be driven from more than one thread, one at a time.
    actor: Arc<Mutex<Actor>>,
    recordings: Recordings,
    /// What a test has it refuse.
    #[cfg(test)]
    refused: Mutex<Option<&'static str>>,
}

/// Alignment of device memory, as CUDA's allocator gives it.
const ALIGN: u64 = 256;

impl SimRuntime {
    pub(crate) fn new(actor: Actor) -> Self {
        Self {
            actor: Arc::new(Mutex::new(actor)),
            recordings: Recordings::default(),
            #[cfg(test)]
            refused: Mutex::default(),
        }
    }

    /// Refuses launches of the kernel of this name, or fills if it is `fill`, as a driver may.
    #[cfg(test)]
    pub(crate) fn refuse(&self, what: Option<&'static str>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    #[cfg(test)]
    fn check_refused(&self, what: &str) -> Result<()> {
        match *self.refused.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(refused) if refused == what => Err(Error::Simulator { message: format!("{what} is refused") }),
            _ => Ok(()),
        }
    }

    fn actor(&self) -> MutexGuard<'_, Actor> {
        self.actor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rank's host thread, for its way to the others: the machine knows by it who waits.
    pub(crate) fn host_thread(&self) -> Arc<Mutex<Actor>> {
        Arc::clone(&self.actor)
    }

    pub(crate) fn sms(&self) -> u32 {
        self.actor().machine().config().sms_per_rank
    }

    pub(crate) fn shared_bytes_per_block(&self) -> u32 {
        self.actor().machine().config().shared_bytes_per_block
    }

    pub(crate) fn description(&self) -> String {
        let actor = self.actor();
        let config = actor.machine().config();
        let process = if actor.machine().process_rank().is_some() { ", a process of its own" } else { "" };
        format!("simulated GPU, {} SMs a rank, {:?}{process}", config.sms_per_rank, config.mode)
    }

    /// Whether the machine's other ranks are other processes.
    pub(crate) fn is_among_processes(&self) -> bool {
        self.actor().machine().process_rank().is_some()
    }

    /// Addresses are each process's own; where memory is in its rank's part is the same for all.
    pub(crate) fn tell(&self, address: u64) -> Result<u64> {
        let actor = self.actor();
        match actor.machine().locate(address) {
            Some((rank, offset)) if rank == actor.rank() => Ok(offset),
            _ => Err(Error::argument("address", format_args!("{address:#x}"), "this rank's own device memory")),
        }
    }

    pub(crate) fn find(&self, rank: u32, told: u64) -> Result<u64> {
        Ok(self.actor().machine().address_of(rank, told)?)
    }

    pub(crate) fn allocate(&self, what: &'static str, bytes: u64, regions: &[RegionBytes]) -> Result<u64> {
        let actor = self.actor();
        let is_window = regions.iter().any(|region| region.symmetric);
        let kind = if is_window { MemoryKind::Window } else { MemoryKind::Device };
        let empty = Allocation::new(actor.rank(), bytes.max(1)).with_kind(kind);
        let with = |all: Allocation, region: &RegionBytes| all.with_region(region.name, region.offset, region.bytes, 1);
        allocate(actor.machine(), regions.iter().fold(empty, with), what)
    }

    pub(crate) fn segments(&self) -> SimSegments {
        let actor = self.actor();
        SimSegments { machine: actor.machine().clone(), rank: actor.rank() }
    }

    /// A machine that halted says nothing.
    pub(crate) fn is_idle(&self, stream: Stream) -> bool {
        self.recordings.capture(stream).is_none() && self.actor().is_idle(stream).unwrap_or(false)
    }

    /// Which rank of the machine it is.
    pub(crate) fn rank(&self) -> u32 {
        self.actor().rank()
    }

    /// Giving back waits for nothing here.
    pub(crate) fn gives_back_alone(&self) -> bool {
        true
    }

    /// The machine, which holds all memory.
    pub(crate) fn machine(&self) -> Machine {
        self.actor().machine().clone()
    }

    pub(crate) fn allocate_mapped(&self, bytes: u64) -> Result<Mapped> {
        let actor = self.actor();
        let shared = Allocation::new(actor.rank(), bytes.max(1)).with_kind(MemoryKind::HostPinned);
        let device = allocate(actor.machine(), shared, "memory that host and device share")?;
        // Fresh memory is zero. The host looks at it as the machine's actor, and never by a pointer.
        Ok(Mapped { host: std::ptr::null_mut(), device })
    }

    /// # Safety
    ///
    /// As for [`Runtime::peek_mapped`](super::Runtime::peek_mapped), though the machine checks the range itself.
    pub(crate) unsafe fn peek_mapped(&self, mapped: Mapped, words: &mut [u64]) -> Result<()> {
        // SAFETY: the caller's promise: whole words are written, and an allocation begins at a multiple of 8, so that words are read.
        Ok(unsafe { self.actor().peek(mapped.device, words) }?)
    }

    /// # Safety
    ///
    /// As for [`Runtime::wait_mapped`](super::Runtime::wait_mapped).
    pub(crate) unsafe fn wait_mapped(&self, words: &[(Mapped, u64)], patience: Duration) -> Result<Duration> {
        let actor = self.actor();
        let words: Vec<(u64, u64)> = words.iter().map(|&(word, seen)| (word.device, seen)).collect();
        let patience = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        let until = actor.machine().virtual_ns().saturating_add(patience);
        // SAFETY: the caller's promise: they stay allocated, and are written as whole words.
        unsafe { actor.wait_words(&words, until)? };
        Ok(Duration::from_nanos(until.saturating_sub(actor.machine().virtual_ns())))
    }

    pub(crate) fn create_stream(&self) -> Result<Stream> {
        Ok(self.actor().create_stream())
    }

    /// # Safety
    ///
    /// As for [`Runtime::copy_to_device`](super::Runtime::copy_to_device).
    pub(crate) unsafe fn copy_to_device(&self, to: u64, from: &[u8], stream: Stream) -> Result<()> {
        self.check_eager("a copy from the host", stream)?;
        let actor = self.actor();
        actor.synchronize(stream)?;
        // The lock is held on: nobody enqueues work on this rank meanwhile.
        // SAFETY: by the caller's promise (`Runtime::copy_to_device`) nothing but this rank's stream, which is idle, and its
        // host uses these bytes now; the write touches no others, whatever the other ranks' kernels do next to them. Nothing
        // of the host refers to them.
        Ok(unsafe { actor.write_bytes(to, from) }?)
    }

    /// # Safety
    ///
    /// As for [`Runtime::copy_to_host`](super::Runtime::copy_to_host), though the machine checks the range itself.
    pub(crate) unsafe fn copy_to_host(&self, to: &mut [u8], from: u64, stream: Stream) -> Result<()> {
        self.check_eager("a copy to the host", stream)?;
        let actor = self.actor();
        actor.synchronize(stream)?;
        // SAFETY: as in `copy_to_device`, with `Runtime::copy_to_host`: the other ranks may be at work, and even write into this
        // rank's window, but not these bytes, and the read touches no others.
        Ok(unsafe { actor.peek_bytes(from, to) }?)
    }

    /// # Safety
    ///
    /// As for [`Runtime::fill`](super::Runtime::fill).
    pub(crate) unsafe fn fill(&self, to: u64, byte: u8, bytes: u64, stream: Stream) -> Result<()> {
        if self.recordings.take(stream, || Work::Fill { to, byte, bytes }) {
            return Ok(());
        }
        #[cfg(test)]
        self.check_refused("fill")?;
        // SAFETY: it runs in stream order, and until the stream has passed it these are `bytes` of device memory that nothing
        // else touches: the caller's promise.
        Ok(unsafe { self.actor().fill_bytes(stream, to, byte, bytes) }?)
    }

    pub(crate) fn synchronize(&self, stream: Stream) -> Result<()> {
        self.check_eager("waiting for a stream", stream)?;
        Ok(self.actor().synchronize(stream)?)
    }

    pub(crate) fn record_event(&self, stream: Stream) -> Result<Event> {
        // In a capture it marks what was enqueued before that.
        let event = self.actor().record_event(stream)?;
        self.recordings.recorded(stream, &event);
        Ok(event)
    }

    pub(crate) fn mark(&self, stream: Stream) -> Result<Event> {
        Ok(self.actor().mark(stream)?)
    }

    pub(crate) fn wait_event(&self, stream: Stream, event: &Event) -> Result<()> {
        if self.recordings.joins(stream, event)? {
            return Ok(());
        }
        Ok(self.actor().wait_event(stream, event)?)
    }

    /// The wall time between them: what a user of the simulator waits for.
    pub(crate) fn elapsed_ms(&self, from: &Event, to: &Event) -> Result<f64> {
        let elapsed = to.wall_time().zip(from.wall_time());
        let elapsed = elapsed.map(|(to, from)| to.saturating_duration_since(from));
        let elapsed: Duration = elapsed
            .ok_or_else(|| Error::argument("event", "not reached", "wait for the stream before asking for times"))?;
        Ok(elapsed.as_secs_f64() * 1e3)
    }

    pub(crate) fn synchronize_event(&self, event: &Event) -> Result<()> {
        Ok(self.actor().synchronize_event(event)?)
    }

    /// Nothing has to be loaded; the answer is the kernel's own bound.
    pub(crate) fn prepare<A: KernelArg>(&self, kernel: &Kernel<A>, shared_bytes: u32) -> Result<u32> {
        let limit = self.shared_bytes_per_block();
        if shared_bytes > limit {
            return Err(Error::argument(
                "shared_bytes",
                shared_bytes,
                format!("a block of this device has at most {limit}"),
            ));
        }
        Ok(kernel.blocks_per_sm())
    }

    /// Launches a kernel, enqueued.
    ///
    /// # Safety
    ///
    /// As for [`Runtime::launch`](super::Runtime::launch).
    pub(crate) unsafe fn launch<A: KernelArg + Send + Sync>(
        &self,
        kernel: &Kernel<A>,
        grid: u32,
        shared_bytes: u32,
        args: &A,
        stream: Stream,
    ) -> Result<()> {
        #[cfg(test)]
        self.check_refused(kernel.name())?;
        let launch = kernel.simulated(grid, shared_bytes, *args);
        if self.recordings.take(stream, || Work::Launch(launch.clone())) {
            return Ok(());
        }
        // SAFETY: the caller's promise for the arguments; our kernels keep to the rules of device code, so that their frames
        // hold only values without `Drop`.
        Ok(unsafe { self.actor().launch(stream, launch) }?)
    }

    /// What is captured on the rank's streams.
    pub(crate) fn recordings(&self) -> &Recordings {
        &self.recordings
    }

    /// Checks that the stream is in no capture.
    fn check_eager(&self, call: &'static str, stream: Stream) -> Result<()> {
        if self.recordings.capture(stream).is_some() { Err(Error::capturing(call)) } else { Ok(()) }
    }

    /// Enqueues what was captured.
    ///
    /// # Safety
    ///
    /// As for [`Runtime::launch_graph`](super::Runtime::launch_graph).
    pub(crate) unsafe fn launch_graph(&self, graph: &SimGraph, stream: Stream) -> Result<()> {
        for work in graph.work() {
            match work {
                // SAFETY: what the kernel takes is as its launch promised, by the caller's promise.
                Work::Launch(launch) => unsafe { self.actor().launch(stream, launch.clone())? },
                // SAFETY: as for a launch.
                &Work::Fill { to, byte, bytes } => unsafe { self.actor().fill_bytes(stream, to, byte, bytes)? },
            }
        }
        Ok(())
    }
}

fn allocate(machine: &Machine, allocation: Allocation, what: &'static str) -> Result<u64> {
    machine.allocate_as(&allocation.with_align(ALIGN).with_name(what)).map_err(|error| match error {
        epoxide_sim::SimError::OutOfMemory { rank, asked, free, .. } => {
            Error::OutOfMemory { rank, what, bytes: asked, free }
        }
        other => other.into(),
    })
}

/// Memory of a rank for tensors: allocations of the machine, each as long as what is asked for, so that it goes back, and is
/// zeroed, as soon as nobody uses it.
pub(crate) struct SimSegments {
    machine: Machine,
    rank: u32,
}

impl pool::Segments for SimSegments {
    fn extend(&mut self, _end: u64, _bytes: u64) -> Result<Option<Block>> {
        Ok(None)
    }

    fn segment(&mut self, bytes: u64) -> Result<Block> {
        Ok(Block { address: allocate(&self.machine, Allocation::new(self.rank, bytes.max(1)), "tensors")?, bytes })
    }

    unsafe fn release(&mut self, segment: Block) -> Result<()> {
        // SAFETY: `segment` allocated it, and the caller promises that nothing uses it any more and that this is its one end.
        Ok(unsafe { self.machine.free(segment.address) }?)
    }
}

#[cfg(test)]
mod tests {
    use epoxide_sim::{MachineConfig, Mode};

    use super::*;

    #[test]
    fn reports_of_the_machine_name_what_was_allocated_and_the_region() {
        let machine = Machine::new(MachineConfig::new(1, Mode::Fast { workers: 1 })).expect("a machine");
        let runtime = SimRuntime::new(machine.actor(0).expect("free"));
        let region = |name, offset, symmetric| RegionBytes { name, offset, bytes: 64, symmetric };
        let behind = |address: u64, bytes: u64| machine.read(address + bytes, 1).expect_err("behind it").to_string();
        let window = [region("rows", 0, true), region("words", 64, true)];
        let window = runtime.allocate("a test's window", 128, &window).expect("fits");
        let said = behind(window, 128);
        assert!(said.ends_with(": window \"a test's window\", behind its region \"words\""), "{said}");
        let private = runtime.allocate("private memory", 64, &[region("counts", 0, false)]).expect("fits");
        let said = behind(private, 64);
        assert!(said.ends_with(": device memory \"private memory\", behind its region \"counts\""), "{said}");
        let said = behind(runtime.allocate_mapped(8).expect("fits").device, 8);
        assert!(said.ends_with(": pinned host memory \"memory that host and device share\""), "{said}");
    }
}
