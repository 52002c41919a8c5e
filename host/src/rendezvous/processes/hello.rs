//! The hello of two ranks: who connects and who is connected to say what they run and of which job they are, and prove that they have
//! the secret, if there is one.
//!
//! ```text
//!   who is connected to                who connects
//!      greeting: version, chance  ─▶
//!                                  ◀─  hello: version, chance, rank, ranks in all, job, what for, proof of all this
//!      welcome, with its own proof,
//!      or refusal, in words       ─▶
//! ```
use std::time::Instant;

use super::codec::{Fields, Reader, message};
use super::secret::{Nonce, Secret, is_proven, prove, random};
use super::wire::{NotReceived, Wire};

pub(super) const GREETING: u8 = 1;
pub(super) const HELLO: u8 = 2;
pub(super) const WELCOME: u8 = 3;
pub(super) const REFUSED: u8 = 4;
/// What a rank that has been greeted waits for.
pub(super) const WAITING: u8 = 5;
/// A rank has its connections.
pub(super) const DONE: u8 = 6;
/// All ranks have.
pub(super) const GO: u8 = 7;

/// What the ranks of one group are told apart by from another's.
pub(super) type GroupId = [u8; 16];

/// What a rank says of itself.
#[derive(Clone, Debug)]
pub(super) struct Card {
    pub version: String,
    pub job: String,
    pub rank: u32,
    pub size: u32,
    pub secret: Option<Secret>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be told where all ranks are.
    Meet,
    /// To be the link of two ranks.
    Link(GroupId),
}

/// A rank that has said hello, and is what it says.
#[derive(Debug)]
pub(super) struct Hello {
    pub purpose: Purpose,
    pub rank: u32,
    /// What it brings, for the purpose.
    pub details: Vec<u8>,
    /// Both chances.
    nonces: [Nonce; 2],
}

/// Why somebody is not let in.
#[derive(Debug)]
pub(super) struct Refusal {
    /// In words, for both.
    pub why: String,
    /// It is a rank of this group, so that the group cannot be: no stray.
    pub counts: bool,
}

/// Why a rank was not let in.
#[derive(Debug)]
pub(super) enum NotGreeted {
    /// The connection ended before anything was said.
    Ended,
    /// In words.
    Why(String),
}

/// The greeting, and its chance.
///
/// # Errors
///
/// What the system says.
pub(super) fn greeting(card: &Card) -> std::io::Result<(Vec<u8>, Nonce)> {
    let nonce = random()?;
    let body = Fields::default().bytes(card.version.as_bytes()).bytes(&nonce).number(u32::from(card.secret.is_some()));
    Ok((message(GREETING, &body.end()), nonce))
}

/// A hello that was said, whose answer is not there yet.
#[derive(Debug)]
pub(super) struct Said {
    nonces: [Nonce; 2],
}

/// Says hello to rank `to`, as soon as it has greeted.
///
/// # Errors
///
/// Why there is nobody to say it to.
pub(super) fn say_hello(
    wire: &mut Wire,
    card: &Card,
    to: u32,
    purpose: Purpose,
    details: &[u8],
    deadline: Instant,
) -> Result<Said, NotGreeted> {
    let with = wire.with.clone();
    let stranger =
        |what: &str| NotGreeted::Why(format!("there is another program at {with}, and not rank {to}: {what}"));
    let (kind, body) = wire.receive(deadline).map_err(|not| match not {
        NotReceived::Ended => NotGreeted::Ended,
        other => stranger(&other.to_string()),
    })?;
    let mut fields = Reader(&body);
    let (GREETING, Some(version), Some(theirs)) = (kind, fields.text(), fields.array()) else {
        return Err(stranger("it does not greet as a rank does"));
    };
    let own = random().map_err(|error| NotGreeted::Why(error.to_string()))?;
    let (what_for, group) = match purpose {
        Purpose::Meet => (0, GroupId::default()),
        Purpose::Link(group) => (1, group),
    };
    let said = Fields::default()
        .bytes(card.version.as_bytes())
        .bytes(&own)
        .number(card.rank)
        .number(card.size)
        .bytes(card.job.as_bytes())
        .number(what_for)
        .bytes(&group)
        .bytes(details)
        .number(u32::from(card.secret.is_some()))
        .end();
    let proof = prove(card.secret.as_ref(), "connects", &[&theirs, &said]);
    let hello = message(HELLO, &Fields::default().bytes(&said).bytes(&proof).end());
    // Also of another version: so it is known there.
    let sent = wire.send(&hello, deadline);
    if version != card.version {
        let (ours, rank) = (&card.version, card.rank);
        return Err(NotGreeted::Why(other_version(to, &version, rank, ours)));
    }
    match sent {
        Ok(()) => Ok(Said { nonces: [theirs, own] }),
        Err(error) => Err(NotGreeted::Why(format!("rank {to} at {with}: {error}"))),
    }
}

fn other_version(one: u32, of_one: &str, other: u32, of_other: &str) -> String {
    format!("rank {one} runs Epoxide {of_one}, rank {other} runs {of_other}: install the same version for all ranks")
}

/// The body of a welcome, if it is from who has the secret.
pub(super) fn read_welcome(card: &Card, said: &Said, body: &[u8]) -> Option<Vec<u8>> {
    let mut fields = Reader(body);
    let (body, proof) = (fields.bytes()?, fields.array()?);
    is_proven(card.secret.as_ref(), "welcomes", &[&said.nonces[0], &said.nonces[1], body], &proof)
        .then(|| body.to_vec())
}

/// A welcome with a body.
pub(super) fn welcome(card: &Card, hello: &Hello, body: &[u8]) -> Vec<u8> {
    let proof = prove(card.secret.as_ref(), "welcomes", &[&hello.nonces[0], &hello.nonces[1], body]);
    message(WELCOME, &Fields::default().bytes(body).bytes(&proof).end())
}

/// Reads what came behind the greeting with the chance `nonce`.
///
/// # Errors
///
/// Why it is refused.
pub(super) fn judge(card: &Card, nonce: &Nonce, kind: u8, body: &[u8]) -> Result<Hello, Refusal> {
    let stray = |why: String| Refusal { why, counts: false };
    let garbled = || stray("it does not say hello as a rank does".to_owned());
    let (rank, own) = (card.rank, &card.secret);
    let mut fields = Reader(body);
    let (HELLO, Some(said), Some(proof)) = (kind, fields.bytes(), fields.array()) else {
        return Err(garbled());
    };
    let mut fields = Reader(said);
    let version = fields.text().ok_or_else(garbled)?;
    // Without a secret, who speaks as a rank is taken for one.
    let counts = own.is_none();
    let (Some(theirs), Some(from)) = (fields.array(), fields.number()) else { return Err(garbled()) };
    if version != card.version {
        return Err(Refusal { why: other_version(rank, &card.version, from, &version), counts });
    }
    let mut read = || {
        let (size, job, what_for) = (fields.number()?, fields.text()?, fields.number()?);
        Some((size, job, what_for, fields.array()?, fields.bytes()?.to_vec(), fields.number()? != 0))
    };
    let (size, job, what_for, group, details, has_secret) = read().ok_or_else(garbled)?;
    if has_secret != own.is_some() {
        let (with, without) = if has_secret { (from, rank) } else { (rank, from) };
        let why =
            format!("rank {with} has a secret and rank {without} has none: set EPOXIDE_SECRET alike for all ranks");
        return Err(stray(why));
    }
    if !is_proven(own.as_ref(), "connects", &[nonce, said], &proof) {
        let why = format!("rank {from} has another secret than rank {rank}: set EPOXIDE_SECRET alike for all ranks");
        return Err(stray(why));
    }
    if job != card.job {
        let ours = &card.job;
        return Err(stray(format!(
            "rank {from} is of job {job:?}, rank {rank} of job {ours:?}: set EPOXIDE_PORT so that each job has a port of its own"
        )));
    }
    if size != card.size {
        let ours = card.size;
        let why = format!(
            "rank {from} is one of {size} ranks, rank {rank} one of {ours}: set WORLD_SIZE alike for all ranks"
        );
        return Err(Refusal { why, counts: true });
    }
    if from >= size {
        let why = format!("a process says that it is rank {from} of {size}: ranks are numbered from 0");
        return Err(Refusal { why, counts: true });
    }
    let purpose = if what_for == 0 { Purpose::Meet } else { Purpose::Link(group) };
    Ok(Hello { purpose, rank: from, details, nonces: [*nonce, theirs] })
}
