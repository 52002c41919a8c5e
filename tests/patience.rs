//! Ranks whose threads are busy elsewhere, on simulated machines: a deadline passes all the same, and no collective call waits
//! for them for ever. How long that takes is the machine's patience.
mod support;

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use epoxide::{
    Comm, Config, DispatchInput, ElasticBuffer, Error, LocalGroup, Machine, MachineConfig, Mode, Result, bf16,
};

/// Long enough that no rank which only wants a turn on the host is taken for a busy one.
const PATIENCE: Duration = Duration::from_secs(3);

fn impatient(ranks: u32, mode: Mode) -> Vec<Comm> {
    let machine = Machine::new(MachineConfig::new(ranks, mode).with_patience(PATIENCE)).unwrap();
    LocalGroup::on_machine(&machine).unwrap().into_comms()
}

/// What `f` returns on a thread of its own; fails when that takes longer than anyone would wait.
fn in_time<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = channel();
    std::thread::spawn(move || done.send(f()));
    ended.recv_timeout(Duration::from_secs(120)).expect("it ends, and does not panic")
}

/// The first rank of two makes a buffer with the other one and dispatches, and the other one waits for what is none of Epoxide's.
fn dispatch_beside_a_busy_rank(mode: Mode) -> Error {
    let (done, wait) = channel::<()>();
    let mut comms = impatient(2, mode).into_iter();
    let (first, second) = (comms.next().unwrap(), comms.next().unwrap());
    let new = |comm: &Comm| {
        let config = Config::new(8, 2, 64, 4).with_num_sms(2).with_timeout(Duration::from_secs(2));
        ElasticBuffer::new(comm, config)
    };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _buffer = new(&second).unwrap();
            let _ = wait.recv();
        });
        let mut buffer = new(&first).unwrap();
        let x = first.tensor(&[bf16::ONE; 64]).unwrap();
        let (idx, weights) = (first.tensor(&[0i64, 7]).unwrap(), first.tensor(&[1.0f32; 2]).unwrap());
        buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights)).unwrap();
        let fault = buffer.synchronize().expect_err("rank 1 never dispatches");
        drop(done);
        fault
    })
}

#[test]
fn an_operation_times_out_although_its_peers_thread_is_busy_elsewhere() {
    let start = Instant::now();
    let fault = in_time(|| dispatch_beside_a_busy_rank(Mode::Fast { workers: 0 }));
    assert_error!(fault, Error::PeerTimeout { rank: 0, peer: 1, virtual_time: true, .. }, "of virtual time for rank 1");
    assert!(start.elapsed() >= PATIENCE);
    // Where a timeout would depend on the host's clock, the machine says why it stopped.
    let fault = in_time(|| dispatch_beside_a_busy_rank(Mode::Seeded { seed: 1 }));
    assert_error!(fault, Error::Simulator { .. }, "ranks [1] ran", "3s of wall time");
}

/// Rank 1's thread panics while something else keeps its `Comm`: rank 0 closes alone.
fn close_alone(mode: Mode) -> Result<()> {
    let mut comms = impatient(2, mode).into_iter();
    let (first, second) = (comms.next().unwrap(), comms.next().unwrap());
    let _kept = second.clone();
    std::thread::scope(|scope| {
        let panics = scope.spawn(move || {
            let _buffer = ElasticBuffer::new(&second, Config::new(8, 2, 64, 4).with_num_sms(2)).unwrap();
            // Without the hook, which would print it.
            std::panic::resume_unwind(Box::new("as it must in this test"));
        });
        let buffer = ElasticBuffer::new(&first, Config::new(8, 2, 64, 4).with_num_sms(2)).unwrap();
        assert!(panics.join().is_err());
        buffer.close()
    })
}

#[test]
fn a_buffer_is_closed_in_time_although_a_rank_does_not_come() {
    let error = in_time(|| close_alone(Mode::Fast { workers: 0 })).expect_err("rank 1 does not come");
    assert_error!(error, Error::Bootstrap { .. }, "rank 0 gave up", "ranks [1] did not come", "3s of wall time");
    let error = in_time(|| close_alone(Mode::Seeded { seed: 1 })).expect_err("rank 1 does not come");
    assert_error!(error, Error::Simulator { .. }, "ranks [1] ran");
}

#[test]
fn a_machine_with_more_ranks_than_a_domain_is_no_group() {
    let machine = Machine::new(MachineConfig::new(65, Mode::Fast { workers: 1 })).unwrap();
    assert_error!(
        LocalGroup::on_machine(&machine).unwrap_err(),
        Error::InvalidArgument { argument: "ranks", .. },
        "65"
    );
}
