//! Streams of the caller's on a real GPU: ignored unless asked for, as [`tests`](super::tests) are.
use half::bf16;

use super::driver::Driver;
use super::streams::handle;
use super::{CudaDevice, CudaRuntime};
use crate::{CombineInput, Config, CudaStream, DispatchInput, ElasticBuffer, Error, LocalGroup};

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

/// An engine captures its own stream by the driver's calls, and launches the graph by them: the selections change in place, eager operations come
/// between, and a capture that is left open is told by the next operation.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn an_engine_captures_and_launches_by_itself() {
    let callers = CudaRuntime::new(CudaDevice::open(0).unwrap(), 0).unwrap();
    let streams: Vec<u64> = (0..2).map(|_| callers.create_stream().unwrap()).collect();
    let group = LocalGroup::on_gpu(2, 0).unwrap();
    let seen = group.run(|comm| {
        let stream = streams[comm.rank() as usize];
        // SAFETY: live streams, one for each rank, destroyed below when the group is gone. The rank's own stream does nothing beside.
        let engine = unsafe { comm.on_cuda_stream(stream)? };
        let mut buffer = ElasticBuffer::new(&engine, Config::new(4, 1, 64, 4).with_num_sms(1))?;
        let (x, outputs) = (engine.tensor(&[bf16::ONE; 64])?, engine.tensor(&[bf16::ONE; 8 * 64])?);
        let (mut idx, weights) = (engine.tensor(&[3i64])?, engine.tensor(&[1.0f32])?);
        let mut y = engine.empty::<bf16>(64)?;
        let (calls, raw) = (Driver::get()?.graphs()?, handle(stream));
        let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the engine's own stream, of the context that is current on this thread, and what is captured is there until the end.
        unsafe {
            super::driver::check("cuStreamBeginCapture", calls.begin(raw))?;
            for _ in 0..20 {
                let handle = buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
                buffer.combine(&handle, CombineInput::new(&outputs, &mut y))?;
            }
            super::driver::check("cuStreamEndCapture", calls.end(raw, &mut graph))?;
            super::driver::check("cuGraphInstantiate", calls.instantiate(&mut exec, graph))?;
        }
        comm.barrier()?;
        let mut right = true;
        for round in 0..50 {
            let expert = [3i64, 0, -1, 2][round % 4];
            idx.copy_from_host(&[expert])?;
            y.copy_from_host(&[bf16::from_f32(7.0); 64])?;
            if round % 3 == 2 {
                let handle = buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
                buffer.combine(&handle, CombineInput::new(&outputs, &mut y))?;
            } else {
                // SAFETY: as above.
                super::driver::check("cuGraphLaunch", unsafe { calls.launch(exec, raw) })?;
            }
            right &= y.to_vec()? == [if expert < 0 { bf16::ZERO } else { bf16::ONE }; 64];
        }
        comm.barrier()?;
        // SAFETY: as above; the open capture's graph is thrown away.
        unsafe {
            super::driver::check("cuStreamBeginCapture", calls.begin(raw))?;
            buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
            super::driver::check("cuStreamEndCapture", calls.end(raw, &mut graph))?;
        }
        let open = buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights)).err();
        comm.barrier()?;
        let handle = buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
        buffer.combine(&handle, CombineInput::new(&outputs, &mut y))?;
        buffer.synchronize()?;
        buffer.close()?;
        Ok((right, matches!(open, Some(Error::CaptureLeftOpen { slot: 0, .. }))))
    });
    assert_eq!(seen.unwrap(), [(true, true), (true, true)]);
    for stream in streams {
        callers.synchronize(stream).unwrap();
        callers.destroy_stream(stream).unwrap();
    }
}
