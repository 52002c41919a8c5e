//! Halves in a wrong order, tickets that are of nothing in flight, and ranks that do not call what others call: each is named, and nobody waits for ever.
use crate::support;

use std::time::Duration;

use epoxide::{
    CombineInput, Comm, Config, DispatchInput, DispatchTicket, Dispatched, Error, ExpertOutputs, Layout, Refused,
    Result, bf16, bytes_needed,
};
use support::Checked;
use support::errors::{run, schedules};
use support::one_token::{self, Rank};

fn config(slots: u32) -> Config {
    one_token::config().with_row_slots(slots).with_halves().with_layout(Layout::RankMajor { alignment: 1 })
}

impl Rank {
    fn send(&mut self, slot: u32) -> Result<DispatchTicket> {
        let input = DispatchInput::new(1, &self.x, &self.idx, &self.weights).in_row_slot(slot);
        self.buffer.dispatch_send(&input)
    }

    fn dispatch(&mut self, slot: u32) -> Result<Dispatched> {
        let ticket = self.send(slot)?;
        Ok(self.buffer.dispatch_receive(ticket)?)
    }

    fn combine(&mut self, handle: &Dispatched) -> Result<()> {
        let ticket = self.buffer.combine_send(handle, ExpertOutputs::InPlace)?;
        Ok(self.buffer.combine_receive(ticket, &mut self.y)?)
    }
}

/// What was said, where it is not `right`.
fn said<T, E>(what: &str, said: std::result::Result<T, E>, right: impl FnOnce(&Error) -> bool) -> Checked
where
    T: std::fmt::Debug,
    E: Into<Error>,
{
    match said.map_err(Into::into) {
        Err(error) if right(&error) => Ok(()),
        other => Err(format!("{what}: {other:?}")),
    }
}

/// Runs `f` on two ranks in each schedule.
fn each(f: impl Fn(&Comm) -> Result<Checked> + Sync) {
    for mode in schedules() {
        support::complaints(run(2, mode, |comm| f(&comm))).unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}

#[test]
fn a_slot_in_flight_takes_nothing_else() {
    each(|comm| {
        let mut rank = Rank::new(comm, config(2))?;
        let a = rank.send(0)?;
        let in_flight = |sent: &'static str, slot: u32| {
            move |error: &Error| {
                let text = error.to_string();
                let named =
                    text.contains(&format!("the {sent} of operation")) && text.contains(&format!("{sent}_receive"));
                matches!(error, Error::InFlight { sent: s, slot: at, slots: 2, .. } if *s == sent && *at == slot)
                    && named
            }
        };
        let mut checked = said("a second send", rank.send(0), in_flight("dispatch", 0));
        // In the other slot it may.
        let b = rank.send(1)?;
        assert_eq!((a.row_slot(), b.row_slot(), b.operation() - a.operation()), (0, 1, 1));
        let input = DispatchInput::new(1, &rank.x, &rank.idx, &rank.weights);
        checked = checked.and(said("a third", rank.buffer.dispatch_send(&input), in_flight("dispatch", 0)));
        checked = checked.and(said("a whole one", rank.buffer.dispatch(&input), in_flight("dispatch", 0)));
        let a = rank.buffer.dispatch_receive(a)?;
        let sent = rank.buffer.combine_send(&a, ExpertOutputs::InPlace)?;
        checked = checked.and(said("before its combine was received", rank.send(0), in_flight("combine", 0)));
        let summed = |error: &Error| error.to_string().contains("until combine_receive");
        let Rank { buffer, y, .. } = &mut rank;
        checked = checked
            .and(said("recv_view", buffer.recv_view(&a), summed))
            .and(said("combine", buffer.combine(&a, CombineInput::new(ExpertOutputs::InPlace, y)), summed))
            .and(said("combine_send", buffer.combine_send(&a, ExpertOutputs::InPlace), summed))
            .and(said("release", buffer.release(&a), summed));
        rank.buffer.combine_receive(sent, &mut rank.y)?;
        checked = checked.and(said("a third", rank.buffer.combine_send(&a, ExpertOutputs::InPlace), |error| {
            matches!(error, Error::WrongOrder { call: "combine_send", .. })
        }));
        let b = rank.buffer.dispatch_receive(b)?;
        rank.combine(&b)?;
        rank.buffer.close()?;
        Ok(checked)
    });
}

/// Rows that are kept are there while peers read the outputs, and behind.
#[test]
fn kept_rows_are_read_between_the_halves() {
    each(|comm| {
        let mut rank = Rank::new(comm, config(1))?;
        let input = DispatchInput::new(1, &rank.x, &rank.idx, &rank.weights).keeping_rows();
        let ticket = rank.buffer.dispatch_send(&input)?;
        let handle = rank.buffer.dispatch_receive(ticket)?;
        let sent = rank.buffer.combine_send(&handle, ExpertOutputs::InPlace)?;
        rank.buffer.recv_view(&handle)?;
        let released = rank.buffer.release(&handle);
        let checked = said("released", released, |error| matches!(error, Error::InFlight { call: "release", .. }));
        rank.buffer.combine_receive(sent, &mut rank.y)?;
        rank.buffer.recv_view(&handle)?;
        rank.buffer.release(&handle)?;
        rank.buffer.close()?;
        Ok(checked)
    });
}

#[test]
fn a_ticket_of_nothing_in_flight_is_refused() {
    each(|comm| {
        let mut rank = Rank::new(comm, config(1))?;
        let of_nothing = |error: &Error| {
            let text = error.to_string();
            text.contains("ticket = of the ") && text.contains("of what is in flight in this buffer")
        };
        // Of before a reset.
        let ticket = rank.send(0)?;
        rank.buffer.reset()?;
        let mut checked = said("of before", rank.buffer.dispatch_receive(ticket), of_nothing);
        let handle = rank.dispatch(0)?;
        let ticket = rank.buffer.combine_send(&handle, ExpertOutputs::InPlace)?;
        rank.buffer.reset()?;
        let received = rank.buffer.combine_receive(ticket, &mut rank.y);
        checked = checked.and(said("a combine of before", received, of_nothing));
        // Of a capture, which leaves the slot as it found it.
        let mut ticket = None;
        let captured = comm.capture(|_| {
            ticket = Some(rank.send(0)?);
            Ok(())
        });
        checked = checked.and(said("left open", captured, |error| {
            matches!(error, Error::CaptureLeftOpen { slot: 0, ended, .. } if ended.contains("between the halves"))
        }));
        let ticket = ticket.expect("it was sent");
        checked = checked.and(said("of a capture", rank.buffer.dispatch_receive(ticket), of_nothing));
        let handle = rank.dispatch(0)?;
        rank.combine(&handle)?;
        rank.buffer.synchronize()?;
        rank.buffer.close()?;
        Ok(checked)
    });
}

/// What was sent is in flight behind a receive half that was refused, and is received by the ticket that came back.
#[test]
fn a_refused_receive_half_gives_its_ticket_back() {
    /// The ticket of what was refused for the `right` reason.
    fn back<T: std::fmt::Debug, K>(
        refused: std::result::Result<T, Refused<K>>,
        right: impl FnOnce(&Error) -> bool,
    ) -> std::result::Result<K, String> {
        let (error, ticket) = refused.map_err(Refused::into_parts).err().ok_or("it was received")?;
        ticket.filter(|_| right(&error)).ok_or_else(|| format!("no ticket, or another error: {error:?}"))
    }
    each(|comm| {
        let (mut rank, mut other) = (Rank::new(comm, config(1))?, Rank::new(comm, config(1))?);
        let (mut few, mut wide) = (comm.empty::<bf16>(8)?, comm.empty::<f32>(64)?);
        let outputs = comm.tensor(&[bf16::ONE; 2 * 4 * 64])?;
        let mut exchange = || -> Result<Checked> {
            let of_here = |error: &Error| error.to_string().starts_with("ticket = of the ");
            let ticket = rank.send(0)?;
            let ticket = match back(other.buffer.dispatch_receive(ticket), of_here) {
                Ok(ticket) => ticket,
                Err(why) => return Ok(Err(format!("another buffer's dispatch: {why}"))),
            };
            let handle = rank.buffer.dispatch_receive(ticket)?;
            let ticket = rank.buffer.combine_send(&handle, &outputs)?;
            let said = |text: &'static str| move |error: &Error| error.to_string().contains(text);
            let few_elements = |error: &Error| matches!(error, Error::BufferTooSmall { .. });
            let ticket = back(rank.buffer.combine_receive(ticket, &mut wide), said("y = f32: "))
                .and_then(|ticket| back(rank.buffer.combine_receive(ticket, &mut few), few_elements))
                // SAFETY: it is refused.
                .and_then(|ticket| back(unsafe { rank.buffer.combine_receive_raw(ticket, 8) }, said("y = 0x8: ")))
                .and_then(|ticket| back(other.buffer.combine_receive(ticket, &mut rank.y), of_here));
            match ticket {
                Ok(ticket) => rank.buffer.combine_receive(ticket, &mut rank.y)?,
                Err(why) => return Ok(Err(format!("a combine: {why}"))),
            }
            let y = rank.y.to_vec()?;
            // A row of ones from each of the two.
            Ok(if y == [bf16::from_f32(2.0); 64] { Ok(()) } else { Err(format!("{y:?}")) })
        };
        let checked = exchange()?.and(exchange()?);
        rank.buffer.close()?;
        other.buffer.close()?;
        Ok(checked)
    });
}

#[test]
fn a_buffer_that_is_closed_with_something_in_flight_says_so() {
    each(|comm| {
        let closes = |error: &Error| matches!(error, Error::InFlight { call: "close", slot: 1, .. });
        let mut rank = Rank::new(comm, config(2))?;
        let handle = rank.dispatch(0)?;
        rank.combine(&handle)?;
        let _dropped = rank.send(1)?;
        let checked = said("a dispatch", rank.buffer.close(), closes);
        let mut rank = Rank::new(comm, config(2))?;
        let handle = rank.dispatch(1)?;
        let _dropped = rank.buffer.combine_send(&handle, ExpertOutputs::InPlace)?;
        Ok(checked.and(said("a combine", rank.buffer.close(), closes)))
    });
}

#[test]
fn what_has_no_halves_is_refused() {
    let said = bytes_needed(&Config::new(8, 2, 64, 4).with_halves(), 2, 2).map(|_| ()).unwrap_err().to_string();
    assert!(said.contains("halves = true") && said.contains("Layout::RankMajor"), "{said}");
    each(|comm| {
        let mut whole = config(1);
        whole.halves = false;
        let mut rank = Rank::new(comm, whole)?;
        let named =
            |error: &Error| error.to_string().contains("halves = false") && error.to_string().contains("with_halves");
        let mut checked = self::said("dispatch_send", rank.send(0), named);
        let handle = rank.buffer.dispatch(&DispatchInput::new(1, &rank.x, &rank.idx, &rank.weights))?;
        let sent = rank.buffer.combine_send(&handle, ExpertOutputs::InPlace);
        checked = checked.and(self::said("combine_send", sent, named));
        rank.buffer.close()?;
        let mut rank = Rank::new(comm, config(1).with_combine_options())?;
        let handle = rank.dispatch(0)?;
        let sent = rank.buffer.combine_send(&handle, ExpertOutputs::InPlace)?;
        let mut wide = comm.empty::<f32>(64)?;
        let summed = rank.buffer.combine_receive(sent, &mut wide);
        checked = checked.and(self::said("f32", summed, |error| error.to_string().starts_with("y = f32: ")));
        rank.buffer.reset()?;
        rank.buffer.close()?;
        Ok(checked)
    });
}

/// A rank that sends has done its part of the dispatch, and is missed in what comes then; one that does not send is missed at once.
#[test]
fn who_does_not_call_a_half_is_named() {
    for sends in [true, false] {
        each(|comm| {
            let mut rank = Rank::new(comm, config(1).with_timeout(Duration::from_millis(300)))?;
            if comm.rank() == 1 {
                let _never_received = if sends { Some(rank.send(0)?) } else { None };
                comm.barrier()?;
                rank.buffer.reset()?;
                return rank.buffer.close().map(Ok);
            }
            let handle = rank.dispatch(0)?;
            let came = rank.buffer.recv_counts(&handle);
            let late = |error: &Error| matches!(error, Error::PeerTimeout { peer: 1, .. });
            let checked = match sends {
                false => said("the dispatch", came, late),
                true if came.as_ref().is_ok_and(|counts| counts.rows == 2) => {
                    rank.combine(&handle)?;
                    said("the combine", rank.buffer.synchronize(), late)
                }
                true => Err(format!("its rows: {came:?}")),
            };
            comm.barrier()?;
            rank.buffer.reset()?;
            rank.buffer.close()?;
            Ok(checked)
        });
    }
}

/// A rank that gives up behind its send half: nobody waits for it until the deadline.
#[test]
fn a_rank_that_sends_and_gives_up_is_told() {
    each(|comm| {
        let mut rank = Rank::new(comm, config(1).with_timeout(Duration::from_secs(60)))?;
        let ticket = rank.send(0)?;
        if comm.rank() == 1 {
            comm.synchronize()?;
            comm.abort("no more memory");
            return Ok(Ok(()));
        }
        let handle = rank.buffer.dispatch_receive(ticket)?;
        let ended = rank.combine(&handle).and_then(|()| rank.buffer.synchronize());
        Ok(said("the combine", ended, |error| error.to_string().contains("no more memory")))
    });
}

/// Ranks that do other things in the same slot find that at once, and in other slots by the deadline, which names the slot.
#[test]
fn ranks_out_of_step_are_named() {
    each(|comm| {
        let mut rank = Rank::new(comm, config(1).with_timeout(Duration::from_secs(20)))?;
        let handle = rank.dispatch(0)?;
        rank.buffer.synchronize()?;
        comm.barrier()?;
        let ended = match comm.rank() {
            0 => rank.dispatch(0).map(|_| ()),
            _ => rank.combine(&handle),
        };
        let ended = ended.and_then(|()| rank.buffer.synchronize());
        let apart = |error: &Error| matches!(error, Error::OutOfStep { .. } | Error::PeerAborted { .. });
        let checked = said("another operation", ended, apart);
        rank.buffer.reset()?;
        rank.buffer.close()?;

        let mut rank = Rank::new(comm, config(2).with_timeout(Duration::from_millis(300)))?;
        let ended = rank.dispatch(comm.rank()).and_then(|_| rank.buffer.synchronize());
        let other = 1 - comm.rank();
        let elsewhere = |error: &Error| match error {
            Error::PeerTimeout { peer_row_slot, .. } | Error::PeerAborted { peer_row_slot, .. } => {
                *peer_row_slot == Some(other)
            }
            _ => false,
        };
        let checked = checked.and(said("another slot", ended, elsewhere));
        comm.barrier()?;
        rank.buffer.reset()?;
        rank.buffer.close()?;
        Ok(checked)
    });
}
