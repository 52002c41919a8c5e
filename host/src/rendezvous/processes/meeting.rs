//! Ranks meet at rank 0, which tells all where all are.
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::codec::{message, shown};
use super::control::Control;
use super::hello::{Card, Hello, NotGreeted, Purpose, REFUSED, WAITING, WELCOME, read_welcome, say_hello, welcome};
use super::point::{MeetingPoint, resolve};
use super::reception::{A_MOMENT, Reception, refuse};
use super::secret::random;
use super::table::{Seat, Table};
use super::wire::{Listener, NotReceived, Wire};

/// How long a rank tries again to connect to where it is not let in, or where nobody greets.
const AGAIN: Duration = Duration::from_secs(3);
/// How long somebody may take to greet: rank 0 does at once, if it is not stopped.
const FOR_A_GREETING: Duration = Duration::from_secs(20);

/// Listens at the meeting point, as rank 0 does. `one_host` if it is known that all ranks are on this host.
///
/// # Errors
///
/// Why it cannot be listened there, and what to do.
pub(super) fn listen(point: &MeetingPoint, one_host: bool, deadline: Instant) -> Result<Vec<Listener>, String> {
    let in_use = |what: &str, advice: &str| format!("{what} is taken by another program or another job: {advice}");
    let cannot = |what: String, error: std::io::Error, advice: &str| match error.kind() {
        ErrorKind::AddrInUse => in_use(&what, advice),
        _ => format!("rank 0 cannot listen at {what}: {error}"),
    };
    match point {
        MeetingPoint::Local { name } => {
            let advice = "set EPOXIDE_JOB to a name of its own for each job";
            let listener =
                Listener::unix(&local_name(name)).map_err(|error| cannot(point.to_string(), error, advice))?;
            Ok(vec![listener])
        }
        MeetingPoint::Tcp { host, port } => {
            let advice = "set EPOXIDE_PORT to a free port, the same for all ranks";
            let cannot = |error| cannot(format!("port {port}"), error, advice);
            let addresses = resolve(host, *port, deadline)?;
            // A name that is this host's own may be a loopback address here and another elsewhere.
            let named = host.parse::<IpAddr>().is_err() && host != "localhost";
            if named && !one_host && addresses.iter().all(|address| address.ip().is_loopback()) {
                return Ok(vec![Listener::tcp_everywhere(*port).map_err(cannot)?]);
            }
            let mut listeners = Vec::new();
            for address in addresses {
                match Listener::tcp(address) {
                    Ok(listener) => listeners.push(listener),
                    Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(cannot(error)),
                    // An address that is not this host's: of a gateway to it, say. Or of a family that it lacks.
                    Err(_) => {}
                }
            }
            if listeners.is_empty() {
                listeners.push(Listener::tcp_everywhere(*port).map_err(cannot)?);
            }
            Ok(listeners)
        }
    }
}

/// The Unix socket's name of a meeting point.
fn local_name(name: &str) -> Vec<u8> {
    // Every user has names of its own. A name of a socket has 107 bytes.
    let name = format!("epoxide-{}-{name}", rustix::process::geteuid().as_raw());
    if name.len() <= 100 {
        return name.into_bytes();
    }
    let hash = hmac_sha256::Hash::hash(name.as_bytes());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("epoxide-{hash}").into_bytes()
}

/// Meets the others as rank 0, which listens at `reception`; where they are, and the way to tell them more.
///
/// # Errors
///
/// Why there is no group, which all who have come are told too.
pub(super) fn host(
    card: &Card,
    reception: &mut Reception,
    own: Seat,
    point: &str,
    patience: Duration,
) -> Result<(Table, Control), String> {
    let deadline = Instant::now() + patience;
    let mut come: Vec<Option<(Wire, Hello, Seat)>> = (1..card.size).map(|_| None).collect();
    let met = gather(reception, &mut come, deadline).map_err(|wrong| {
        wrong.unwrap_or_else(|| {
            let (missing, away) = (missing(&come), reception.sent_away());
            format!("rank 0 waited {} s at {point} for ranks {missing:?}{away}", patience.as_secs_f64())
        })
    });
    let met = met.and_then(|()| random().map_err(|error| error.to_string()));
    let group = match met {
        Ok(group) => group,
        Err(why) => {
            come.iter().flatten().for_each(|(wire, _, _)| refuse(wire, &why));
            return Err(why);
        }
    };
    let (mut seats, mut wires) = (vec![own], Vec::new());
    for (wire, hello, seat) in come.into_iter().flatten() {
        seats.push(seat);
        wires.push((wire, hello));
    }
    let table = Table { group, seats };
    for (wire, hello) in &wires {
        // If it cannot be told, that is seen by what follows.
        let _ = wire.send(&welcome(card, hello, &table.write()), Instant::now() + A_MOMENT);
    }
    Ok((table, Control::Host(wires.into_iter().map(|(wire, _)| (wire, false)).collect())))
}

/// Waits until all ranks have come. Without a reason, it was too late.
fn gather(
    reception: &mut Reception,
    come: &mut [Option<(Wire, Hello, Seat)>],
    deadline: Instant,
) -> Result<(), Option<String>> {
    while come.iter().any(Option::is_none) {
        if Instant::now() >= deadline {
            return Err(None);
        }
        let there: Vec<usize> = (0..come.len()).filter(|&i| come[i].is_some()).collect();
        let fds: Vec<_> = come.iter().flatten().map(|(wire, _, _)| wire.fd.as_fd()).collect();
        let attended = reception.attend(&fds, deadline);
        if attended.wrong.is_some() {
            return Err(attended.wrong);
        }
        for (wire, hello) in attended.arrived {
            if hello.purpose != Purpose::Meet {
                reception.send_away(&wire, "it is of a group that is gone".to_owned());
                continue;
            }
            let twice =
                || format!("two processes say that they are rank {}: give each process a RANK of its own", hello.rank);
            let Some(place) = (hello.rank as usize).checked_sub(1).map(|i| &mut come[i]) else {
                refuse(&wire, &twice());
                return Err(Some(twice()));
            };
            let Some(seat) = Seat::read(&hello.details) else {
                reception.send_away(&wire, "it does not say where it is".to_owned());
                continue;
            };
            if place.is_some() {
                refuse(&wire, &twice());
                return Err(Some(twice()));
            }
            *place = Some((wire, hello, seat));
            let waiting = message(WAITING, format!("{:?}", missing(come)).as_bytes());
            for (wire, _, _) in come.iter().flatten() {
                let _ = wire.send(&waiting, Instant::now() + A_MOMENT);
            }
        }
        // They wait, and say nothing.
        for i in attended.ready {
            let (rank, (wire, _, _)) = (there[i] + 1, come[there[i]].as_mut().expect("who is there stays"));
            match wire.received() {
                Ok(None) => {}
                Ok(Some((REFUSED, why))) => return Err(Some(shown(&why))),
                _ => return Err(Some(format!("rank {rank} ended during start-up"))),
            }
        }
    }
    Ok(())
}

fn missing<T>(come: &[Option<T>]) -> Vec<usize> {
    (1..).zip(come).filter(|(_, there)| there.is_none()).map(|(rank, _)| rank).collect()
}

/// Meets the others as a rank that is not 0; where all are, and the way to rank 0. `seat` says where this rank listens, given its address
/// on the way to rank 0.
///
/// # Errors
///
/// Why there is no group.
pub(super) fn join(
    card: &Card,
    point: &MeetingPoint,
    seat: &mut dyn FnMut(Option<SocketAddr>) -> Seat,
    patience: Duration,
) -> Result<(Table, Control), String> {
    let rank = card.rank;
    let deadline = Instant::now() + patience;
    let mut seat_there = None;
    let (mut wire, said) =
        reach(card, point, &mut |address| seat_there.get_or_insert_with(|| seat(address)).write(), deadline)?;
    let mut waits_for = None;
    let late = |waits_for: Option<String>| {
        let for_whom = waits_for.map_or_else(String::new, |ranks| format!(" for ranks {ranks}"));
        format!("rank {rank} waited {} s at {point}{for_whom}", patience.as_secs_f64())
    };
    // Rank 0 may have come later, and gives up later, but then it says who is missing.
    loop {
        match wire.receive(deadline) {
            Ok((WAITING, ranks)) => waits_for = Some(shown(&ranks)),
            Ok((WELCOME, body)) => {
                let table = read_welcome(card, &said, &body).and_then(|body| Table::read(&body, card.size));
                let table = table.ok_or_else(|| {
                    format!("who listens at {point} does not have the secret of rank {rank}: set EPOXIDE_SECRET alike for all ranks")
                })?;
                return Ok((table, Control::Guest(wire)));
            }
            Ok((REFUSED, why)) => return Err(shown(&why)),
            Ok(_) => return Err(format!("who listens at {point} does not answer as rank 0 does")),
            Err(NotReceived::Ended) => return Err("rank 0 ended during start-up".to_owned()),
            Err(NotReceived::Late { .. }) => {
                let why = late(waits_for);
                refuse(&wire, &why);
                return Err(why);
            }
            Err(NotReceived::Garbled(what)) => {
                return Err(format!("there is another program at {point}, and not rank 0: {what}"));
            }
        }
    }
}

/// Connects to rank 0 and says hello, as soon as it is there.
fn reach(
    card: &Card,
    point: &MeetingPoint,
    details: &mut dyn FnMut(Option<SocketAddr>) -> Vec<u8>,
    deadline: Instant,
) -> Result<(Wire, super::hello::Said), String> {
    let rank = card.rank;
    let (mut pause, mut not_greeted, mut last) = (Duration::from_millis(5), None, None);
    loop {
        let wire = match point {
            MeetingPoint::Local { name } => Wire::connect_unix(&local_name(name)),
            MeetingPoint::Tcp { host, port } => resolve(host, *port, deadline)
                .map_err(std::io::Error::other)
                .and_then(|addresses| Wire::connect_tcp(&addresses, deadline)),
        };
        let why = match wire {
            Ok(mut wire) => {
                let details = details(wire.own_address());
                let until = deadline.min(Instant::now() + FOR_A_GREETING);
                match say_hello(&mut wire, card, 0, Purpose::Meet, &details, until) {
                    Ok(said) => return Ok((wire, said)),
                    Err(NotGreeted::Why(why)) => return Err(why),
                    // Rank 0 of a job before this one may be about to end.
                    Err(NotGreeted::Ended) => {
                        let since = *not_greeted.get_or_insert_with(Instant::now);
                        if since.elapsed() > AGAIN {
                            return Err(format!(
                                "there is another program at {point}, and not rank 0: it ends connections; set EPOXIDE_PORT to a free port, the same for all ranks"
                            ));
                        }
                        "connections are ended there".to_owned()
                    }
                }
            }
            // Nobody of this user's.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(format!("rank {rank} cannot connect to {point}: {error}"));
            }
            // The last attempt may have had no time: the one before says why.
            Err(error) if error.kind() == ErrorKind::TimedOut => last.unwrap_or_else(|| error.to_string()),
            Err(error) => error.to_string(),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!(
                "rank {rank} waited for rank 0 at {point}, in vain: {why}; is rank 0 started, and reached from here?"
            ));
        }
        last = Some(why);
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}
