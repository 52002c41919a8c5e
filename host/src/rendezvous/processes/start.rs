//! From where the ranks meet to one rank of a group that is connected.
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::codec::{Fields, Reader};
use super::control::Control;
use super::hello::Card;
use super::meeting;
use super::member::{Link, Processes};
use super::mesh;
use super::point::MeetingPoint;
use super::reception::Reception;
use super::secret::{Secret, random};
use super::table::{Seat, Table, this_host};
use super::wire::Listener;
use crate::error::{Error, Result};

/// What a rank knows before it meets the others.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub rank: u32,
    pub size: u32,
    pub job: String,
    pub secret: Option<Secret>,
    /// For each step, and all of them.
    pub patience: Duration,
    /// Whether all ranks are known to be on this host.
    pub one_host: bool,
}

/// An all-gather of the caller's.
pub(crate) type Gather<'a> =
    dyn FnMut(&[u8]) -> std::result::Result<Vec<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> + 'a;

impl Start {
    pub(super) fn card(&self) -> Card {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Card { version, job: self.job.clone(), rank: self.rank, size: self.size, secret: self.secret.clone() }
    }

    /// Meets the others at `point`.
    ///
    /// # Errors
    ///
    /// [`Error::Bootstrap`] with what is wrong and what to do.
    pub(crate) fn at(&self, point: &MeetingPoint) -> Result<Processes> {
        self.on(&this_host(), &self.card(), point)
    }

    /// [`Self::at`] as a rank on that host which says this of itself.
    pub(super) fn on(&self, host: &str, card: &Card, point: &MeetingPoint) -> Result<Processes> {
        let links = self.links(host, card, point).map_err(|message| Error::Bootstrap { message })?;
        Processes::new(self.rank, links, self.patience)
    }

    fn links(&self, host: &str, card: &Card, point: &MeetingPoint) -> std::result::Result<Vec<Option<Link>>, String> {
        let deadline = Instant::now() + self.patience;
        let (mut listeners, own) = listen_locally(host, point)?;
        let (mut reception, table, mut control) = if self.rank == 0 {
            listeners.extend(meeting::listen(point, self.one_host, deadline)?);
            // Its port is where the others have found it.
            let mut reception = Reception::new(card.clone(), listeners);
            let (table, control) = meeting::host(card, &mut reception, own, &point.to_string(), self.patience)?;
            (reception, table, control)
        } else {
            let mut seat = |address: Option<SocketAddr>| {
                // Peers of other hosts come by the network that leads to rank 0.
                let listener = address.and_then(|address| Listener::tcp(SocketAddr::new(address.ip(), 0)).ok());
                let tcp = address.zip(listener.as_ref().and_then(Listener::port));
                listeners.extend(listener);
                Seat { tcp: tcp.map(|(address, port)| (address.ip().to_string(), port)), ..own.clone() }
            };
            let (mut table, control) = meeting::join(card, point, &mut seat, self.patience)?;
            if let (Control::Guest(wire), MeetingPoint::Tcp { .. }) = (&control, point) {
                table.seats[0].tcp = wire.their_address().map(|address| (address.ip().to_string(), address.port()));
            }
            (Reception::new(card.clone(), listeners), table, control)
        };
        let deadline = Instant::now() + self.patience;
        let connected = mesh::connect(card, &table, &mut reception, &mut control, deadline);
        let finished = connected.and_then(|links| control.finish(deadline).map(|()| links));
        if let Err(why) = &finished {
            control.fail(why);
        }
        finished
    }

    /// Meets the others through an all-gather of the caller's, which is called once.
    ///
    /// # Errors
    ///
    /// [`Error::Bootstrap`] with what is wrong and what to do.
    pub(crate) fn by(&self, gather: &mut Gather<'_>) -> Result<Processes> {
        let links = self.links_by(gather).map_err(|message| Error::Bootstrap { message })?;
        let processes = Processes::new(self.rank, links, self.patience)?;
        // Without a rank 0 that says so, all have their connections when all are here.
        processes.barrier()?;
        Ok(processes)
    }

    fn links_by(&self, gather: &mut Gather<'_>) -> std::result::Result<Vec<Option<Link>>, String> {
        let failed = |error: std::io::Error| format!("rank {} cannot listen: {error}", self.rank);
        let (mut listeners, mut own) = listen_locally(&this_host(), &MeetingPoint::local(""))?;
        if let Ok(listener) = Listener::tcp_everywhere(0) {
            let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
            own.tcp = listener.port().map(|port| (name, port));
            listeners.push(listener);
        }
        let mut card = self.card();
        // Of rank 0 the group's, with a secret that only who gathers knows.
        let (group, secret) = (random::<16>().map_err(failed)?, random::<32>().map_err(failed)?);
        let fields = Fields::default().bytes(card.version.as_bytes()).number(self.rank).number(self.size);
        let own = fields.bytes(&own.write()).bytes(&group).bytes(&secret).end();
        let all =
            gather(&own).map_err(|error| format!("the caller's all-gather failed on rank {}: {error}", self.rank))?;
        if all.len() != self.size as usize {
            let (ranks, size) = (all.len(), self.size);
            return Err(format!("the caller's all-gather returned {ranks} payloads for {size} ranks"));
        }
        let (mut seats, mut of_rank_0) = (Vec::new(), None);
        for (rank, theirs) in (0..).zip(&all) {
            let mut fields = Reader(theirs);
            let version = fields.text().unwrap_or_default();
            let (Some(says), Some(size)) = (fields.number(), fields.number()) else {
                return Err(format!("the caller's all-gather returned what is not rank {rank}'s payload"));
            };
            if version != card.version {
                let ours = &card.version;
                return Err(format!(
                    "rank {rank} runs Epoxide {version}, rank {} runs {ours}: install the same version for all ranks",
                    self.rank
                ));
            }
            if (says, size) != (rank, self.size) {
                return Err(format!(
                    "the caller's all-gather returned at place {rank} of {} the payload of rank {says} of {size}: every rank gives its own number, and all the same size",
                    self.size
                ));
            }
            let seat = fields.bytes().and_then(Seat::read);
            let (Some(seat), Some(group), Some(secret)) = (seat, fields.array(), fields.bytes()) else {
                return Err(format!("the caller's all-gather returned what is not rank {rank}'s payload"));
            };
            seats.push(seat);
            of_rank_0.get_or_insert((group, Secret::new(secret)));
        }
        let (group, secret) = of_rank_0.ok_or("a group has at least one rank")?;
        card.secret = Some(secret);
        let table = Table { group, seats };
        let mut reception = Reception::new(card.clone(), listeners);
        mesh::connect(&card, &table, &mut reception, &mut Control::None, Instant::now() + self.patience)
    }
}

/// Listens for peers of this host, at a name that nobody guesses.
fn listen_locally(host: &str, point: &MeetingPoint) -> std::result::Result<(Vec<Listener>, Seat), String> {
    let failed = |error: std::io::Error| format!("cannot listen for ranks of this host: {error}");
    let name: String = random::<16>().map_err(failed)?.iter().map(|byte| format!("{byte:02x}")).collect();
    let name = format!("epoxide-{name}").into_bytes();
    let listener = Listener::unix(&name).map_err(failed)?;
    let mut host = host.to_owned();
    if host.is_empty() && matches!(point, MeetingPoint::Local { .. }) {
        // All who meet at a name are.
        host = "the one of all".to_owned();
    }
    Ok((vec![listener], Seat { host, name, tcp: None }))
}
