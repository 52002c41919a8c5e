//! Waits that end: with the flags, at the deadline of virtual time, or by a peer's abort word.
mod rig;

use epoxide_dsl::fault::{
    Abort, CODE_ABORTED, CODE_GONE, CODE_TIMEOUT, FaultChannel, HOST_ABORT, STATE_EMPTY, STATE_FILED,
};
use epoxide_dsl::prelude::*;
use epoxide_sim::{Machine, MachineConfig, Mode, Mutation};
use rig::*;
use wait::{Poll, Watch};

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct WaitArgs {
    channel: FaultChannel,
    /// `[flags]` of every rank.
    flags: Region<u64>,
    /// What each thread of the block found, `[threads]`: 1 ready, 2 faulted.
    outcomes: Global<u64>,
    /// Before the flag, for the flags' owner: `[flags]`.
    data: Region<u64>,
    /// The sum of what came with the flags, `[threads]`.
    sums: Global<u64>,
    epoch: u64,
    /// Held this long before anything is posted.
    delay_ns: u64,
    count: u32,
    /// Flags that this rank posts at every rank: from, to.
    post_from: u32,
    post_to: u32,
    reserved: u32,
}

const PHASE: u32 = 9;

/// Posts data and flags at every rank, then waits for all `count` of its own.
#[kernel(threads = 64)]
fn exchange(args: WaitArgs) {
    let window = args.channel.window;
    let watch = Watch::begin(args.channel, args.epoch);
    clock::sleep_until(clock::global_ns() + args.delay_ns);
    let t = thread::index();
    let mut flag = args.post_from + t;
    while flag < args.post_to {
        let mut rank = 0;
        while rank < window.peers {
            window.of(Peer(rank), args.data).store_weak(flag, u64::from(1000 + flag));
            window.of(Peer(rank), args.flags).store_release::<System>(flag, args.epoch);
            rank += 1;
        }
        flag += thread::block_threads();
    }
    let own = window.own(args.flags);
    let outcome = watch.wait_until(PHASE, args.count, |flag| {
        Poll::acquire::<System>(own, flag, flag, args.epoch, |seen| seen == args.epoch)
    });
    let mut ended = outcome.map(|_acquired| ());
    let mut said = 2;
    if ended.is_ok() {
        // Every thread sees what came with every flag, not only with those that it polled.
        let mut sum = 0;
        let mut flag = 0;
        while flag < args.count {
            sum += window.own(args.data).load_weak(u64::from(flag));
            flag += 1;
        }
        args.sums.store_weak(u64::from(t), sum);
        ended = watch.unless_aborted(PHASE + 1);
        said = if ended.is_err() { 3 } else { 1 };
    }
    args.outcomes.store_weak(u64::from(t), said);
    if let Err(stopped) = ended {
        watch.file(stopped);
    }
}

/// More flags than threads: each thread polls several.
const FLAGS: u32 = 100;
const SECOND: u64 = 1_000_000_000;

/// A step that a mutation names is not made: nobody's flag comes, or nobody waits for it.
#[test]
fn a_step_that_is_left_out_is_missed() {
    let of = |text| Mutation::of("tests/wait.rs", include_str!("wait.rs"), text).expect("it is there");
    for mode in modes() {
        for (left_out, outcome) in [(of("store_release::<System>(flag"), 2), (of("watch.wait_until(PHASE"), 1)] {
            let config = MachineConfig::new(1, mode).with_mutation(left_out);
            let scene = Scene::on(Machine::new(config).expect("a machine"));
            // Without the wait it is over although not all flags are posted.
            let posted = if outcome == 1 { (0, 1) } else { (0, FLAGS) };
            run(&scene.machine, [exchange.simulated(1, 0, scene.args(0, SECOND, posted))]).expect("it ends");
            assert_eq!(scene.outcome(0), [outcome; 64], "{mode:?}, {left_out:?}");
        }
    }
}

struct Scene {
    machine: Machine,
    windows: Windows,
    outcomes: Vec<u64>,
    sums: Vec<u64>,
}

impl Scene {
    fn new(ranks: u32, mode: Mode) -> Self {
        Self::on(machine(ranks, mode))
    }
    fn on(machine: Machine) -> Self {
        let ranks = machine.config().ranks;
        let windows = Windows::new(&machine, FREE + 16 * u64::from(FLAGS));
        let [outcomes, sums] = [0; 2].map(|_| (0..ranks).map(|rank| zeros(&machine, rank, 64)).collect());
        Self { machine, windows, outcomes, sums }
    }
    fn args(&self, rank: u32, timeout_ns: u64, post: (u32, u32)) -> WaitArgs {
        WaitArgs {
            channel: self.windows.channel(rank, timeout_ns),
            flags: Region::new(FREE),
            outcomes: global(self.outcomes[rank as usize]),
            data: Region::new(FREE + 8 * u64::from(FLAGS)),
            sums: global(self.sums[rank as usize]),
            epoch: 42,
            delay_ns: 0,
            count: FLAGS,
            post_from: post.0,
            post_to: post.1,
            reserved: 0,
        }
    }
    fn outcome(&self, rank: usize) -> Vec<u64> {
        self.machine.read(self.outcomes[rank], 64).expect("in bounds")
    }
}

#[test]
fn a_wait_ends_when_all_flags_are_there_and_what_they_publish_is_visible() {
    for mode in modes() {
        let scene = Scene::new(2, mode);
        run_on_all(&scene.machine, |rank| {
            let half = FLAGS / 2;
            let mut args = scene.args(rank, 60 * SECOND, (half * rank, half * (rank + 1)));
            // One rank is far behind, and not too late.
            args.delay_ns = u64::from(rank) * 50 * SECOND;
            vec![exchange.simulated(1, 0, args)]
        });
        for rank in 0..2 {
            assert_eq!(scene.outcome(rank), [1; 64], "{mode:?}, rank {rank}");
            let sum = (0..u64::from(FLAGS)).map(|flag| 1000 + flag).sum();
            assert_eq!(
                scene.machine.read(scene.sums[rank], 64).expect("in bounds"),
                [sum; 64],
                "{mode:?}, rank {rank}"
            );
            assert_eq!(scene.windows.record(&scene.machine, rank as u32)[0], STATE_EMPTY, "{mode:?}, rank {rank}");
        }
    }
}

#[test]
fn a_wait_for_nothing_is_over_at_once() {
    for mode in modes() {
        let scene = Scene::new(1, mode);
        let args = WaitArgs { count: 0, ..scene.args(0, 0, (0, 0)) };
        run(&scene.machine, [exchange.simulated(1, 0, args)]).expect("it ends");
        assert_eq!(scene.outcome(0), [1; 64], "{mode:?}");
    }
}

#[test]
fn a_wait_ends_at_its_deadline_with_a_record_of_what_was_missing() {
    for mode in modes() {
        let scene = Scene::new(2, mode);
        // Flag 70 is the one that nobody posts. Thread 6 polls it, after flag 6.
        let start = std::time::Instant::now();
        let args = scene.args(0, 100 * SECOND, (0, 70));
        let others = scene.args(1, 0, (71, FLAGS));
        let others = WaitArgs { count: 0, ..others };
        run(&scene.machine, [exchange.simulated(1, 0, others), exchange.simulated(1, 0, args)])
            .expect("it gives up by itself");
        assert_eq!(scene.outcome(0), [2; 64], "{mode:?}: uniform, though one thread alone missed a flag");
        let record = scene.windows.record(&scene.machine, 0);
        assert_eq!(record[..4], [STATE_FILED, u64::from(CODE_TIMEOUT), 77 << 32 | u64::from(PHASE), 70], "{mode:?}");
        assert_eq!(record[4..8], [0, 42, 42, 0], "{mode:?}: block, epoch, expected, seen");
        let late = record[8].checked_sub(100 * SECOND).expect("not before its deadline");
        assert!(late < SECOND / 1000, "{mode:?}: {late} ns of virtual time after its deadline");
        for rank in 0..2 {
            let abort = Abort::from_word(scene.windows.abort(&scene.machine, rank));
            assert_eq!(abort, Abort { code: CODE_TIMEOUT, origin: 0, peer: 70 }, "{mode:?}, rank {rank}");
        }
        assert!(start.elapsed().as_secs() < 10, "{mode:?}: a hundred virtual seconds took {:?}", start.elapsed());
    }
}

#[test]
fn one_ranks_timeout_ends_the_waits_of_all() {
    for mode in modes() {
        let scene = Scene::new(4, mode);
        run_on_all(&scene.machine, |rank| {
            // Rank 2 has the least patience, by far. Nobody posts the last ten flags.
            let timeout = if rank == 2 { SECOND } else { 1000 * SECOND };
            vec![exchange.simulated(1, 0, scene.args(rank, timeout, (0, FLAGS - 10)))]
        });
        for rank in 0..4 {
            assert_eq!(scene.outcome(rank), [2; 64], "{mode:?}, rank {rank}");
            let abort = Abort::from_word(scene.windows.abort(&scene.machine, rank as u32));
            assert_eq!((abort.code, abort.origin), (CODE_TIMEOUT, 2), "{mode:?}, rank {rank}");
            assert!((90..100).contains(&abort.peer), "{mode:?}, rank {rank}: {abort:?}");
            let record = scene.windows.record(&scene.machine, rank as u32);
            let (code, peer) = (record[1], record[3] & 0xffff_ffff);
            if rank == 2 {
                assert!(code == u64::from(CODE_TIMEOUT) && (90..100).contains(&peer), "{mode:?}: {record:?}");
            } else {
                // Whoever was told names who told it, and the word that told it, and did so long before its own deadline.
                assert_eq!((code, peer), (u64::from(CODE_ABORTED), 2), "{mode:?}, rank {rank}: {record:?}");
                assert_eq!(record[7], scene.windows.abort(&scene.machine, rank as u32), "{mode:?}, rank {rank}");
                assert!(record[8] < 2 * SECOND, "{mode:?}, rank {rank}: {record:?}");
            }
        }
    }
}

/// The host stores it; a wait whose flag is missing finds it long before its deadline, and tells the others. One that ends looks at nothing.
#[test]
fn the_host_s_word_ends_a_wait_that_would_not() {
    let word = Abort { code: CODE_GONE, origin: 0xffff, peer: 5 }.to_word();
    for mode in modes() {
        let scene = Scene::new(3, mode);
        // SAFETY: the host's word in a record of this test's own, which kernels read with strong loads.
        unsafe { scene.machine.write(scene.windows.record_of(1) + HOST_ABORT * 8, &[word]) }.expect("in bounds");
        run_on_all(&scene.machine, |rank| {
            vec![exchange.simulated(1, 0, scene.args(rank, 1000 * SECOND, (0, FLAGS - 10)))]
        });
        for rank in 0..3 {
            assert_eq!(scene.outcome(rank), [2; 64], "{mode:?}, rank {rank}");
            let abort = Abort::from_word(scene.windows.abort(&scene.machine, rank as u32));
            assert_eq!(abort, Abort { code: CODE_GONE, origin: 1, peer: 5 }, "{mode:?}, rank {rank}");
            let record = scene.windows.record(&scene.machine, rank as u32);
            let said = if rank == 1 { (CODE_GONE, 5) } else { (CODE_ABORTED, 1) };
            assert_eq!((record[1], record[3] as u32), (said.0.into(), said.1), "{mode:?}, rank {rank}");
            assert_eq!(Abort::from_word(record[7]).peer, 5, "{mode:?}, rank {rank}: {record:?}");
            assert!(record[8] < SECOND, "{mode:?}, rank {rank}: {record:?}");
        }
        let scene = Scene::new(1, mode);
        // SAFETY: as above.
        unsafe { scene.machine.write(scene.windows.record_of(0) + HOST_ABORT * 8, &[word]) }.expect("in bounds");
        run(&scene.machine, [exchange.simulated(1, 0, scene.args(0, SECOND, (0, FLAGS)))]).expect("it ends");
        assert_eq!(scene.outcome(0), [1; 64], "{mode:?}: all flags are there");
    }
}

#[test]
fn an_abort_word_that_is_there_already_ends_a_wait_and_shows_after_one() {
    let word = Abort { code: 20, origin: 6, peer: 5 }.to_word();
    for mode in modes() {
        // Flags that are there: the wait is over without a look at the word, and who looks afterwards finds it, in every
        // thread. Flags that are not: the wait ends. Either way one record says in which phase, and because of whom.
        for (posted, outcome, phase) in [((0, FLAGS), 3, PHASE + 1), ((1, FLAGS), 2, PHASE)] {
            let scene = Scene::new(1, mode);
            // SAFETY: the abort word of this test's own window, which kernels read with strong loads.
            unsafe { scene.machine.write(scene.windows.bases[0] + ABORT, &[word]) }.expect("in bounds");
            run(&scene.machine, [exchange.simulated(1, 0, scene.args(0, SECOND, posted))]).expect("it ends");
            assert_eq!(scene.outcome(0), [outcome; 64], "{mode:?}");
            let record = scene.windows.record(&scene.machine, 0);
            assert_eq!(record[..2], [STATE_FILED, u64::from(CODE_ABORTED)], "{mode:?}");
            assert_eq!(record[2..6], [77 << 32 | u64::from(phase), 6, 0, 42], "{mode:?}");
            assert_eq!(record[7], word, "{mode:?}: what was seen");
            assert_eq!(scene.windows.abort(&scene.machine, 0), word, "{mode:?}: the word keeps its origin");
        }
    }
}
