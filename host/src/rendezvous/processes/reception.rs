//! Receives whoever connects: ranks are let in, anybody else is sent away and holds nobody up.
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::codec::message;
use super::hello::{Card, Hello, REFUSED, greeting, judge};
use super::secret::Nonce;
use super::wire::{Listener, NotReceived, Wire, wait};

/// How long somebody who has connected may take to say hello.
const FOR_A_HELLO: Duration = Duration::from_secs(10);
/// How many may be about to say it. Beyond, who has taken longest goes.
const MOST_GUESTS: usize = 256;
/// How long is tried to tell somebody something that fits into an empty connection.
pub(super) const A_MOMENT: Duration = Duration::from_millis(200);
/// How many that were sent away are remembered, to be told of.
const REMEMBERED: usize = 4;

/// Somebody who has connected, and not yet said hello.
struct Guest {
    wire: Wire,
    nonce: Nonce,
    until: Instant,
}

/// Where ranks are received.
pub(super) struct Reception {
    card: Card,
    listeners: Vec<Listener>,
    guests: VecDeque<Guest>,
    sent_away: VecDeque<String>,
}

/// What has happened at the reception.
#[derive(Default)]
pub(super) struct Attended {
    /// Ranks that are what they say.
    pub arrived: Vec<(Wire, Hello)>,
    /// Why the group cannot be.
    pub wrong: Option<String>,
    /// Which of the other descriptors are ready.
    pub ready: Vec<usize>,
}

impl Reception {
    pub(super) fn new(card: Card, listeners: Vec<Listener>) -> Self {
        Self { card, listeners, guests: VecDeque::new(), sent_away: VecDeque::new() }
    }

    /// Waits until something happens here or with `others`, or until `deadline`.
    pub(super) fn attend(&mut self, others: &[BorrowedFd<'_>], deadline: Instant) -> Attended {
        let mut attended = Attended::default();
        let until = self.guests.iter().map(|guest| guest.until).min().map_or(deadline, |first| first.min(deadline));
        let guests = self.guests.iter().map(|guest| guest.wire.fd.as_fd());
        let all = others.iter().copied().chain(self.listeners.iter().map(AsFd::as_fd)).chain(guests);
        let all: Vec<_> = all.map(|fd| (fd, PollFlags::IN)).collect();
        let ready = wait(&all, until);
        attended.ready = ready.iter().copied().filter(|&i| i < others.len()).collect();

        let listening = self.listeners.len();
        for mut guest in std::mem::take(&mut self.guests) {
            match guest.wire.received() {
                Ok(Some((kind, body))) => match judge(&self.card, &guest.nonce, kind, &body) {
                    Ok(hello) => attended.arrived.push((guest.wire, hello)),
                    Err(refusal) => {
                        if refusal.counts {
                            attended.wrong.get_or_insert(refusal.why.clone());
                        }
                        self.send_away(&guest.wire, refusal.why);
                    }
                },
                Ok(None) if guest.until > Instant::now() => self.guests.push_back(guest),
                Ok(None) => {
                    let late = NotReceived::Late { something: guest.wire.is_ahead() };
                    self.send_away(&guest.wire, late.to_string());
                }
                Err(not) => self.send_away(&guest.wire, not.to_string()),
            }
        }
        for i in ready.into_iter().filter_map(|i| i.checked_sub(others.len())).filter(|&i| i < listening) {
            self.accept(i);
        }
        attended
    }

    /// Greets all who have connected.
    fn accept(&mut self, listener: usize) {
        // As many as there may be: then the others are looked after.
        for _ in 0..MOST_GUESTS {
            let wire = match self.listeners[listener].accept() {
                Ok(wire) => wire,
                Err(error) => match error.kind() {
                    std::io::ErrorKind::WouldBlock => return,
                    // Of one connection, and others may wait.
                    std::io::ErrorKind::Interrupted | std::io::ErrorKind::ConnectionAborted => continue,
                    std::io::ErrorKind::PermissionDenied => {
                        self.remember(error.to_string());
                        continue;
                    }
                    _ => {
                        // It has too many open, say. The connection waits, and is there again at once.
                        self.remember(error.to_string());
                        std::thread::sleep(Duration::from_millis(10));
                        return;
                    }
                },
            };
            let Ok((greeting, nonce)) = greeting(&self.card) else { continue };
            if wire.send(&greeting, Instant::now() + A_MOMENT).is_err() {
                continue;
            }
            if self.guests.len() == MOST_GUESTS
                && let Some(longest) = self.guests.pop_front()
            {
                self.send_away(&longest.wire, "too many connect at once".to_owned());
            }
            self.guests.push_back(Guest { wire, nonce, until: Instant::now() + FOR_A_HELLO });
        }
    }

    /// Tells somebody why it is sent away, as far as it listens.
    pub(super) fn send_away(&mut self, wire: &Wire, why: String) {
        refuse(wire, &why);
        self.remember(format!("{}: {why}", wire.with));
    }

    fn remember(&mut self, who: String) {
        if self.sent_away.back() == Some(&who) {
            return;
        }
        if self.sent_away.len() == REMEMBERED {
            self.sent_away.pop_front();
        }
        self.sent_away.push_back(who);
    }

    /// Who was sent away, to be put behind what did not come.
    pub(super) fn sent_away(&self) -> String {
        if self.sent_away.is_empty() {
            return String::new();
        }
        let all: Vec<&str> = self.sent_away.iter().map(String::as_str).collect();
        format!("; sent away: {}", all.join("; "))
    }
}

/// Says why to the other end, as far as it listens.
pub(super) fn refuse(wire: &Wire, why: &str) {
    let cut = why.char_indices().map(|(at, _)| at).take_while(|at| *at < 4000).last().map_or(0, |at| at);
    let why = if why.len() > 4000 { &why[..cut] } else { why };
    let _ = wire.send(&message(REFUSED, why.as_bytes()), Instant::now() + A_MOMENT);
}
