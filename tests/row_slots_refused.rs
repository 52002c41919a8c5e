//! Row slots that are held, are not there, or are not what other ranks take; handles whose rows are gone; and what a fault or an overflow in one
//! slot says of it and means for the others.
mod support;

use std::time::Duration;

use epoxide::{
    CombineInput, Config, DispatchInput, Dispatched, Error, ExpertOutputs, Mode, ReplayInput, Result, WireRows, bf16,
    bytes_needed,
};
use support::Device;
use support::errors::{run, schedules};
use support::one_token::{self, Rank};

fn config(slots: u32) -> Config {
    one_token::config().with_row_slots(slots)
}

impl Rank {
    fn dispatch(&mut self) -> Result<Dispatched> {
        self.dispatch_with(|input| input)
    }

    fn dispatch_with(
        &mut self,
        with: impl for<'a> FnOnce(DispatchInput<'a, i64>) -> DispatchInput<'a, i64>,
    ) -> Result<Dispatched> {
        self.buffer.dispatch(&with(DispatchInput::new(1, &self.x, &self.idx, &self.weights)))
    }

    fn combine(&mut self, handle: &Dispatched) -> Result<()> {
        self.buffer.combine(handle, CombineInput::new(ExpertOutputs::InPlace, &mut self.y))
    }
}

#[test]
fn a_slot_that_is_held_is_named_with_who_holds_it() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let mut rank = Rank::new(&comm, config(2))?;
            let first = rank.dispatch()?;
            let second = rank.dispatch_with(|input| input.keeping_rows())?;
            let mut refused =
                vec![rank.dispatch().map(drop), rank.dispatch_with(|input| input.in_row_slot(1)).map(drop)];
            refused.push(rank.dispatch_with(|input| input.in_row_slot(2)).map(drop));
            refused.push(rank.buffer.dispatch_again(&first, &rank.x).map(drop));
            refused.push(rank.buffer.lend_expert_outputs().map(drop));
            rank.combine(&second)?;
            refused.push(rank.dispatch_with(|input| input.in_row_slot(1)).map(drop));
            rank.combine(&first)?;
            // The free slot, whatever the turn; the routing that is kept is nobody's.
            refused.push(rank.dispatch_with(|input| input.in_routing_slot(1)).map(drop));
            let third = rank.dispatch()?;
            refused.push(rank.dispatch().map(drop));
            rank.buffer.release(&second)?;
            let fourth = rank.dispatch()?;
            let slots = [&first, &second, &third, &fourth].map(|h| (h.row_slot(), h.routing_slot()));
            rank.combine(&fourth)?;
            rank.combine(&third)?;
            rank.buffer.close()?;
            Ok((refused, slots))
        });
        for result in results {
            let (refused, slots) = result.unwrap();
            assert_eq!(slots, [(0, 0), (1, 1), (0, 0), (1, 1)]);
            let mut refused = refused.into_iter().map(|r| r.expect_err("the call breaks a rule"));
            let mut next = || refused.next().unwrap();
            assert_error!(
                next(),
                Error::RowSlotBusy { slot: 0, operation: 0, kept: false, slots: 2, .. },
                "row slot 0 of 2 is busy: operation 0 waits for its combine, which frees the slot"
            );
            assert_error!(next(), Error::RowSlotBusy { slot: 1, operation: 1, kept: false, .. }, "operation 1 waits");
            assert_error!(
                next(), Error::InvalidArgument { argument: "row_slot", value, .. } if value == "2",
                "one of the buffer's 2 row slots, from 0"
            );
            assert_error!(next(), Error::RowSlotBusy { slot: 0, operation: 0, .. }, "row slot 0");
            assert_error!(
                next(),
                Error::WrongOrder { call: "lend_expert_outputs", .. },
                "row slot 0 between dispatch 0 and its combine, row slot 1 between dispatch 1"
            );
            assert_error!(
                next(),
                Error::RowSlotBusy { slot: 1, operation: 1, kept: true, .. },
                "operation 1 keeps its rows there, until it is released"
            );
            assert_error!(next(), Error::SlotBusy { slot: 1, operation: 1, slots: 2, .. }, "or keeps its rows");
            assert_error!(next(), Error::RowSlotBusy { slot: 1, operation: 1, kept: true, .. }, "row slot 1 of 2");
        }
    }
}

/// Also where there is one.
#[test]
fn rows_that_are_kept_hold_the_only_slot() {
    let results = run(2, schedules()[0], |comm| {
        let mut rank = Rank::new(&comm, config(1))?;
        let handle = rank.dispatch_with(|input| input.keeping_rows())?;
        let mut refused = vec![rank.dispatch().map(drop)];
        rank.combine(&handle)?;
        refused.push(rank.dispatch().map(drop));
        refused.push(rank.buffer.lend_expert_outputs().map(drop));
        let rows = rank.buffer.received(&handle)?.x;
        rank.buffer.release(&handle)?;
        let next = rank.dispatch()?;
        rank.combine(&next)?;
        rank.buffer.close()?;
        Ok((refused, rows))
    });
    for (here, result) in (0..).zip(results) {
        let (refused, rows) = result.unwrap();
        assert_eq!(rows, WireRows::Bf16(vec![bf16::ONE; 2 * 64]), "rank {here}");
        let mut refused = refused.into_iter().map(|r| r.expect_err("it is held"));
        let mut next = || refused.next().unwrap();
        assert_error!(
            next(),
            Error::RowSlotBusy { slot: 0, operation: 0, kept: false, slots: 1, .. },
            "row slot 0 of 1"
        );
        assert_error!(next(), Error::RowSlotBusy { slot: 0, operation: 0, kept: true, slots: 1, .. }, "released");
        assert_error!(next(), Error::WrongOrder { .. }, "buffer is keeping the rows of operation 0");
    }
}

#[test]
fn a_handle_whose_rows_are_gone_is_refused() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let mut rank = Rank::new(&comm, config(2))?;
            let mut other = Rank::new(&comm, config(2))?;
            let of_other = other.dispatch()?;
            let mut refused = vec![rank.buffer.release(&of_other)];
            let first = rank.dispatch()?;
            rank.combine(&first)?;
            refused.push(rank.buffer.release(&first));
            refused.push(rank.buffer.recv_view(&first).map(drop));
            // Another has its slot, and a replay of its routing yet another.
            let second = rank.dispatch_with(|input| input.in_row_slot(0))?;
            refused.push(rank.buffer.recv_view(&first).map(drop));
            let third = rank.buffer.dispatch_again(&second, ReplayInput::new(&rank.x).in_row_slot(1).keeping_rows())?;
            rank.buffer.release(&second)?;
            refused.push(rank.combine(&second));
            refused.push(rank.buffer.release(&second));
            rank.combine(&third)?;
            // Kept rows are read, and that is all.
            rank.buffer.received(&third)?;
            refused.push(rank.combine(&third));
            refused.push(rank.buffer.stage_expert_outputs(&third, &rank.x));
            rank.buffer.release(&third)?;
            refused.push(rank.buffer.recv_arrays(&third).map(drop));
            // Its routing is there until another dispatch takes it.
            let again = rank.buffer.dispatch_again(&third, &rank.x)?;
            rank.combine(&again)?;
            other.combine(&of_other)?;
            other.buffer.close()?;
            rank.buffer.close()?;
            Ok(refused)
        });
        for result in results {
            let mut refused = result.unwrap().into_iter().map(|r| r.expect_err("the rows are gone"));
            let mut next = || refused.next().unwrap();
            assert_error!(next(), Error::StaleHandle { .. }, "operation 0, but buffer", "no operation");
            assert_error!(next(), Error::WrongOrder { call: "release", .. }, "combined once");
            assert_error!(next(), Error::WrongOrder { call: "recv_view", .. }, "row slot 0 idle, row slot 1 idle");
            assert_error!(next(), Error::StaleHandle { .. }, "operation 0,", "operation 2 in row slot 0 is current");
            assert_error!(next(), Error::StaleHandle { .. }, "operation 2,", "no operation in row slot 0 is current");
            assert_error!(next(), Error::StaleHandle { .. }, "until its combine or its release");
            assert_error!(
                next(),
                Error::WrongOrder { call: "combine", .. },
                "row slot 1 keeping the rows of operation 3"
            );
            assert_error!(next(), Error::WrongOrder { call: "stage_expert_outputs", .. }, "combined once");
            assert_error!(next(), Error::WrongOrder { call: "recv_arrays", .. }, "combined once");
        }
    }
}

#[test]
fn numbers_of_slots_keep_their_rules() {
    let refused = |change: fn(&mut Config)| {
        let mut config = config(2);
        change(&mut config);
        bytes_needed(&config, 2, 2).unwrap_err().to_string()
    };
    assert_eq!(refused(|c| c.row_slots = 0), "row_slots = 0: a buffer has 1 to 64 row slots");
    assert_eq!(refused(|c| c.row_slots = 65), "row_slots = 65: a buffer has 1 to 64 row slots");
    let rule = "a routing slot for each of the 2 row slots: every dispatch in flight has one of its own";
    assert_eq!(refused(|c| c.routing_slots = 1), format!("routing_slots = 1: {rule}"));
    assert!(bytes_needed(&config(64), 2, 2).is_ok());
    let results =
        run(2, schedules()[0], |comm| Rank::new(&comm, config(1 + comm.rank()).with_routing_slots(2)).map(drop));
    for result in results {
        assert_error!(result.unwrap_err(), Error::ConfigMismatch { field: "row_slots", .. }, "1 on ranks [0]");
    }
}

/// How ranks come to be in different slots.
#[derive(Clone, Copy, Debug)]
enum Differ {
    Dispatch,
    Combine,
}

/// No rank sees another come, and each that waited to the end says where the other is.
#[test]
fn ranks_in_different_slots_are_told_at_the_deadline() {
    for (mode, differ) in schedules().into_iter().flat_map(|mode| [(mode, Differ::Dispatch), (mode, Differ::Combine)]) {
        let results = run(2, mode, |comm| {
            let mut rank = Rank::new(&comm, config(2))?;
            let slot = comm.rank();
            match differ {
                Differ::Dispatch => rank.dispatch_with(|input| input.in_row_slot(slot)).map(drop)?,
                Differ::Combine => {
                    let handles = [rank.dispatch()?, rank.dispatch()?];
                    rank.combine(&handles[slot as usize])?;
                }
            }
            let fault = rank.buffer.synchronize();
            comm.barrier()?;
            Ok((fault, rank.dispatch().map(drop)))
        });
        let (kernel_name, number) = match differ {
            Differ::Dispatch => ("dispatch", 1),
            Differ::Combine => ("combine", 2),
        };
        let mut timeouts = 0;
        for (here, result) in (0..).zip(results) {
            let (fault, later) = result.unwrap();
            let fault = fault.expect_err("the other rank is elsewhere");
            timeouts += u32::from(matches!(fault, Error::PeerTimeout { .. }));
            assert_error!(
                &fault,
                Error::PeerTimeout { peer: there, row_slot: Some(slot), peer_row_slot: Some(other), kernel, epoch, .. }
                    | Error::PeerAborted { origin: there, row_slot: Some(slot), peer_row_slot: Some(other), kernel, epoch, .. }
                    if (*slot, *there, *other) == (here, 1 - here, 1 - here) && *kernel == kernel_name && *epoch == number,
                format!("in row slot {}: operations take the same one on every rank", 1 - here),
                format!("of row slot {here} of buffer 1")
            );
            assert_error!(later.unwrap_err(), Error::Poisoned { .. }, "poisoned");
        }
        assert!(timeouts > 0, "someone waited to the end");
    }
}

/// A bad selection in one slot: it says which, and no slot goes on.
#[test]
fn a_fault_in_one_slot_poisons_the_buffer() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let mut rank = Rank::new(&comm, config(2))?;
            let first = rank.dispatch()?;
            rank.buffer.synchronize()?;
            comm.barrier()?;
            if comm.rank() == 1 {
                rank.idx.copy_from_host(&[0, 8])?;
            }
            rank.dispatch()?;
            // Enqueued before anyone knows, it sums nothing.
            let enqueued = rank.combine(&first);
            let fault = rank.buffer.synchronize();
            comm.barrier()?;
            Ok((enqueued, fault, rank.combine(&first), rank.buffer.received(&first).map(drop)))
        });
        for result in results {
            let (_, fault, combine, received) = result.unwrap();
            let error = fault.expect_err("there is no expert 8");
            let cause = match &error {
                Error::Poisoned { cause, .. } => cause,
                other => other,
            };
            assert_error!(
                cause,
                Error::IndexOutOfRange { source_rank: 1, index: 8, row_slot: Some(1), epoch: 1, .. },
                "operation 1 of row slot 1 of buffer 1"
            );
            assert!(combine.is_err() && received.is_err());
        }
    }
}

/// Dispatches of one number in two slots, neither of which fits: each is told of its own.
#[test]
fn what_does_not_fit_is_told_with_its_slot() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let mut rank = Rank::new(&comm, config(2).with_capacity(1))?;
            let handles = [rank.dispatch()?, rank.dispatch()?];
            let second = rank.buffer.recv_counts(&handles[1]).map(drop);
            let first = rank.buffer.synchronize();
            let nothing = rank.buffer.synchronize();
            for handle in &handles {
                rank.combine(handle)?;
            }
            let y = rank.y.to_vec()?;
            let _ = rank.buffer.synchronize();
            rank.buffer.close()?;
            Ok((second, first, nothing, y))
        });
        for result in results {
            let (second, first, nothing, y) = result.unwrap();
            for (told, slot) in [(second, 1), (first, 0)] {
                assert_error!(
                    told.unwrap_err(),
                    Error::CapacityExceeded { of_rank: 0, wanted: 2, capacity: 1, row_slot: Some(s), epoch: 1, .. } if *s == slot,
                    format!("operation 1 of row slot {slot} of buffer 1")
                );
            }
            nothing.unwrap();
            assert!(y.iter().all(|y| y.to_bits() == 0));
        }
    }
}

/// Two dispatches into one routing slot, each the first into its row slot: the counts of one are not told for the other.
#[test]
fn counts_are_told_of_the_dispatch_that_is_asked_for() {
    for seed in 1..=4 {
        let results = Device::Simulated.run_all(2, Mode::Seeded { seed }, |comm| {
            let mut rank = Rank::new(&comm, config(2).with_counts_mirror())?;
            let first = rank.dispatch()?;
            let before = rank.buffer.wait_counts(&first, Duration::from_secs(1))?.by_expert;
            rank.combine(&first)?;
            rank.idx.copy_from_host(&[3, 4])?;
            // Nothing moves while a host thread runs.
            let second = rank.dispatch_with(|input| input.in_row_slot(1).in_routing_slot(0))?;
            let early = rank.buffer.try_counts(&second)?;
            let after = rank.buffer.wait_counts(&second, Duration::from_secs(1))?.by_expert;
            rank.combine(&second)?;
            rank.buffer.close()?;
            Ok((early, before, after))
        });
        for (here, result) in (0..).zip(results) {
            let (early, before, after) = result.unwrap();
            assert_eq!(early, None, "those of the dispatch before");
            let want = [[[2, 0, 0, 0], [0, 0, 0, 2]], [[0, 0, 0, 2], [2, 0, 0, 0]]][here];
            assert_eq!([before, after], want.map(|counts| counts.to_vec()));
        }
    }
}

/// The region of the slot that the next dispatch takes.
#[test]
fn the_region_that_is_lent_early_is_the_next_dispatchs() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let mut rank = Rank::new(&comm, config(2))?;
            let outputs = comm.tensor(&[bf16::from_f32(3.0); 2 * 64])?;
            let first = rank.dispatch()?;
            let lent = rank.buffer.lend_expert_outputs()?;
            rank.buffer.stage_lent_expert_outputs(&outputs)?;
            let second = rank.dispatch()?;
            let regions = [&first, &second].map(|handle| rank.buffer.recv_view(handle).map(|view| view.expert_outputs));
            rank.combine(&second)?;
            let y = rank.y.to_vec()?;
            rank.buffer.combine(&first, CombineInput::new(&outputs, &mut rank.y))?;
            rank.buffer.close()?;
            let [first, second] = regions;
            Ok((lent, first?, second?, y))
        });
        for result in results {
            let (lent, first, second, y) = result.unwrap();
            assert_eq!(lent, second);
            assert!(first != second && y.iter().all(|y| y.to_f32() == 6.0));
        }
    }
}
