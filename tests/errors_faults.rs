//! Amid a fault and behind it: nothing is published, nothing is taken for whole, and every rank hears of it. On the simulated
//! GPU, where a test can see the words, and say in a peer's place what the peer would.
use crate::assert_error;
use crate::support;

use std::time::Duration;

use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, LocalGroup, Machine, MachineConfig,
    Mode, Result, bf16,
};
use epoxide_dsl::fault::{Abort, CODE_TIMEOUT};
use epoxide_kernels::words::{UNUSED_EVEN, WHOLE};
use support::Device;
use support::errors::{dispatch, small};
use support::forge::Window;

const SELECTIONS: [i64; 4] = [0, 7, 3, 4];

/// What a rank is left with after a round of two ranks, in operations 1 and 2.
struct Round<'a> {
    buffer: ElasticBuffer,
    /// Of this rank, and of the other one.
    windows: [Window<'a>; 2],
    x: epoxide::DeviceTensor<bf16>,
    idx: epoxide::DeviceTensor<i64>,
    weights: epoxide::DeviceTensor<f32>,
    y: epoxide::DeviceTensor<bf16>,
}

impl<'a> Round<'a> {
    fn new(comm: &Comm, machine: &'a Machine) -> Result<Self> {
        let mut buffer = small(comm)?;
        let handle = dispatch(&mut buffer, comm, 2, &SELECTIONS)?;
        let own = Window::new(machine, &buffer, &handle)?;
        let bases = comm.all_gather(&own.base().to_ne_bytes())?;
        let base = bases[1 - comm.rank() as usize].as_slice().try_into().expect("8 bytes");
        let peer = own.of_peer(u64::from_ne_bytes(base));
        let mut y = comm.empty::<bf16>(128)?;
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
        buffer.synchronize()?;
        let round = Self {
            buffer,
            windows: [own, peer],
            x: comm.tensor(&[bf16::ONE; 128])?,
            idx: comm.tensor(&SELECTIONS)?,
            weights: comm.tensor(&[1.0f32; 4])?,
            y,
        };
        comm.barrier()?;
        Ok(round)
    }

    fn dispatch(&mut self) -> Result<epoxide::Dispatched> {
        self.buffer.dispatch(&DispatchInput::new(2, &self.x, &self.idx, &self.weights))
    }
}

/// Runs `f` on two ranks, and returns what rank 0 made of it.
fn on_two<T: Send>(mode: Mode, f: impl Fn(&Comm, Round<'_>) -> Result<T> + Sync) -> T {
    let machine = Machine::new(MachineConfig::new(2, mode)).unwrap();
    let run = |comm: Comm| Round::new(&comm, &machine).and_then(|round| f(&comm, round));
    let mut results = LocalGroup::on_machine(&machine).unwrap().run_all(run);
    results.swap_remove(1).unwrap();
    results.swap_remove(0).unwrap()
}

/// That rank 1 gave up, because it waited too long for rank 0.
fn gave_up() -> u64 {
    Abort { code: CODE_TIMEOUT, origin: 1, peer: 0 }.to_word()
}

/// Ranks 0 and 1 of three enqueue three operations at once, and rank 2 never comes. The first fails; the others say nothing.
#[test]
fn nothing_is_published_behind_a_fault() {
    for mode in Device::Simulated.schedules(1..=6) {
        let machine = Machine::new(MachineConfig::new(3, mode)).unwrap();
        let results = LocalGroup::on_machine(&machine).unwrap().run_all(|comm| {
            let mut buffer = ElasticBuffer::new(&comm, Config::new(8, 2, 64, 4).with_num_sms(2))?;
            let mut y = comm.empty::<bf16>(64)?;
            let x = comm.tensor(&[bf16::ONE; 64])?;
            let (idx, weights) = (comm.tensor(&[0i64, 7])?, comm.tensor(&[1.0f32; 2])?);
            comm.barrier()?;
            let input = DispatchInput::new(1, &x, &idx, &weights);
            let mut seen = None;
            if comm.rank() != 2 {
                let handle = buffer.dispatch(&input)?;
                let (window, view) = (Window::new(&machine, &buffer, &handle)?, buffer.recv_view(&handle)?);
                buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
                buffer.dispatch(&input)?;
                let failed = buffer.synchronize().is_err();
                seen = Some((window, view.counts, failed));
            }
            // Everyone is out of it before anyone looks.
            comm.barrier()?;
            let seen = seen.map(|(window, counts, failed)| {
                let counts = window.peek(counts, 3);
                let [entry, done, landed] =
                    ["entry words", "done words", "landing counters"].map(|r| window.numbers(r));
                (failed, entry, done, landed, counts)
            });
            comm.barrier()?;
            Ok(seen)
        });
        for (rank, result) in (0..2).zip(results) {
            let (failed, entry, done, landed, counts) = result.unwrap().unwrap();
            assert!(failed, "{mode:?}, rank {rank}");
            // The slot of even operations is unused, and that of odd ones has the first of those that came.
            let unused = u32::from_ne_bytes([UNUSED_EVEN; 4]);
            assert_eq!(entry, [unused, unused, unused, 1, 1, 0], "{mode:?}, rank {rank}");
            assert_eq!((done, landed), (vec![0; 3], vec![0; 3]), "{mode:?}, rank {rank}");
            assert_eq!(counts, [0; 3], "{mode:?}, rank {rank}");
        }
    }
}

/// A peer gives up while this rank is in the operation, past all its waits but the last or in them: it posts nothing, counts
/// nothing and says why. In some schedules it is past them, which is what the look at the end is for.
#[test]
fn an_operation_in_which_a_peer_gives_up_is_not_taken_for_whole() {
    for (kernel, epoch) in [("dispatch", 3), ("combine", 4)] {
        let mut at_the_end = 0;
        for seed in 0..24 {
            let phase = on_two(Mode::Seeded { seed }, |comm, mut round| {
                let mut phase = "";
                if comm.rank() == 0 {
                    let handle = round.dispatch()?;
                    let counts = round.buffer.recv_view(&handle)?.counts;
                    if kernel == "combine" {
                        round.windows[0].post("entry words", 1, 3);
                        round.windows[0].post("count matrix", 1, 2);
                        round.windows[0].write("landing counters", 1, 2 * WHOLE);
                        round.buffer.synchronize()?;
                        comm.barrier()?;
                        round.buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut round.y))?;
                    } else {
                        comm.barrier()?;
                    }
                    let fault = round.buffer.synchronize().expect_err("rank 1 gave up");
                    assert_error!(
                        &fault,
                        Error::PeerAborted { rank: 0, origin: 1, kernel: k, epoch: e, reason, .. }
                            if *k == kernel && *e == epoch && reason.contains("rank 0"),
                        "because rank 1 gave up"
                    );
                    if let Error::PeerAborted { phase: where_it_was, .. } = fault {
                        phase = where_it_was;
                    }
                    // What rank 0 told rank 1 is of the round before.
                    let told = if kernel == "combine" {
                        (round.windows[1].read("done words")[0], WHOLE)
                    } else {
                        let counts = round.windows[0].peek(counts, 3);
                        assert_eq!(counts, [0; 3], "seed {seed}: nothing has arrived");
                        (round.windows[1].read("landing counters")[0], WHOLE)
                    };
                    assert_eq!(told.0, told.1, "seed {seed}");
                } else {
                    comm.barrier()?;
                    // Rank 0 is in the operation by then.
                    comm.delay(Duration::from_millis(1))?;
                    comm.synchronize()?;
                    // Nothing runs between these: the machine stands while a host thread does.
                    let to = &round.windows[1];
                    // A combine is by the routing of the second dispatch, not of the first.
                    let by = if kernel == "combine" { 1 ^ 2 } else { 0 };
                    to.post_flipped("entry words", epoch - 2, epoch, by);
                    if kernel == "dispatch" {
                        to.post("count matrix", 1, 2);
                    }
                    to.write("abort word", 0, gave_up());
                }
                comm.barrier()?;
                Ok(phase)
            });
            at_the_end += u32::from(phase.starts_with("end"));
        }
        assert!(at_the_end > 0, "{kernel}: no schedule was past its waits");
    }
}

/// The expert outputs are not lent behind a fault: peers may still read them.
#[test]
fn nothing_is_lent_behind_a_fault() {
    for mode in Device::Simulated.schedules([1, 2, 3]) {
        on_two(mode, |comm, mut round| {
            if comm.rank() == 0 {
                round.windows[0].write("abort word", 0, gave_up());
                round.buffer.lend_expert_outputs()?;
                assert_error!(
                    round.buffer.synchronize().expect_err("rank 1 gave up"),
                    Error::PeerAborted { rank: 0, origin: 1, kernel: "lend after combine", epoch: 2, .. },
                    "because rank 1 gave up"
                );
            }
            comm.barrier()
        });
    }
}

/// A peer whose configuration the host could not compare, being of another build or another group.
#[test]
fn another_configuration_that_only_the_device_sees_is_named() {
    for mode in Device::Simulated.schedules([1, 2, 3]) {
        on_two(mode, |comm, mut round| {
            if comm.rank() == 0 {
                round.dispatch()?;
                let window = &round.windows[0];
                window.post("entry words", 1, 3);
                // The configuration's hash is the low part of the upper half. Slot 1, rank 1.
                let word = window.read("entry words")[3];
                window.write("entry words", 3, word ^ 1 << 32);
                let hash = (word >> 32) & 0xff_ffff;
                assert_error!(
                    round.buffer.synchronize().expect_err("another configuration"),
                    Error::DeviceConfigMismatch { rank: 0, peer: 1, kernel: "dispatch", epoch: 3, expected, seen, .. }
                        if *expected == hash && *seen == hash ^ 1,
                    "rank 1 runs with another configuration than rank 0", "in operation 3 (dispatch) of buffer 1"
                );
            }
            comm.barrier()
        });
    }
}
