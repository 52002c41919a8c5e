//! One rank among ranks that are processes.
//!
//! This is the seam that ways to peers' memory build on: bytes are gathered, file descriptors of memory are handed over, and who is gone
//! is known. It is made with a connection to every peer; how these come to be is the affair of `meeting` and `mesh`.
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::frame::{Kind, MAX_FDS, MAX_PAYLOAD};
pub(crate) use super::peers::Gathered;
use super::peers::{ERA, Missing, Peers, Welcome};
use super::send::{Line, Message, send};
use super::watch::{Watch, Watched};
use crate::error::{Error, Result};
use crate::gone::Gone;

/// How long a rank that gives up or leaves tries to say so to a peer that does not read: in all, for all of them.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long who masks a rank that it knows nothing of waits for word that it is gone.
const FOR_WORD: Duration = Duration::from_millis(300);

/// How long who masks a rank that is gone waits for the end of its process.
const FOR_THE_END: Duration = Duration::from_secs(10);

/// A connection to a peer, on which nothing has been sent but the hello.
#[derive(Debug)]
pub(crate) struct Link {
    /// A stream socket.
    pub connection: OwnedFd,
    /// Whether it is a Unix socket: then the peer is on this host, and file descriptors can be handed to it.
    pub local: bool,
    /// The peer's process, if it is on this host and the system has descriptors for processes.
    pub process: Option<OwnedFd>,
    /// Its number, if it can be seen from here.
    pub pid: Option<u32>,
}

/// One rank among ranks that are processes, connected with every other one. [`Drop`] leaves, or gives up where the thread panics,
/// and waits for no peer.
pub(crate) struct Processes {
    rank: u32,
    patience: Duration,
    /// None for the rank itself.
    links: Vec<Option<Way>>,
    peers: Arc<Peers>,
    /// Held by the thread that gathers.
    rounds: Mutex<u64>,
    over: Mutex<Over>,
    /// Ranks that it goes on without, a bit for each.
    masked: AtomicU64,
    watch: Watch,
    /// The process that made it: one that was forked from it has no part in it.
    made_by: u32,
}

/// What a rank knows of ranks that it masks, a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Their processes have ended.
    pub over: u64,
    /// They may live: nothing is known of their end, or they are of another host, where it is.
    pub may_live: u64,
}

/// What has come to an end.
#[derive(Default)]
struct Over {
    /// Why no all-gather can succeed any more: a rank is gone, or this one has given up or left. Nothing is sent for one then.
    why: Option<Error>,
    /// Whether the peers were told that this rank leaves or gives up.
    told: bool,
}

impl Over {
    /// Takes down why; true if the peers have yet to be told.
    fn end(&mut self, why: Error) -> bool {
        self.why.get_or_insert(why);
        !std::mem::replace(&mut self.told, true)
    }
}

/// The sending side of a connection.
struct Way {
    connection: Arc<OwnedFd>,
    local: bool,
    /// The peer's process, if it can be seen from here.
    pid: Option<u32>,
    /// Whether the watch sees the end of that process.
    is_seen: bool,
    /// Held while a frame is sent, so that frames are whole; what is left of one that was begun.
    rest: Mutex<Vec<u8>>,
}

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Processes(rank {} of {})", self.rank, self.links.len())
    }
}

impl Processes {
    /// The rank `rank` among as many as `links` has entries, with a connection to each but itself. A step that takes longer than
    /// `patience` fails.
    ///
    /// # Errors
    ///
    /// [`Error::Bootstrap`] when its thread cannot be started.
    pub(crate) fn new(rank: u32, links: Vec<Option<Link>>, patience: Duration) -> Result<Self> {
        let peers = Arc::new(Peers::new(links.len() as u32));
        let (mut ways, mut watched) = (Vec::new(), Vec::new());
        for (peer, link) in (0..).zip(links) {
            ways.push(link.map(|Link { connection, local, process, pid }| {
                let (connection, is_seen) = (Arc::new(connection), process.is_some());
                watched.push(Watched { rank: peer, connection: Arc::clone(&connection), process });
                Way { connection, local, pid, is_seen, rest: Mutex::default() }
            }));
        }
        let watch = Watch::start(Arc::clone(&peers), watched).map_err(|error| Error::Bootstrap {
            message: format!("rank {rank} cannot start the thread that watches its peers: {error}"),
        })?;
        let (rounds, over, made_by) = (Mutex::default(), Mutex::default(), std::process::id());
        Ok(Self { rank, patience, links: ways, peers, rounds, over, masked: AtomicU64::new(0), watch, made_by })
    }

    /// This rank.
    pub(crate) fn rank(&self) -> u32 {
        self.rank
    }

    /// Ranks of the group.
    pub(crate) fn size(&self) -> u32 {
        self.links.len() as u32
    }

    /// How long a collective call waits for the others.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Whether file descriptors can be handed to `rank`: it is on this host and in this network namespace. The rank itself is.
    pub(crate) fn is_local(&self, rank: u32) -> bool {
        self.links.get(rank as usize).is_some_and(|link| link.as_ref().is_none_or(|link| link.local))
    }

    /// Checks that each rank is a process of its own, or all are threads of one: of a mixture nobody could say whose death is whose.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] with two ranks of one process, where others are of another.
    pub(crate) fn check_apart(&self) -> Result<()> {
        let of = |way: &Option<Way>| way.as_ref().map_or(Some(self.made_by), |way| way.pid);
        let pids: Vec<Option<u32>> = self.links.iter().map(of).collect();
        if pids.iter().all(|pid| *pid == Some(self.made_by)) {
            return Ok(());
        }
        let first = |rank: usize| pids[rank].and_then(|pid| pids[..rank].iter().position(|other| *other == Some(pid)));
        match (0..pids.len()).find_map(|rank| Some((first(rank)?, rank))) {
            None => Ok(()),
            Some((one, other)) => {
                let rule = "they are threads of one process, and other ranks are not: make each rank a process of its own, or all threads of one (LocalGroup)";
                Err(Error::argument("ranks", format!("{one} and {other}"), rule))
            }
        }
    }

    /// Gives `payload` to every rank and returns everyone's, in rank order. Collective: all ranks call it, in the same order.
    ///
    /// # Errors
    ///
    /// [`Error::PeerGone`] when a rank is gone whose payload has not come; [`Error::Bootstrap`] with the ranks that did not come in time;
    /// [`Error::InvalidArgument`] for more than 16 MiB. Once a rank is gone or has not come in time, every later call fails, here and on
    /// the others: who was late would be in another round.
    pub(crate) fn all_gather(&self, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(self.all_gather_fds(payload, &[])?.into_iter().map(|gathered| gathered.payload).collect())
    }

    /// Waits until every rank is here. Collective.
    ///
    /// # Errors
    ///
    /// As [`Self::all_gather`].
    pub(crate) fn barrier(&self) -> Result<()> {
        self.all_gather(&[]).map(drop)
    }

    /// [`Self::all_gather`] of bytes and of file descriptors, up to 16: every rank gets descriptors of its own for what the others gave,
    /// and its own duplicated. The caller keeps those that it gave. They may be of memory (a memfd, an exported allocation of a
    /// GPU), which then lives until nobody has it open or mapped. Received ones are closed when another program is executed.
    ///
    /// A rank may give none, and then also to ranks of another host.
    ///
    /// # Errors
    ///
    /// As [`Self::all_gather`]; [`Error::InvalidArgument`] for descriptors where a rank is not [local](Self::is_local), or for too many. A
    /// rank with too many open to take more has the giver as gone.
    pub(crate) fn all_gather_fds(&self, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Vec<Gathered>> {
        self.all_gather_within(payload, fds, self.patience)
    }

    /// [`Self::all_gather_fds`] that waits for the others no longer than this.
    ///
    /// # Errors
    ///
    /// As [`Self::all_gather_fds`].
    pub(crate) fn all_gather_within(
        &self,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<Vec<Gathered>> {
        if payload.len() > MAX_PAYLOAD {
            return Err(Error::argument(
                "payload",
                payload.len(),
                format!("at most {MAX_PAYLOAD} bytes of a rank are gathered"),
            ));
        }
        if fds.len() > MAX_FDS {
            return Err(Error::argument(
                "fds",
                fds.len(),
                format!("at most {MAX_FDS} file descriptors of a rank are gathered"),
            ));
        }
        if let (false, Some(far)) = (fds.is_empty(), (0..self.size()).find(|rank| !self.is_local(*rank))) {
            let rule = format!(
                "rank {far} is on another host, or in another network namespace, which file descriptors do not reach"
            );
            return Err(Error::argument("fds", fds.len(), rule));
        }
        let own = fds.iter().map(|fd| fd.try_clone_to_owned()).collect::<io::Result<Vec<_>>>();
        let own = own.map_err(|error| Error::Bootstrap { message: format!("rank {}: {error}", self.rank) })?;
        let own = Gathered { payload: payload.to_vec(), fds: own };

        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = self.over().why.clone() {
            return Err(why);
        }
        *rounds += 1;
        let deadline = Instant::now() + patience;
        let message = Message { kind: Kind::Gather, round: *rounds, payload, fds };
        let reached = self.reach_all(&message, deadline);
        // Who could not be reached is gone, or has not read in time: the wait for its payload says so, unless it had sent that before.
        let met = self.peers.gather(self.rank, *rounds, deadline);
        let mut all = met.and_then(|all| reached.map(|()| all)).map_err(|missing| self.not_met(missing, patience))?;
        all[self.rank as usize] = Some(own);
        let of_masked = || Gathered { payload: payload.to_vec(), fds: Vec::new() };
        Ok(all.into_iter().map(|gathered| gathered.unwrap_or_else(of_masked)).collect())
    }

    /// Goes on without these ranks too. Every other living rank does so, as often and with the same ranks. Of those that are gone it waits until their
    /// processes have ended, and with them whatever they had running on a device, if it sees these; those that may live are told.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for the rank itself or one that is not there; why this rank has given up or left, if it has.
    pub(crate) fn mask(&self, ranks: &[u32]) -> Result<Known> {
        let (at_once, deadline) = (Instant::now() + FOR_WORD, Instant::now() + FOR_THE_END);
        let (mut masked, mut known) = (self.masked(), Known::default());
        for &rank in ranks {
            if rank >= self.size() || rank == self.rank {
                return Err(Error::argument("ranks", rank, "another rank of the group is masked"));
            }
            masked |= 1 << rank;
            let is_seen = self.links[rank as usize].as_ref().is_some_and(|way| way.is_seen);
            let ended = self.peers.ends(rank, at_once, if is_seen { deadline } else { at_once });
            *(if ended { &mut known.over } else { &mut known.may_live }) |= 1 << rank;
        }
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut over = self.over();
        match &over.why {
            Some(Error::PeerGone { rank, .. }) if masked >> rank & 1 == 1 && !over.told => over.why = None,
            Some(why) => return Err(why.clone()),
            None => {}
        }
        drop(over);
        self.peers.mask(masked);
        self.masked.store(masked, Ordering::Release);
        *rounds = ((*rounds >> ERA) + 1) << ERA;
        let told = Message { kind: Kind::Masked, round: 0, payload: &[], fds: &[] };
        self.tell(known.may_live, &told, Instant::now() + LAST_WORDS);
        Ok(known)
    }

    /// Goes on with these ranks again, which live. All others that go on call it too, and these ranks themselves.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for one that is not masked, or that is gone; as [`Self::all_gather`], for a rank that comes back, if the others do not let
    /// it.
    pub(crate) fn unmask(&self, ranks: &[u32]) -> Result<()> {
        let refused = |rank: u32, rule: &str| Err(Error::argument("ranks", rank, rule));
        if let Some(rank) = ranks.iter().find(|rank| **rank >= self.size()) {
            return refused(*rank, "a rank of the group");
        }
        let back = ranks.iter().fold(0, |all: u64, rank| all | 1 << rank);
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        if back >> self.rank & 1 == 1 {
            let welcome = self.peers.welcomed(self.rank, back, Instant::now() + self.patience);
            let Welcome { round, masked } = welcome.map_err(|missing| self.not_met(missing, self.patience))?;
            let mut over = self.over();
            match &over.why {
                Some(why) if over.told => return Err(why.clone()),
                // That the others went on without it.
                _ => over.why = None,
            }
            drop(over);
            self.peers.come_back(masked);
            self.masked.store(masked, Ordering::Release);
            *rounds = round;
            return Ok(());
        }
        let masked = self.masked();
        for &rank in ranks {
            if masked >> rank & 1 == 0 {
                return refused(rank, "it is not masked");
            }
            if self.peers.is_lost(rank) {
                let rule =
                    "it is gone: a rank that is started anew joins with all others in a group of its own (Place::meet)";
                return refused(rank, rule);
            }
        }
        if let Some(why) = self.over().why.clone() {
            return Err(why);
        }
        *rounds = ((*rounds >> ERA) + 1) << ERA;
        let masked = masked & !back;
        // What they send counts from here on, and they send nothing before they have all welcomes.
        self.peers.mask(masked);
        self.masked.store(masked, Ordering::Release);
        let payload = masked.to_le_bytes();
        let welcome = Message { kind: Kind::Welcome, round: *rounds, payload: &payload, fds: &[] };
        self.tell(back, &welcome, Instant::now() + self.patience);
        Ok(())
    }

    /// The ranks that it goes on without, a bit for each.
    pub(crate) fn masked(&self) -> u64 {
        self.masked.load(Ordering::Acquire)
    }

    /// Who is gone, in the order in which it was seen.
    pub(crate) fn gone(&self) -> Vec<(u32, Gone)> {
        self.peers.gone()
    }

    /// An error for the first who is gone and had not left, if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::PeerGone`].
    pub(crate) fn check(&self) -> Result<()> {
        let masked = self.masked();
        match self.gone().into_iter().find(|(rank, how)| *how != Gone::Left && masked >> rank & 1 == 0) {
            Some((rank, how)) => Err(Error::PeerGone { rank, how, during: None }),
            None => Ok(()),
        }
    }

    /// Whether the process of `rank`, which is on this host, has ended: then nothing of its kernels is written any more. Without
    /// descriptors for processes, and of another host, it is never known.
    pub(crate) fn is_over(&self, rank: u32) -> bool {
        self.peers.over(rank)
    }

    /// Has `told` called with every rank that is gone, now and as soon as it goes, on the watch's thread: a plain store and no more.
    pub(crate) fn when_gone(&self, told: impl Fn(u32, &Gone) + Send + 'static) {
        self.peers.tell(Box::new(told));
    }

    /// Gives up: every peer is told why, at once. From any thread, and not collective; nobody is waited for. All-gathers of this rank fail
    /// from now on.
    pub(crate) fn abort(&self, reason: &str) {
        let error = Error::Bootstrap { message: format!("rank {} has given up: {reason}", self.rank) };
        self.give_up(error, reason);
    }

    /// [Gives up](Self::abort) with an error that this rank alone has found, and returns it.
    pub(crate) fn gives_up_with(&self, error: Error) -> Error {
        self.abort(&error.to_string());
        error
    }

    /// Says that this rank will not come to any rendezvous again, so that nobody waits for it.
    pub(crate) fn leave(&self) {
        let error = Error::Bootstrap { message: format!("rank {} has left the group", self.rank) };
        let tells = self.over().end(error);
        self.peers.end();
        if tells {
            self.tell_all(Kind::Leave, &[]);
        }
    }

    /// Sends a message to all peers, to all at once, so that none waits behind one that does not read.
    fn reach_all(&self, message: &Message<'_>, deadline: Instant) -> Result<(), Missing> {
        let masked = self.masked();
        let all = (0..).zip(&self.links).filter(|(rank, _)| masked >> rank & 1 == 0);
        let ways: Vec<(u32, &Way)> = all.filter_map(|(rank, way)| Some((rank, way.as_ref()?))).collect();
        // Each is free for another frame as soon as this one is in it.
        let lines = ways
            .iter()
            .map(|(_, way)| Line::new(&way.connection, way.rest.lock().unwrap_or_else(PoisonError::into_inner)))
            .collect();
        let unread = send(lines, message, deadline, &|| self.peers.is_in_vain(message.round));
        if unread.is_empty() { Ok(()) } else { Err(Missing::Late(unread.into_iter().map(|i| ways[i].0).collect())) }
    }

    fn give_up(&self, error: Error, reason: &str) {
        let tells = self.over().end(error);
        self.peers.end();
        if tells {
            // What does not fit into a connection that nobody reads is cut.
            let reason = reason.get(..reason.len().min(4096)).unwrap_or("a reason that is too long");
            self.tell_all(Kind::Abort, reason.as_bytes());
        }
    }

    /// Says something to all peers, as far as they read.
    fn tell_all(&self, kind: Kind, payload: &[u8]) {
        if std::process::id() != self.made_by {
            return;
        }
        let message = Message { kind, round: 0, payload, fds: &[] };
        self.tell(u64::MAX, &message, Instant::now() + LAST_WORDS);
    }

    /// Says something to some peers, a bit for each, as far as they read.
    fn tell(&self, ranks: u64, message: &Message<'_>, deadline: Instant) {
        let told = (0u32..).zip(&self.links).filter(|(rank, _)| ranks >> (rank & 63) & 1 == 1);
        for way in told.filter_map(|(_, way)| way.as_ref()) {
            // A thread that gathers may hold it, because the peer does not read: then it does not read this either.
            let rest = loop {
                match way.rest.try_lock() {
                    Ok(rest) => break Some(rest),
                    Err(TryLockError::Poisoned(rest)) => break Some(rest.into_inner()),
                    Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(1))
                    }
                    Err(TryLockError::WouldBlock) => break None,
                }
            };
            if let Some(rest) = rest {
                send(vec![Line::new(&way.connection, rest)], message, deadline, &|| false);
            }
        }
    }

    fn not_met(&self, missing: Missing, patience: Duration) -> Error {
        let rank = self.rank;
        match missing {
            Missing::Gone(rank, how) => {
                let error = Error::PeerGone { rank, how, during: None };
                self.over().why.get_or_insert(error).clone()
            }
            Missing::Over => self
                .over()
                .why
                .clone()
                .unwrap_or_else(|| Error::Bootstrap { message: format!("rank {rank} has left the group") }),
            Missing::Late(late) => {
                let waited = format!("waited {} s for ranks {late:?}", patience.as_secs_f64());
                let error = Error::Bootstrap { message: format!("rank {rank} {waited}") };
                self.give_up(error.clone(), &format!("it {waited}"));
                error
            }
            Missing::OutOfRound(peer) => {
                let what = format!("rank {peer} is in another all-gather than rank {rank}");
                let error = Error::Bootstrap { message: what.clone() };
                self.give_up(error.clone(), &what);
                error
            }
        }
    }

    fn over(&self) -> MutexGuard<'_, Over> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        if std::process::id() != self.made_by {
            return self.watch.forget();
        }
        // Of a thread that unwinds, it is no leaving in order.
        if std::thread::panicking() {
            self.abort("it panicked");
        } else {
            self.leave();
        }
        self.watch.end();
    }
}
