//! Streams of the caller's on a real GPU: ignored unless asked for, as [`tests`](super::tests) are.
use half::bf16;

use super::{CudaDevice, CudaRuntime};
use crate::{CombineInput, Config, CudaStream, DispatchInput, ElasticBuffer, LocalGroup};

/// Ranks on streams of the caller's: their work is in its order, the streams outlive them, and what cannot be used is refused.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_callers_streams_are_used_and_left_alone() {
    let callers = CudaRuntime::new(CudaDevice::open(0).unwrap(), 0).unwrap();
    let streams: Vec<u64> = (0..2).map(|_| callers.create_stream().unwrap()).collect();
    let given: Vec<CudaStream> = streams.iter().map(|stream| CudaStream { device: 0, stream: *stream }).collect();
    // SAFETY: live streams, one for each rank, destroyed below when the group is gone.
    let group = unsafe { LocalGroup::on_streams(&given) }.unwrap();
    let seen = group.run(|comm| {
        let mut buffer = ElasticBuffer::new(&comm, Config::new(4, 1, 64, 4).with_num_sms(1))?;
        let x = comm.tensor(&[bf16::ONE; 64])?;
        let (idx, weights) = (comm.tensor(&[3i64])?, comm.tensor(&[1.0f32])?);
        comm.barrier()?;
        let handle = buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
        let rows = buffer.recv_counts(&handle)?.rows;
        Ok((comm.cuda_stream(), rows))
    });
    let want = given.iter().zip([0, 2]).map(|(given, rows)| (Some(given.stream), rows)).collect::<Vec<_>>();
    assert_eq!(seen.unwrap(), want);
    for stream in streams {
        callers.synchronize(stream).unwrap();
        callers.destroy_stream(stream).unwrap();
    }
    // The default stream is blocking.
    // SAFETY: the default stream lives as long as its context.
    let refused = unsafe { LocalGroup::on_streams(&[CudaStream { device: 0, stream: 0 }]) }.unwrap_err().to_string();
    assert!(refused.starts_with("stream = 0x0: must be non-blocking"), "{refused}");
}

/// A buffer on a stream of the caller's, beside the rank's own: a rank takes it once, and leaves it alone when it goes.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_buffer_is_moved_to_a_callers_stream() {
    let callers = CudaRuntime::new(CudaDevice::open(0).unwrap(), 0).unwrap();
    let streams: Vec<u64> = (0..2).map(|_| callers.create_stream().unwrap()).collect();
    let group = LocalGroup::on_gpu(2, 0).unwrap();
    let seen = group.run(|comm| {
        let stream = streams[comm.rank() as usize];
        // SAFETY: live streams, one for each rank, destroyed below when the group is gone. The rank's own stream does nothing beside.
        let [engine, again] = unsafe { [comm.on_cuda_stream(stream)?, comm.on_cuda_stream(stream)?] };
        assert_eq!((engine.cuda_stream(), again.cuda_stream()), (Some(stream), Some(stream)));
        let mut buffer = ElasticBuffer::new(&comm, Config::new(4, 1, 64, 4).with_num_sms(1))?;
        buffer.set_stream(&engine)?;
        let (x, outputs) = (engine.tensor(&[bf16::ONE; 64])?, engine.tensor(&[bf16::ONE; 2 * 64])?);
        let (idx, weights) = (engine.tensor(&[3i64])?, engine.tensor(&[1.0f32])?);
        let mut y = engine.empty::<bf16>(64)?;
        comm.barrier()?;
        let handle = buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
        buffer.combine(&handle, CombineInput::new(&outputs, &mut y))?;
        let sums = y.to_vec()?;
        buffer.close()?;
        Ok(sums == [bf16::ONE; 64])
    });
    assert_eq!(seen.unwrap(), [true, true]);
    for stream in streams {
        callers.synchronize(stream).unwrap();
        callers.destroy_stream(stream).unwrap();
    }
}
