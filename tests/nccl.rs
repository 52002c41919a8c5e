//! Ranks that are processes on GPUs and reach each other by NCCL: what they compute is the reference, bit for bit, with a communicator of
//! ours and with the caller's, and what cannot be is an error that says what to do.
//!
//! Run with GPUs and a library: `EPOXIDE_TEST_DEVICE=cuda:0,1 EPOXIDE_NCCL=/path/to/libnccl.so.2`, and `NCCL_NVLS_ENABLE=0` where multicast
//! is not to be touched.
mod support;

use std::ffi::{c_char, c_int, c_void};
use std::time::{Duration, Instant};

use cudarc::driver::sys;
use epoxide::nccl::{Library, Nccl};
use epoxide::processes::{MeetingPoint, Place, World};
use epoxide::{Comm, Config, ElasticBuffer, Error, IndexType, Layout, Mode, Result, WireFormat};
use support::exchange::{Indices, Tensors, check_round};
use support::gpu::Gpu;
use support::masked::without;
use support::processes::{Rank, Ranks};
use support::reference::Wire;
use support::routing::{Case, Choice};
use support::{Device, by_expert, gpus};

const PATIENCE: Duration = Duration::from_secs(30);

/// A rank for every GPU: NCCL shares none unless it is told to.
fn ranks() -> Option<u32> {
    let ranks = gpus().len() as u32;
    (Device::from_env() == Device::Cuda && ranks > 1).then_some(ranks)
}

fn case(ranks: u32, data: u64, format: WireFormat) -> Case {
    Case {
        ranks,
        experts: 5 * ranks + 1,
        top_k: 4,
        hidden: 1040,
        format,
        num_sms: 4,
        tokens: (0..ranks).map(|rank| 90 + 35 * rank).collect(),
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 2,
        data,
        mode: Mode::Fast { workers: 0 },
    }
}

/// Meets the other processes of the test.
fn meet(rank: &Rank) -> World {
    let given = |name| std::env::var(name).expect("a rank is told all of it");
    let place = Place::new(rank.rank, given("EPOXIDE_TEST_RANKS").parse().expect("a number"));
    let point = MeetingPoint::local(given("EPOXIDE_TEST_NAME"));
    place.with_meeting_point(point).with_timeout(PATIENCE).meet().expect("all come")
}

fn device(world: &World) -> u32 {
    let gpus = gpus();
    gpus[world.rank() as usize % gpus.len()]
}

/// A dispatch and a combine with data of their own.
fn round(comm: &Comm, buffer: &mut ElasticBuffer, tensors: &mut Tensors, data: u64, format: WireFormat) -> Result<()> {
    let world = case(comm.size(), data, format).world();
    let wires: Vec<Wire> = world.wires();
    tensors.fill(&world, comm.rank())?;
    let layout = buffer.config().layout;
    let checked = match layout {
        Layout::Compact => check_round(comm, buffer, tensors, &world, &wires)?,
        _ => by_expert::check_round(comm, buffer, tensors, &world, &wires, 8)?,
    };
    checked.unwrap_or_else(|complaint| panic!("{layout:?}, {format:?}, data {data}: {complaint}"));
    Ok(())
}

/// Dispatches and combines of buffers one after another, and behind a fault, in the same windows.
fn exchange(comm: &Comm) -> Result<()> {
    for (number, layout) in (0..).zip([Layout::Compact, Layout::ExpertContiguous { alignment: 8 }]) {
        for format in [WireFormat::Bf16, WireFormat::Fp8] {
            let first = case(comm.size(), 0, format);
            let mut buffer = ElasticBuffer::new(comm, first.config().with_layout(layout))?;
            let tokens = first.tokens[comm.rank() as usize];
            let mut tensors = Tensors::empty(comm, tokens, first.hidden, first.top_k, first.index)?;
            for iteration in 0..4 {
                round(comm, &mut buffer, &mut tensors, 10 * number + iteration, format)?;
            }
            // One rank selects what is no expert.
            if let (0, Indices::I64(idx)) = (comm.rank(), &mut tensors.topk_idx) {
                idx.copy_from_host(&vec![1000; (tokens * first.top_k) as usize])?;
            }
            let fault = tensors.dispatch(&mut buffer, tokens).and_then(|_| buffer.synchronize());
            assert!(matches!(fault, Err(Error::IndexOutOfRange { index: 1000, .. })), "{fault:?}");
            buffer.reset()?;
            round(comm, &mut buffer, &mut tensors, 10 * number + 4, format)?;
            buffer.check()?;
            buffer.close()?;
        }
    }
    comm.barrier()
}

#[test]
fn dispatch_and_combine_are_bitwise_the_reference() {
    if let Some(rank) = Rank::of_this_process() {
        let world = meet(&rank);
        let began = Instant::now();
        let comm = Comm::on_gpu_by_nccl(&world, device(&world), Nccl::new()).expect("NCCL is there");
        println!("made in {:?}", began.elapsed());
        let device = device(&world);
        drop(world);
        exchange(&comm).expect("every rank comes to its end");
        // A buffer that was closed leaves nothing, also of what NCCL had of it.
        let alone = gpus().iter().filter(|gpu| **gpu == device).count() == 1;
        let free = Gpu::new(device).free_bytes();
        exchange(&comm).expect("every rank comes to its end");
        assert!(!alone || Gpu::new(device).free_bytes() == free, "{free} bytes were free");
        return;
    }
    let Some(ranks) = ranks() else { return };
    for (rank, said) in Ranks::start(ranks, "dispatch_and_combine_are_bitwise_the_reference", "").end(2 * PATIENCE) {
        println!("rank {rank}: {said}");
    }
}

/// Buffers that are dropped and not closed, by ranks that end at once: the others have what they came for.
#[test]
fn who_ends_without_a_word_harms_nobody() {
    let name = "who_ends_without_a_word_harms_nobody";
    if let Some(rank) = Rank::of_this_process() {
        let world = meet(&rank);
        let callers = (rank.told == "callers").then(|| Callers::new(&world, world.size(), world.rank()));
        // SAFETY: it is live until the end of this function, and used by nobody else.
        let nccl = callers.as_ref().map_or_else(Nccl::new, |callers| unsafe { Nccl::of_communicator(callers.comm) });
        let comm = Comm::on_gpu_by_nccl(&world, device(&world), nccl).expect("NCCL is there");
        // Only rank 0 has anything to combine, and the others anything to leave.
        let tokens = (0..comm.size()).map(|rank| if rank == 0 { 3000 } else { 0 }).collect();
        let case = Case { tokens, hidden: 4096, num_sms: 1, ..case(comm.size(), 77, WireFormat::Bf16) };
        let all = case.world();
        let wires: Vec<Wire> = all.wires();
        let mut buffer = ElasticBuffer::new(&comm, case.config()).expect("fits");
        let tokens = case.tokens[comm.rank() as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index).expect("fits");
        tensors.fill(&all, comm.rank()).expect("fits");
        let checked = check_round(&comm, &mut buffer, &mut tensors, &all, &wires).expect("all come so far");
        checked.unwrap_or_else(|complaint| panic!("rank {}: {complaint}", comm.rank()));
        drop((buffer, tensors, comm, world));
        if let Some(callers) = callers {
            callers.end();
        }
        return;
    }
    let Some(ranks) = ranks() else { return };
    for told in ["ours", "callers"] {
        Ranks::start(ranks, name, told).end(2 * PATIENCE);
    }
}

/// A caller's own use of NCCL.
struct Callers {
    library: libloading::Library,
    comm: *mut c_void,
}

type Id = [c_char; 128];

impl Callers {
    /// A communicator of `size` ranks, in which this is `rank`.
    fn new(world: &World, size: u32, rank: u32) -> Self {
        bind(device(world));
        let path = std::env::var("EPOXIDE_NCCL").unwrap_or("libnccl.so.2".into());
        // SAFETY: NCCL's initialisers may run at any time.
        let library = unsafe { libloading::Library::new(path) }.expect("it is there");
        #[repr(C)]
        struct ById(Id);
        let mut id: Id = [0; 128];
        // SAFETY: the type is that of nccl.h's declaration; a valid place for the answer.
        let made =
            unsafe { library.get::<unsafe extern "C" fn(*mut Id) -> c_int>("ncclGetUniqueId").unwrap()(&mut id) };
        assert_eq!(made, 0);
        let ids = world.all_gather(&id.map(|byte| byte as u8)).expect("all come");
        let first = if size == world.size() { 0 } else { world.rank() as usize };
        let id: Id = std::array::from_fn(|i| ids[first][i] as c_char);
        type Init = unsafe extern "C" fn(*mut *mut c_void, c_int, ById, c_int) -> c_int;
        let mut comm = std::ptr::null_mut();
        // SAFETY: the type is that of nccl.h's declaration; a valid place for the answer; a context is current.
        let made = unsafe {
            library.get::<Init>("ncclCommInitRank").unwrap()(&mut comm, size as c_int, ById(id), rank as c_int)
        };
        assert_eq!(made, 0);
        Self { library, comm }
    }

    /// Ends it after a rank of it died: nobody is waited for.
    fn abort(self) {
        type Abort = unsafe extern "C" fn(*mut c_void) -> c_int;
        // SAFETY: the type is that of nccl.h's declaration; the communicator is live until here.
        assert_eq!(unsafe { self.library.get::<Abort>("ncclCommAbort").unwrap()(self.comm) }, 0);
        std::mem::forget(self.library);
    }

    /// Ends it, which must be there still and unharmed.
    fn end(self) {
        let (mut failed, mut ranks) = (-1, -1);
        type Ask = unsafe extern "C" fn(*mut c_void, *mut c_int) -> c_int;
        // SAFETY: the types are those of nccl.h's declarations; the communicator is live until here.
        unsafe {
            assert_eq!(self.library.get::<Ask>("ncclCommGetAsyncError").unwrap()(self.comm, &mut failed), 0);
            assert_eq!(self.library.get::<Ask>("ncclCommCount").unwrap()(self.comm, &mut ranks), 0);
            let destroy = self.library.get::<unsafe extern "C" fn(*mut c_void) -> c_int>("ncclCommDestroy").unwrap();
            assert_eq!((failed, ranks >= 1, destroy(self.comm)), (0, true, 0));
        }
        std::mem::forget(self.library);
    }
}

/// Makes a GPU's primary context current, as a program does that uses CUDA.
fn bind(device: u32) {
    let (mut gpu, mut context) = (0, std::ptr::null_mut());
    Library::find().expect("NCCL is there");
    epoxide::LocalGroup::gpus().expect("a driver");
    // SAFETY: valid places for the answers; the context stays retained.
    unsafe {
        assert_eq!(sys::cuDeviceGet(&mut gpu, device as i32), sys::CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuDevicePrimaryCtxRetain(&mut context, gpu), sys::CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuCtxSetCurrent(context), sys::CUresult::CUDA_SUCCESS);
    }
}

#[test]
fn the_callers_communicator_serves_and_stays_the_callers() {
    if let Some(rank) = Rank::of_this_process() {
        let world = meet(&rank);
        let callers = Callers::new(&world, world.size(), world.rank());
        // SAFETY: it is live until the end of this function, and used by nobody else.
        let nccl = unsafe { Nccl::of_communicator(callers.comm) };
        let comm = Comm::on_gpu_by_nccl(&world, device(&world), nccl).expect("NCCL is there");
        exchange(&comm).expect("every rank comes to its end");
        drop(comm);
        return callers.end();
    }
    let Some(ranks) = ranks() else { return };
    Ranks::start(ranks, "the_callers_communicator_serves_and_stays_the_callers", "").end(2 * PATIENCE);
}

/// Every rank brings a communicator of one rank, or one on another GPU than the one that it names.
#[test]
fn communicators_that_do_not_fit_are_refused() {
    if let Some(rank) = Rank::of_this_process() {
        let world = meet(&rank);
        let (size, rank) = if rank.told == "size" { (1, 0) } else { (world.size(), world.rank()) };
        let callers = Callers::new(&world, size, rank);
        let own = device(&world);
        let other = gpus().into_iter().find(|gpu| *gpu != own).expect("there are two");
        let (told, asked) = if size == 1 { ("one of 1 ranks", own) } else { ("one on GPU ", other) };
        // SAFETY: it is live until the end of this function, and used by nobody else.
        let refused = Comm::on_gpu_by_nccl(&world, asked, unsafe { Nccl::of_communicator(callers.comm) }).unwrap_err();
        // Who is refused says so to the others, whichever is first.
        let said = refused.to_string();
        assert!(said.contains(told) && said.lines().count() == 1, "{said}");
        return callers.end();
    }
    let Some(ranks) = ranks() else { return };
    for told in ["size", "device"] {
        Ranks::start(ranks, "communicators_that_do_not_fit_are_refused", told).end(2 * PATIENCE);
    }
}

/// A library that is too old, or is none: every rank says so in a line.
#[test]
fn without_a_library_every_rank_says_what_to_do() {
    if let Some(rank) = Rank::of_this_process() {
        let world = meet(&rank);
        let nccl = Nccl::new().with_library("/nowhere/libnccl.so.2");
        let refused = Comm::on_gpu_by_nccl(&world, 0, nccl).unwrap_err();
        let said = refused.to_string();
        assert!(matches!(refused, Error::NoNccl { .. } | Error::PeerGone { .. }), "{said}");
        assert!(said.contains("no NCCL: /nowhere/libnccl.so.2: ") && said.lines().count() == 1, "{said}");
        return;
    }
    // It needs no GPU.
    Ranks::start(2, "without_a_library_every_rank_says_what_to_do", "").end(PATIENCE);
}

/// A rank is killed in the middle of operations: the others have an error within a second, and come to an end.
#[test]
fn a_killed_rank_is_an_error_and_the_end_is_not_waited_for() {
    /// Of an operation: far beyond what a test waits for.
    const DEADLINE: Duration = Duration::from_secs(30);
    const SOON: Duration = Duration::from_secs(1);
    if let Some(rank) = Rank::of_this_process() {
        let world = meet(&rank);
        let comm = Comm::on_gpu_by_nccl(&world, device(&world), Nccl::new()).expect("NCCL is there");
        let case = case(comm.size(), 5, WireFormat::Bf16);
        let config: Config = case.config().with_timeout(DEADLINE);
        let mut buffer = ElasticBuffer::new(&comm, config).expect("all are there");
        let tokens = case.tokens[comm.rank() as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index).expect("fits");
        let all = case.world();
        let wires: Vec<Wire> = all.wires();
        tensors.fill(&all, comm.rank()).expect("fits");
        let (error, took) = loop {
            let begun = Instant::now();
            match check_round(&comm, &mut buffer, &mut tensors, &all, &wires) {
                Ok(checked) => checked.expect("as long as all are there, all is right"),
                Err(error) => break (error, begun.elapsed()),
            }
            println!("one more");
        };
        assert!(matches!(error, Error::PeerGone { rank: 1, .. }), "{error}");
        assert!(took < SOON, "{took:?}");
        let failed = Instant::now();
        assert!(ElasticBuffer::new(&comm, case.config()).is_err(), "a rank is gone");
        drop((buffer, tensors, comm, world));
        println!("{error}; known after {took:?}, over after {:?}", failed.elapsed());
        assert!(failed.elapsed() < 5 * SOON, "{:?}", failed.elapsed());
        return;
    }
    let Some(ranks) = ranks() else { return };
    let mut group = Ranks::start(ranks, "a_killed_rank_is_an_error_and_the_end_is_not_waited_for", "");
    for _ in 0..5 {
        group.wait_for(1, "one more");
    }
    group.kill(1);
    for (rank, said) in group.end(PATIENCE) {
        println!("rank {rank}: {}", said.lines().rfind(|line| line.contains("over after")).unwrap_or_default());
    }
}

/// A rank is killed in the middle of operations: the others mask it and go on in the windows that they have, and in buffers whose windows a communicator of theirs alone
/// has made, with one of ours and with the caller's.
#[test]
fn the_others_go_on_without_a_killed_rank() {
    const KILLED: u32 = 1;
    let name = "the_others_go_on_without_a_killed_rank";
    if let Some(rank) = Rank::of_this_process() {
        let world = meet(&rank);
        let callers = (rank.told == "callers").then(|| Callers::new(&world, world.size(), world.rank()));
        // SAFETY: it is live until the end of this function, and used by nobody else.
        let nccl = callers.as_ref().map_or_else(Nccl::new, |callers| unsafe { Nccl::of_communicator(callers.comm) });
        let comm = Comm::on_gpu_by_nccl(&world, device(&world), nccl).expect("NCCL is there");
        let first = case(comm.size(), 0, WireFormat::Bf16);
        let mut buffer = ElasticBuffer::new(&comm, first.config()).expect("all are there");
        let tokens = first.tokens[comm.rank() as usize];
        let mut tensors = Tensors::empty(&comm, tokens, first.hidden, first.top_k, first.index).expect("fits");
        let error = (0..)
            .find_map(|data| {
                let failed = round(&comm, &mut buffer, &mut tensors, data, WireFormat::Bf16).err();
                println!("one more");
                failed
            })
            .expect("it goes on until one fails");
        assert!(matches!(error, Error::PeerGone { rank: KILLED, .. }), "{error}");
        let mut rounds = |buffer: &mut ElasticBuffer, data: std::ops::Range<u64>| {
            for data in data {
                let asked = case(comm.size(), data, WireFormat::Bf16).world();
                let (left, dropped) = without(&asked, &[KILLED]);
                let before = buffer.masked_selections().expect("it lives");
                tensors.fill(&asked, comm.rank()).expect("fits");
                let wires: Vec<Wire> = left.wires();
                let checked = check_round(&comm, buffer, &mut tensors, &left, &wires).expect("the others live");
                checked.unwrap_or_else(|complaint| panic!("data {data}: {complaint}"));
                let dropped = before + dropped[comm.rank() as usize];
                assert_eq!(buffer.masked_selections().expect("it lives"), dropped);
            }
        };
        let took = |begun: Instant| begun.elapsed().as_secs_f64() * 1e3;
        let begun = Instant::now();
        comm.mask(&[KILLED]).expect("it has ended");
        let masked = took(begun);
        let begun = Instant::now();
        buffer.reset().expect("the others live");
        let reset = took(begun);
        rounds(&mut buffer, 100..104);
        // The first makes a communicator, the second has one; the buffer of before goes on beside them.
        let mut made = Vec::new();
        for data in [200, 300] {
            comm.barrier().expect("the others live");
            let begun = Instant::now();
            let mut another = ElasticBuffer::new(&comm, first.config()).expect("the others live");
            made.push(took(begun));
            rounds(&mut another, data..data + 3);
            rounds(&mut buffer, data + 3..data + 5);
            another.close().expect("the others live");
        }
        rounds(&mut buffer, 400..402);
        buffer.check().expect("what the dead one did to its communicator is no fault of the others");
        let begun = Instant::now();
        buffer.close().expect("the others live");
        let mut last = ElasticBuffer::new(&comm, first.config()).expect("the others live");
        rounds(&mut last, 500..502);
        drop((last, tensors, comm, world));
        println!("mask {masked:.2}, reset {reset:.2}, new {made:.2?}, the end {:.2} ms", took(begun));
        if let Some(callers) = callers {
            callers.abort();
        }
        return;
    }
    let Some(ranks) = ranks() else { return };
    for told in ["ours", "callers"] {
        let mut group = Ranks::start(ranks, name, told);
        for _ in 0..5 {
            group.wait_for(KILLED, "one more");
        }
        group.kill(KILLED);
        for (rank, said) in group.end(2 * PATIENCE) {
            println!(
                "{told}, rank {rank}: {}",
                said.lines().rfind(|line| line.contains("the end")).unwrap_or_default()
            );
        }
    }
}
