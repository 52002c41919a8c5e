//! Handles that are not to be replayed: old ones and another buffer's, which the host refuses; and those of ranks that do not agree, of a
//! routing that failed, and of a peer that does not come, of which every rank is told before a row is written.
mod support;

use epoxide::{
    CombineInput, Comm, DispatchInput, Dispatched, Error, ExpertOutputs, LocalGroup, Machine, MachineConfig, Result,
    WireRows, bf16,
};
use epoxide_kernels::words::WHOLE;
use support::Device;
use support::errors::{run, schedules};
use support::forge::Window;
use support::one_token::{Rank, config};

impl Rank {
    fn dispatch(&mut self) -> Result<Dispatched> {
        self.buffer.dispatch(&DispatchInput::new(1, &self.x, &self.idx, &self.weights))
    }

    fn dispatch_into(&mut self, slot: u32) -> Result<Dispatched> {
        let input = DispatchInput::new(1, &self.x, &self.idx, &self.weights);
        self.buffer.dispatch(&input.in_routing_slot(slot))
    }

    fn again(&mut self, handle: &Dispatched) -> Result<Dispatched> {
        self.buffer.dispatch_again(handle, &self.x)
    }

    fn combine(&mut self, handle: &Dispatched) -> Result<()> {
        self.buffer.combine(handle, CombineInput::new(ExpertOutputs::InPlace, &mut self.y))
    }

    fn round(&mut self) -> Result<Dispatched> {
        let handle = self.dispatch()?;
        self.combine(&handle)?;
        Ok(handle)
    }
}

#[test]
fn a_handle_whose_routing_is_gone_or_another_buffers_is_refused() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let (mut rank, mut other) =
                (Rank::new(&comm, config().with_routing_slots(2))?, Rank::new(&comm, config().with_routing_slots(2))?);
            let of_other = other.round()?;
            let mut refused = vec![rank.again(&of_other).map(|_| ())];
            let (first, second) = (rank.round()?, rank.round()?);
            let again = rank.again(&first)?;
            refused.push(rank.again(&of_other).map(|_| ()));
            rank.combine(&again)?;
            // Its rows are combined, which does not keep it from being replayed.
            refused.push(rank.buffer.received(&again).map(|_| ()));
            refused.push(rank.buffer.received(&second).map(|_| ()));
            // A replay is a handle of the same routing.
            let again = rank.again(&again)?;
            rank.combine(&again)?;
            let third = rank.round()?;
            let slots = [&first, &second, &again, &third].map(Dispatched::routing_slot);
            refused.push(rank.again(&first).map(|_| ()));
            refused.push(rank.again(&again).map(|_| ()));
            let second = rank.again(&second)?;
            rank.combine(&second)?;
            let third = rank.again(&third)?;
            rank.combine(&third)?;
            // More tokens than the handle has are no matter, fewer are.
            refused.push(rank.buffer.dispatch_again(&third, rank.x.prefix(63)?).map(|_| ()));
            other.buffer.close()?;
            refused.push(rank.again(&of_other).map(|_| ()));
            rank.buffer.close()?;
            Ok((refused, slots))
        });
        for result in results {
            let (refused, slots) = result.unwrap();
            assert_eq!(slots, [0, 1, 0, 0]);
            let mut refused = refused.into_iter().map(|r| r.expect_err("the call breaks a rule"));
            let mut next = || refused.next().unwrap();
            assert_error!(next(), Error::StaleHandle { .. }, "operation 0", "no operation in routing slot 0");
            assert_error!(next(), Error::StaleHandle { .. }, "stale handle", "operation 0 in routing slot 0");
            assert_error!(next(), Error::WrongOrder { call: "received", .. }, "combined once");
            assert_error!(next(), Error::StaleHandle { .. }, "operation 2", "no operation is current");
            for _ in ["first", "its replay"] {
                assert_error!(
                    next(),
                    Error::StaleHandle { .. },
                    "operation 0,",
                    "operation 8 in routing slot 0",
                    "until the next dispatch into its slot"
                );
            }
            assert_error!(next(), Error::BufferTooSmall { argument: "x", needed: 128, given: 126, .. }, "128");
            assert_error!(next(), Error::StaleHandle { .. }, "operation 0", "operation 8 in routing slot 0");
        }
    }
}

#[test]
fn the_slot_of_rows_that_wait_for_their_combine_is_busy() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let mut rank = Rank::new(&comm, config().with_routing_slots(2))?;
            let first = rank.dispatch()?;
            let mut refused = vec![rank.dispatch_into(0).map(|_| ()), rank.dispatch_into(2).map(|_| ())];
            // In the other slot there is room: the first one's rows are given up, and its routing is not.
            let second = rank.dispatch()?;
            refused.push(rank.combine(&first));
            let again = rank.again(&first)?;
            // The turn comes to slot 0, which waits again.
            refused.push(rank.dispatch().map(|_| ()));
            rank.combine(&again)?;
            let third = rank.dispatch()?;
            let slots = [&first, &second, &again, &third].map(Dispatched::routing_slot);
            rank.combine(&third)?;
            rank.buffer.close()?;
            // A buffer with one slot has no other to give.
            let mut rank = Rank::new(&comm, config().with_routing_slots(1))?;
            rank.dispatch()?;
            rank.dispatch()?;
            rank.buffer.close()?;
            Ok((refused, slots))
        });
        for result in results {
            let (refused, slots) = result.unwrap();
            assert_eq!(slots, [0, 1, 0, 0]);
            let mut refused = refused.into_iter().map(|r| r.expect_err("the call breaks a rule"));
            let mut next = || refused.next().unwrap();
            assert_error!(
                next(),
                Error::SlotBusy { slot: 0, operation: 0, slots: 2, .. },
                "routing slot 0 is busy",
                "operation 0 waits for its combine",
                "another of the 2 slots"
            );
            assert_error!(
                next(), Error::InvalidArgument { argument: "routing_slot", value, .. } if value == "2",
                "one of the buffer's 2 routing slots"
            );
            assert_error!(next(), Error::StaleHandle { .. }, "operation 0", "operation 1 is current");
            assert_error!(next(), Error::SlotBusy { slot: 0, operation: 2, slots: 2, .. }, "operation 2 waits");
        }
    }
}

/// How ranks come to differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Differ {
    /// They replay different handles.
    Replay,
    /// They dispatch into different slots.
    Slot,
}

/// Three ranks, of which rank 1 takes another handle or slot: each is told which, and no row is written.
fn different_handles(differ: Differ) {
    for mode in schedules() {
        let check = |comm: Comm, machine: Option<&Machine>| {
            let mut rank = Rank::new(&comm, config().with_routing_slots(3))?;
            let (first, second) = (rank.round()?, rank.dispatch()?);
            let view = rank.buffer.recv_view(&second)?;
            // Rows, scales, and what goes with them in all slots.
            let words = ((view.expert_outputs - view.x) / 8) as usize;
            let read = || {
                // SAFETY: the window's own memory, between two barriers: no rank is in an operation.
                machine.map_or(Vec::new(), |m| unsafe { m.peek(view.x, words) }.expect("the buffer's own memory"))
            };
            rank.combine(&second)?;
            rank.buffer.synchronize()?;
            let x = comm.tensor(&[bf16::from_f32(3.0); 64])?;
            comm.barrier()?;
            let before = read();
            comm.barrier()?;
            let other = comm.rank() == 1;
            match differ {
                Differ::Replay => rank.buffer.dispatch_again(if other { &first } else { &second }, &x).map(|_| ())?,
                Differ::Slot => {
                    let input = DispatchInput::new(1, &x, &rank.idx, &rank.weights);
                    rank.buffer.dispatch(&input.in_routing_slot(if other { 2 } else { 0 })).map(|_| ())?
                }
            }
            let fault = rank.buffer.synchronize();
            comm.barrier()?;
            let after = read();
            comm.barrier()?;
            Ok((fault, before == after))
        };
        let results = match Device::from_env() {
            Device::Cuda => run(3, mode, |comm| check(comm, None)),
            Device::Simulated => {
                let machine = Machine::new(MachineConfig::new(3, mode)).unwrap();
                LocalGroup::on_machine(&machine).unwrap().run_all(|comm| check(comm, Some(&machine)))
            }
        };
        // The first dispatch has slot 0, the second slot 1.
        let (kernel_name, usual, other) = match differ {
            Differ::Replay => ("dispatch again", (1, 2), (0, 1)),
            Differ::Slot => ("dispatch", (0, 0), (2, 0)),
        };
        for (here, result) in (0..).zip(results) {
            let (fault, nothing_written) = result.unwrap();
            assert!(nothing_written, "{mode:?}, rank {here}: a row was written");
            let (mine, its) = if here == 1 { (other, usual) } else { (usual, other) };
            assert_error!(
                fault.expect_err("the ranks differ"),
                Error::OtherHandle { rank, peer, kernel, slot, dispatch, peer_slot, peer_dispatch, epoch: 5, .. }
                    if *rank == here && (*peer == 1) == (here != 1) && *kernel == kernel_name
                        && (*slot, *dispatch) == mine && (*peer_slot, *peer_dispatch) == its,
                format!("different handles in operation 5 ({kernel_name})"), format!("in routing slot {}", its.0)
            );
        }
    }
}

#[test]
fn ranks_that_replay_different_handles_are_told_before_a_row_is_written() {
    different_handles(Differ::Replay);
}

#[test]
fn ranks_that_dispatch_into_different_slots_are_told_before_a_row_is_written() {
    different_handles(Differ::Slot);
}

/// What the host does not let happen, a peer's word may say: a combine by another routing.
#[test]
fn a_combine_by_another_routing_is_named() {
    for mode in Device::Simulated.schedules([1, 2, 3]) {
        let machine = Machine::new(MachineConfig::new(2, mode)).unwrap();
        let results = LocalGroup::on_machine(&machine).unwrap().run_all(|comm| {
            let mut rank = Rank::new(&comm, config().with_routing_slots(1))?;
            rank.round()?;
            rank.buffer.synchronize()?;
            comm.barrier()?;
            let mut fault = Ok(());
            if comm.rank() == 0 {
                // Rank 1's words of the second round, but the combine is still by the first one's routing.
                let handle = rank.dispatch()?;
                let window = Window::new(&machine, &rank.buffer, &handle)?;
                window.post("entry words", 1, 3);
                window.post("count matrix", 1, 2);
                window.write("landing counters", 1, 2 * WHOLE);
                window.post("entry words", 2, 4);
                rank.combine(&handle)?;
                fault = rank.buffer.synchronize();
            }
            comm.barrier()?;
            Ok(fault)
        });
        let fault = results.into_iter().next().unwrap().unwrap().expect_err("rank 1 is at another routing");
        assert_error!(
            fault,
            Error::OtherHandle { rank: 0, peer: 1, kernel: "combine", dispatch: 2, peer_dispatch: 1, epoch: 4, .. },
            "rank 0 works by that of dispatch 2",
            "rank 1 works by that of dispatch 1"
        );
    }
}

/// A slot without a routing on one rank, as a dispatch leaves it that failed there: that rank says so, the others that it gave up.
#[test]
fn a_routing_that_is_not_there_is_named() {
    for (mode, replays) in
        Device::Simulated.schedules([1, 2, 3]).into_iter().flat_map(|mode| [(mode, true), (mode, false)])
    {
        let machine = Machine::new(MachineConfig::new(2, mode)).unwrap();
        let results = LocalGroup::on_machine(&machine).unwrap().run_all(|comm| {
            let mut rank = Rank::new(&comm, config().with_routing_slots(2))?;
            rank.round()?;
            let handle = rank.dispatch()?;
            let view = rank.buffer.recv_view(&handle)?;
            rank.buffer.synchronize()?;
            comm.barrier()?;
            if comm.rank() == 1 {
                let bytes = rank.buffer.bytes()?;
                let of = |name: &str| bytes.regions.iter().find(|r| r.name == name && !r.symmetric).expect("a region");
                let (numbers, counts) = (of("handle: dispatches"), of("received counts"));
                let private = view.counts - counts.bytes / 2 - counts.offset;
                let word = private + numbers.offset + 8;
                // SAFETY: a word of this rank's private memory, which no operation is using.
                unsafe {
                    assert_eq!(machine.peek(word, 1).expect("inside"), [2], "the number of the second dispatch");
                    machine.write(word, &[0]).expect("inside");
                }
            }
            comm.barrier()?;
            match replays {
                true => rank.again(&handle).map(|_| ())?,
                false => rank.combine(&handle)?,
            }
            let fault = rank.buffer.synchronize();
            comm.barrier()?;
            Ok(fault)
        });
        let name = if replays { "dispatch again" } else { "combine" };
        let [other, own] = <[_; 2]>::try_from(results).unwrap().map(|r| r.unwrap().expect_err("no routing"));
        assert_error!(
            own, Error::NoRouting { rank: 1, slot: 1, kernel, epoch: 4, .. } if *kernel == name,
            "rank 1 has no routing in slot 1", format!("operation 4 ({name})"), "failed"
        );
        assert_error!(
            other, Error::PeerAborted { rank: 0, origin: 1, kernel, epoch: 4, .. } if *kernel == name,
            "it has no routing in the handle's slot"
        );
    }
}

/// A replay for which a peer does not come ends at its deadline, and leaves nothing for what comes after it to work on.
#[test]
fn a_peer_that_does_not_replay_is_named() {
    for mode in schedules() {
        let results = run(3, mode, |comm| {
            let mut rank = Rank::new(&comm, config().with_routing_slots(1))?;
            let handle = rank.round()?;
            rank.buffer.synchronize()?;
            let counted = comm.empty::<u32>(4)?;
            comm.barrier()?;
            if comm.rank() == 2 {
                comm.barrier()?;
                return Ok(None);
            }
            let again = rank.again(&handle)?;
            let counts = rank.buffer.recv_view(&again)?.counts;
            let fault = rank.buffer.synchronize();
            // SAFETY: as many counts as there are at least; a tensor of as many.
            unsafe { epoxide::quantize::Quantizer::new(&comm)?.copy_raw(counts / 16 * 16, counted.address(), 16)? };
            comm.synchronize()?;
            let counted = (counts.is_multiple_of(16)).then(|| counted.to_vec()).transpose()?;
            let later = rank.again(&handle).map(|_| ());
            comm.barrier()?;
            Ok(Some((fault, counted, later)))
        });
        let mut timeouts = 0;
        for result in results.into_iter().take(2) {
            let (fault, counted, later) = result.unwrap().unwrap();
            let fault = fault.expect_err("rank 2 is not there");
            timeouts += u32::from(matches!(fault, Error::PeerTimeout { .. }));
            assert_error!(
                &fault,
                Error::PeerTimeout { peer: 2, kernel: "dispatch again", epoch: 3, .. }
                    | Error::PeerAborted { kernel: "dispatch again", epoch: 3, .. },
                "operation 3 (dispatch again)",
                "rank 2"
            );
            assert_eq!(counted, Some(vec![0; 4]), "the counts of what did not come");
            assert_error!(later.unwrap_err(), Error::Poisoned { .. }, "poisoned");
        }
        assert!(timeouts > 0, "someone waited to the end");
    }
}

/// Rows of one form by the routing of another: the format alone decides what a buffer takes.
#[test]
fn a_replay_takes_what_the_buffer_takes() {
    let results = run(1, schedules()[0], |comm| {
        let mut rank = Rank::new(&comm, config().with_routing_slots(1))?;
        let handle = rank.round()?;
        let (codes, scales) = (comm.tensor(&[0u8; 64])?, comm.tensor(&[1.0f32; 1])?);
        let refused = rank.buffer.dispatch_again(&handle, epoxide::Rows::fp8(&codes, &scales, 1)).map(|_| ());
        // From an address, and nothing was lost.
        // SAFETY: a tensor of the handle's one token, which lives until the buffer is closed.
        let again = unsafe { rank.buffer.dispatch_again_raw(&handle, &rank.x.address().into())? };
        let received = rank.buffer.received(&again)?.x;
        rank.buffer.close()?;
        Ok((refused, received))
    });
    let (refused, received) = results.into_iter().next().unwrap().unwrap();
    assert_error!(refused.unwrap_err(), Error::InvalidArgument { argument: "rows", .. }, "it takes BF16 rows");
    assert_eq!(received, WireRows::Bf16(vec![bf16::ONE; 64]));
}
