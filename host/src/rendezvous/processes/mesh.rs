//! Connects every two ranks, once each knows where all are: the higher one connects to the lower one.
//!
//! No rank waits for one that waits for it: rank 0 only accepts, and a rank accepts from the higher ones after it has connected to the
//! lower ones.
use std::time::{Duration, Instant};

use super::codec::shown;
use super::control::Control;
use super::credentials::{of_peer, process_of};
use super::hello::{Card, NotGreeted, Purpose, REFUSED, WELCOME, read_welcome, say_hello, welcome};
use super::member::Link;
use super::point::resolve;
use super::reception::{A_MOMENT, Reception};
use super::table::Table;
use super::wire::{NotReceived, Wire};

/// Connects with all peers; a link to each, in rank order.
///
/// # Errors
///
/// Why that cannot be.
pub(super) fn connect(
    card: &Card,
    table: &Table,
    reception: &mut Reception,
    control: &mut Control,
    deadline: Instant,
) -> Result<Vec<Option<Link>>, String> {
    let mut links: Vec<Option<Link>> = (0..card.size).map(|_| None).collect();
    for peer in 0..card.rank {
        links[peer as usize] = Some(link(reach(card, table, peer, control, deadline)?));
    }
    let mut missing: Vec<u32> = (card.rank + 1..card.size).collect();
    while !missing.is_empty() {
        // All have met: whoever does not belong here now is a stray.
        let attended = reception.attend(&control.fds(), deadline);
        let nothing = attended.arrived.is_empty() && attended.ready.is_empty();
        for (wire, hello) in attended.arrived {
            if hello.purpose != Purpose::Link(table.group) || !missing.contains(&hello.rank) {
                reception.send_away(&wire, "it is of another group".to_owned());
                continue;
            }
            if wire.send(&welcome(card, &hello, &[]), Instant::now() + A_MOMENT).is_ok() {
                missing.retain(|rank| *rank != hello.rank);
                links[hello.rank as usize] = Some(link(wire));
            }
        }
        control.look(&attended.ready)?;
        if nothing && Instant::now() >= deadline {
            let away = reception.sent_away();
            return Err(format!("rank {} waited for connections from ranks {missing:?}, in vain{away}", card.rank));
        }
    }
    Ok(links)
}

/// Connects to a lower rank.
fn reach(card: &Card, table: &Table, peer: u32, control: &mut Control, deadline: Instant) -> Result<Wire, String> {
    let (own, seat) = (&table.seats[card.rank as usize], &table.seats[peer as usize]);
    let mut pause = Duration::from_millis(5);
    loop {
        let (place, wire) = if own.is_beside(seat) {
            ("on this host".to_owned(), Wire::connect_unix(&seat.name).map_err(|error| error.to_string()))
        } else if let Some((host, port)) = &seat.tcp {
            let addresses = resolve(host, *port, deadline);
            let wire = addresses.and_then(|all| Wire::connect_tcp(&all, deadline).map_err(|error| error.to_string()));
            (format!("{host} port {port}"), wire)
        } else {
            let rule = "they are on different hosts or in different network namespaces: set MASTER_ADDR to an address of rank 0 that all reach";
            return Err(format!("rank {} does not reach rank {peer}: {rule}", card.rank));
        };
        let why = match wire {
            Ok(mut wire) => {
                let said = say_hello(&mut wire, card, peer, Purpose::Link(table.group), &[], deadline);
                let answer = said.map_err(|not| match not {
                    NotGreeted::Ended => None,
                    NotGreeted::Why(why) => Some(why),
                });
                let answer = answer.and_then(|said| match wire.receive(deadline) {
                    Ok((WELCOME, body)) if read_welcome(card, &said, &body).is_some() => Ok(()),
                    Ok((REFUSED, why)) => Err(Some(shown(&why))),
                    Ok(_) => Err(Some(format!("who listens at {place} is not rank {peer}"))),
                    Err(NotReceived::Ended) => Err(None),
                    Err(other) => Err(Some(format!("rank {peer} at {place}: {other}"))),
                });
                match answer {
                    Ok(()) => return Ok(wire),
                    Err(Some(why)) => return Err(why),
                    Err(None) => "its connection ended".to_owned(),
                }
            }
            Err(why) => why,
        };
        control.glance()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("rank {} does not reach rank {peer} {place}: {why}", card.rank));
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

fn link(wire: Wire) -> Link {
    let process = if wire.local { process_of(&wire.fd) } else { None };
    let peer = if wire.local { of_peer(&wire.fd).ok() } else { None };
    // Of a process that cannot be seen from here the number is 0.
    let pid = peer.and_then(|peer| u32::try_from(peer.pid).ok()).filter(|pid| *pid != 0);
    Link { connection: wire.fd, local: wire.local, process, pid }
}
