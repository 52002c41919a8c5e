//! The runtime on a real GPU. These need one, so they are ignored unless asked for:
//! `cargo test -p epoxide --lib runtime::cuda -- --ignored --test-threads=1`.
//!
//! They bring their own PTX, so that they test the runtime and not the kernels.
use std::sync::Arc;
use std::time::{Duration, Instant};

use epoxide_dsl::{Kernel, KernelArg};
use epoxide_kernels::families::Family;

use half::bf16;

use super::{CudaDevice, CudaRuntime};
use crate::error::Error;
use crate::{Config, DispatchInput, ElasticBuffer, LocalGroup};

/// `out[i] = first + i` for all threads of the grid; and a kernel that waits until a word in mapped memory is no longer zero, or
/// until it has asked 2^26 times.
const PTX: &str = r"
.version 8.0
.target sm_90
.address_size 64

.extern .shared .align 16 .b8 dynamic[];

.visible .entry count_up(.param .align 8 .b8 args[16])
.maxntid 128, 1, 1
{
    .reg .b32 %r<6>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [args];
    ld.param.u32 %r1, [args+8];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.u32 %r4, %r2, 128, %r3;
    add.u32 %r5, %r4, %r1;
    mov.u32 %r2, dynamic;
    mul.wide.u32 %rd2, %r4, 4;
    add.u64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r5;
    ret;
}

.visible .entry wait_for_word(.param .align 8 .b8 args[16])
.maxntid 128, 1, 1
{
    .reg .pred %p<3>;
    .reg .b32 %r<3>;
    .reg .b64 %rd<2>;
    ld.param.u64 %rd1, [args];
    mov.u32 %r2, 0;
again:
    ld.relaxed.sys.global.u32 %r1, [%rd1];
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra done;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p2, %r2, 67108864;
    @%p2 bra again;
done:
    ret;
}

.visible .entry touch_null(.param .align 8 .b8 args[16])
.maxntid 128, 1, 1
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<2>;
    mov.u64 %rd1, 16;
    mov.u32 %r1, 1;
    st.global.u32 [%rd1], %r1;
    ret;
}
";

#[derive(Clone, Copy)]
#[repr(C)]
struct Args {
    out: u64,
    first: u32,
    unused: u32,
}

// SAFETY: plain numbers, `#[repr(C)]`, no padding: 16 bytes on both sides.
unsafe impl KernelArg for Args {}

const COUNT_UP: Kernel<Args> = Kernel::new("count_up", 128, 1, false, |_| {});
const COUNT_UP_TOGETHER: Kernel<Args> = Kernel::new("count_up", 128, 1, true, |_| {});
const WAIT_FOR_WORD: Kernel<Args> = Kernel::new("wait_for_word", 128, 1, false, |_| {});
const TOUCH_NULL: Kernel<Args> = Kernel::new("touch_null", 128, 1, false, |_| {});
const NOWHERE: Kernel<Args> = Kernel::new("nowhere", 128, 1, false, |_| {});

/// One family, which names a kernel that its text has not.
const KERNELS: &[Family] = &[Family::new("test", &["count_up", "wait_for_word", "touch_null", "nowhere"], PTX)];

fn device() -> Arc<CudaDevice> {
    CudaDevice::with_kernels(0, KERNELS).unwrap()
}

fn rank(rank: u32) -> CudaRuntime {
    CudaRuntime::new(device(), rank).unwrap()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect()
}

fn launch(
    runtime: &CudaRuntime,
    kernel: &Kernel<Args>,
    grid: u32,
    shared: u32,
    args: Args,
    stream: u64,
) -> crate::Result<()> {
    // SAFETY: the kernels of `PTX` write 512 bytes per block at `out`, or read 4, which every test has allocated there.
    unsafe { runtime.launch(kernel, grid, shared, &args, stream) }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn copies_keep_every_byte_across_chunks() {
    let runtime = rank(0);
    let stream = runtime.create_stream().unwrap();
    for count in [0_usize, 1, 4096, (8 << 20) - 1, 8 << 20, (24 << 20) + 5] {
        let sent: Vec<u8> = (0..count).map(|i| (i * 31 + i / 4093) as u8).collect();
        let there = runtime.allocate("a copy", count as u64, &[]).unwrap();
        assert_eq!(there % 256, 0);
        let mut got = vec![0; count];
        // SAFETY: `count` bytes that were just allocated, used on this stream alone.
        unsafe {
            runtime.fill(there, 0xAB, count as u64, stream).unwrap();
            runtime.copy_to_device(there, &sent[..count / 2], stream).unwrap();
            runtime.copy_to_host(&mut got, there, stream).unwrap();
        }
        assert!(
            got[..count / 2] == sent[..count / 2] && got[count / 2..].iter().all(|&byte| byte == 0xAB),
            "{count} bytes"
        );
        // SAFETY: allocated above, and the copy to the host was the last use.
        unsafe { runtime.device().free(there) }.unwrap();
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn kernels_run_with_the_arguments_given() {
    let runtime = rank(0);
    let stream = runtime.create_stream().unwrap();
    let blocks = runtime.sms();
    let bytes = u64::from(blocks) * 512;
    let out = runtime.allocate("numbers", bytes, &[]).unwrap();
    for (kernel, first) in [(COUNT_UP, 1000), (COUNT_UP_TOGETHER, 70_000)] {
        assert!(runtime.prepare(&kernel, 0).unwrap() >= 1);
        let from = runtime.record_event(stream).unwrap();
        launch(&runtime, &kernel, blocks, 0, Args { out, first, unused: 0 }, stream).unwrap();
        let to = runtime.record_event(stream).unwrap();
        let mut got = vec![0; bytes as usize];
        // SAFETY: `bytes` bytes that were allocated above, used on this stream alone.
        unsafe { runtime.copy_to_host(&mut got, out, stream) }.unwrap();
        assert_eq!(words(&got), (first..first + blocks * 128).collect::<Vec<_>>());
        runtime.synchronize_event(&to).unwrap();
        let elapsed = runtime.elapsed_ms(&from, &to).unwrap();
        assert!(elapsed > 0.0 && elapsed < 1000.0, "{elapsed} ms");
    }
    // SAFETY: allocated above, and the copy to the host was the last use.
    unsafe { runtime.device().free(out) }.unwrap();
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn launches_that_cannot_work_are_refused_by_name() {
    let runtime = rank(5);
    let stream = runtime.create_stream().unwrap();
    let args = Args { out: 0, first: 0, unused: 0 };
    let said = |result: crate::Result<()>| result.unwrap_err().to_string();
    assert!(said(launch(&runtime, &COUNT_UP, 1, 0, args, stream)).starts_with("kernel = count_up: must be prepared"));
    let most = runtime.shared_bytes_per_block();
    assert!(runtime.prepare(&COUNT_UP, most + 1).is_err());
    let few = runtime.prepare(&COUNT_UP, most).unwrap();
    let many = runtime.prepare(&COUNT_UP, 1024).unwrap();
    assert!(few == 1 && many > 1, "{few} blocks with all shared memory, {many} with little");
    assert!(said(launch(&runtime, &COUNT_UP, 1, most + 1, args, stream)).contains("was prepared with"));
    assert!(said(launch(&runtime, &COUNT_UP, 0, 0, args, stream)).starts_with("grid = 0"));
    let nowhere = runtime.prepare(&NOWHERE, 0).unwrap_err().to_string();
    assert!(nowhere.contains("CUDA_ERROR_NOT_FOUND") && nowhere.contains("kernel nowhere"), "{nowhere}");
    assert!(nowhere.contains("[rank 5, GPU 0]"), "{nowhere}");
    runtime.prepare(&COUNT_UP_TOGETHER, 0).unwrap();
    let too_large = said(launch(&runtime, &COUNT_UP_TOGETHER, 1 << 20, 0, args, stream));
    assert!(too_large.contains("CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"), "{too_large}");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn the_compilers_log_is_in_the_error() {
    let ptx = PTX.replace("mad.lo.u32", "mad.no.u32").leak();
    let kernels = vec![Family::new("wrong", &["count_up"], ptx)].leak();
    let runtime = CudaRuntime::new(CudaDevice::with_kernels(0, kernels).unwrap(), 0).unwrap();
    let error = runtime.prepare(&COUNT_UP, 0).unwrap_err().to_string();
    assert!(error.contains("cuModuleLoadDataEx") && error.contains("the PTX compiler says: "), "{error}");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn what_does_not_fit_is_refused() {
    let runtime = rank(2);
    match runtime.allocate("everything", 1 << 50, &[]).unwrap_err() {
        Error::OutOfMemory { rank: 2, what: "everything", bytes, free } => assert!(bytes == 1 << 50 && free > 0),
        error => panic!("{error}"),
    }
    let mut streams = Vec::new();
    let refused = loop {
        match runtime.create_stream() {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::DoesNotFit { what: "streams", .. }) && streams.len() <= 32, "{refused}");
    let stream = streams.pop().unwrap();
    runtime.destroy_stream(stream).unwrap();
    assert!(runtime.destroy_stream(stream).is_err());
    runtime.create_stream().unwrap();
    let sms = runtime.sms();
    assert!(runtime.device().reserve_sms(sms).is_err());
    assert!(runtime.device().reserve_sms(sms - 1).is_ok());
}

/// One rank's kernel waits for the host; another rank on the GPU does all that an operation does, and goes away. Nothing of it
/// may wait for the first.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_rank_is_not_held_up_by_a_kernel_that_waits() {
    let device = device();
    let waiting = CudaRuntime::new(Arc::clone(&device), 0).unwrap();
    let other = CudaRuntime::new(Arc::clone(&device), 1).unwrap();
    let (stream, others) = (waiting.create_stream().unwrap(), other.create_stream().unwrap());
    let out = other.allocate("numbers", 512, &[]).unwrap();
    for runtime in [&waiting, &other] {
        runtime.prepare(&WAIT_FOR_WORD, 0).unwrap();
        runtime.prepare(&COUNT_UP, 0).unwrap();
    }
    let word = waiting.allocate_mapped(4).unwrap();
    // SAFETY: four mapped bytes, zeroed, aligned to a page; the device reads them as one word.
    let flag = unsafe { std::sync::atomic::AtomicU32::from_ptr(word.host.cast()) };
    let before = waiting.record_event(stream).unwrap();
    let start = Instant::now();
    launch(&waiting, &WAIT_FOR_WORD, 1, 0, Args { out: word.device, first: 0, unused: 0 }, stream).unwrap();
    let after = waiting.record_event(stream).unwrap();

    let mut got = vec![0; 512];
    // SAFETY: 512 bytes that were allocated above, used on this stream alone.
    unsafe { other.fill(out, 0, 512, others) }.unwrap();
    other.wait_event(others, &before).unwrap();
    launch(&other, &COUNT_UP, 1, 0, Args { out, first: 3, unused: 0 }, others).unwrap();
    // SAFETY: 512 bytes that were allocated above, used on this stream alone.
    unsafe {
        other.copy_to_host(&mut got, out, others).unwrap();
        other.copy_to_device(out, &got, others).unwrap();
    }
    other.synchronize(others).unwrap();
    other.destroy_stream(others).unwrap();
    drop(other);
    assert!(start.elapsed() < Duration::from_secs(2), "held up for {:?}", start.elapsed());
    let error = waiting.elapsed_ms(&before, &after).unwrap_err().to_string();
    assert!(error.contains("CUDA_ERROR_NOT_READY"), "the kernel should still wait: {error}");
    assert_eq!(words(&got), (3..131).collect::<Vec<_>>());

    flag.store(1, std::sync::atomic::Ordering::Release);
    waiting.synchronize_event(&after).unwrap();
    assert!(waiting.elapsed_ms(&before, &after).unwrap() > 0.0);
    // SAFETY: allocated above; the kernel that read the word has ended, as has the other rank's stream, and `flag` is not used again.
    unsafe {
        waiting.device().free_mapped(word).unwrap();
        waiting.device().free(out).unwrap();
    }
}

/// A rank dropped while its kernel waits: nothing is freed, and nothing waits.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn dropping_a_busy_rank_does_not_wait() {
    let waiting = rank(0);
    let stream = waiting.create_stream().unwrap();
    waiting.prepare(&WAIT_FOR_WORD, 0).unwrap();
    let word = waiting.allocate_mapped(4).unwrap();
    // SAFETY: four mapped bytes, zeroed, aligned to a page, and never freed; the device reads them as one word.
    let flag = unsafe { std::sync::atomic::AtomicU32::from_ptr(word.host.cast()) };
    let start = Instant::now();
    launch(&waiting, &WAIT_FOR_WORD, 1, 0, Args { out: word.device, first: 0, unused: 0 }, stream).unwrap();
    let after = waiting.record_event(stream).unwrap();
    drop(waiting);
    let took = start.elapsed();
    drop(after);
    flag.store(1, std::sync::atomic::Ordering::Release);
    // Only now: making a rank allocates, which may wait for the device.
    let rank = rank(0);
    assert!(took < Duration::from_secs(2), "held up for {took:?}");
    let stream = rank.create_stream().unwrap();
    rank.synchronize(stream).unwrap();
}

/// Whatever a group of several ranks did, and however it ended: its device is closed with it, and nothing that was left on a stream
/// is taken for work that still runs (the context would free nothing any more).
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_group_of_several_ranks_closes_its_devices() {
    let both = CudaDevice::count().unwrap() > 1;
    let groups: &[&[u32]] =
        if both { &[&[0], &[0, 0], &[0, 0, 0, 0], &[0, 1], &[0, 0, 1, 1]] } else { &[&[0, 0], &[0; 4]] };
    for (gpus, close) in groups.iter().flat_map(|gpus| [(gpus, true), (gpus, false)]) {
        let group = LocalGroup::on_gpus(gpus).unwrap();
        let devices: Vec<_> = gpus.iter().map(|gpu| CudaDevice::open(*gpu).unwrap()).collect();
        let contexts: Vec<_> = devices.iter().map(|device| Arc::clone(device.context())).collect();
        let devices: Vec<_> = devices.into_iter().map(|device| Arc::downgrade(&device)).collect();
        let worked = group.run(|comm| {
            let mut buffer = ElasticBuffer::new(&comm, Config::new(8, 1, 64, 4).with_num_sms(1))?;
            let x = comm.tensor(&[bf16::ONE; 64])?;
            let (idx, weights) = (comm.tensor(&[3i64])?, comm.tensor(&[1.0f32])?);
            comm.barrier()?;
            buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
            if close { buffer.close() } else { Ok(()) }
        });
        worked.unwrap();
        for (context, device) in contexts.iter().zip(&devices) {
            assert_eq!(device.strong_count(), 0, "GPUs {gpus:?}, closed: {close}");
            assert!(context.may_free(), "GPUs {gpus:?}, closed: {close}: the context was abandoned");
        }
    }
}

/// The ninth rank of a GPU has no hardware queue; those before it go as if they had been the group.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_group_that_cannot_be_made_closes_its_device() {
    let device = CudaDevice::open(0).unwrap();
    let (context, left) = (Arc::clone(device.context()), Arc::downgrade(&device));
    drop(device);
    // Another object, but of the same GPU.
    assert!(matches!(LocalGroup::on_gpu(33, 0), Err(Error::DoesNotFit { what: "streams", .. })));
    assert!(left.upgrade().is_none() && context.may_free());
    let device = CudaDevice::open(0).unwrap();
    assert!(matches!(LocalGroup::on_gpu(33, 0), Err(Error::DoesNotFit { what: "streams", .. })));
    assert!(device.context().may_free(), "the context was abandoned");
    assert_eq!(Arc::strong_count(&device), 1);
}

/// The fault ends the process's use of the GPU, so a child has it.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_faulted_kernel_is_reported_with_the_drivers_words() {
    const CHILD: &str = "EPOXIDE_TEST_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let name = "runtime::cuda::tests::a_faulted_kernel_is_reported_with_the_drivers_words";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let ended = child.args([name, "--exact", "--ignored", "--nocapture"]).env(CHILD, "1").status().unwrap();
        assert!(ended.success(), "the child process: {ended}");
        return;
    }
    let runtime = rank(1);
    let stream = runtime.create_stream().unwrap();
    runtime.prepare(&TOUCH_NULL, 0).unwrap();
    launch(&runtime, &TOUCH_NULL, 1, 0, Args { out: 0, first: 0, unused: 0 }, stream).unwrap();
    for _ in 0..2 {
        let said = runtime.synchronize(stream).unwrap_err().to_string();
        assert!(said.starts_with("cuStreamSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS: "), "{said}");
        assert!(said.ends_with("[rank 1, GPU 0]"), "{said}");
    }
}
