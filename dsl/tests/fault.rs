//! Faults: what a record says, that the first one stays, and that the abort word reaches every rank and keeps its origin.
mod rig;

use epoxide_dsl::fault::{
    Abort, CODE_ABORTED, CODE_FIRST_OF_KERNELS, Fault, FaultChannel, RECORD_WORDS, STATE_EMPTY, STATE_FILED, Told,
};
use epoxide_dsl::prelude::*;
use rig::*;
use wait::Watch;

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct FaultArgs {
    channel: FaultChannel,
    code: u32,
    /// 0: tell every rank. 1: file here only.
    here: u32,
    /// Added to every field.
    mark: u64,
}

/// Every thread of the grid files a fault of its own, from which one can see whose it is.
#[kernel(threads = 64)]
fn everyone_files(args: FaultArgs) {
    let me = args.mark + u64::from(thread::index());
    let watch = Watch::begin(args.channel, args.mark);
    let told = if args.here == 1 { Told::Here } else { Told::All };
    let fault = Fault { code: args.code, phase: 3, peer: me as u32, told, expected: me + 2, seen: me + 3 };
    if let Err(stopped) = fault.settle() {
        watch.file(stopped);
    }
}

/// The record of [`everyone_files`]'s thread whose number is `me`, but for the time it took.
fn record_of(code: u32, rank: u32, block: u64, mark: u64, me: u64) -> Vec<u64> {
    let mut words = vec![STATE_FILED, u64::from(code), 77 << 32 | 3, u64::from(rank) << 32 | me, block];
    words.extend([mark, me + 2, me + 3]);
    words.resize(RECORD_WORDS as usize, 0);
    words
}

/// A record without the time that the operation took, which is little.
fn timeless(mut record: Vec<u64>) -> Vec<u64> {
    assert!(record[8] < 1_000_000, "{record:?}");
    record[8] = 0;
    record
}

const CODE: u32 = CODE_FIRST_OF_KERNELS + 4;

#[test]
fn of_many_faults_at_once_one_is_filed_whole() {
    for mode in modes() {
        let machine = machine(2, mode);
        let windows = Windows::new(&machine, FREE);
        let args = FaultArgs { channel: windows.channel(0, 0), code: CODE, here: 0, mark: 1000 };
        run(&machine, [everyone_files.simulated(4, 0, args)]).expect("it ends");
        let record = windows.record(&machine, 0);
        let (block, me) = (record[4], record[3]);
        assert!(block < 4 && (1000..1064).contains(&me), "{mode:?}: {record:?}");
        assert_eq!(timeless(record), record_of(CODE, 0, block, 1000, me), "{mode:?}");
        // The word that came first stays, the same at both ranks or not: each names rank 0 and this code.
        for rank in 0..2 {
            let abort = Abort::from_word(windows.abort(&machine, rank));
            assert_eq!((abort.code, abort.origin), (CODE, 0), "{mode:?}, rank {rank}");
            assert!((1000..1064).contains(&abort.peer), "{mode:?}, rank {rank}: {abort:?}");
        }
        assert_eq!(
            windows.record(&machine, 1),
            [STATE_EMPTY; RECORD_WORDS as usize],
            "{mode:?}: who is told files nothing by that"
        );
    }
}

#[test]
fn the_first_record_and_the_first_abort_word_stay() {
    for mode in modes() {
        let machine = machine(3, mode);
        let windows = Windows::new(&machine, FREE);
        let file = |channel, code, mark| everyone_files.simulated(1, 0, FaultArgs { channel, code, here: 0, mark });
        // Rank 1's stream: one fault, then another. Then rank 0's own, when all were told.
        let launches = [
            file(windows.channel(1, 0), CODE, 100),
            file(windows.channel(1, 0), CODE + 1, 200),
            file(windows.channel(0, 0), CODE + 2, 300),
        ];
        run(&machine, launches).expect("it ends");
        let record = windows.record(&machine, 1);
        let me = record[3] & 0xffff_ffff;
        assert!((100..164).contains(&me), "{mode:?}");
        assert_eq!(timeless(record), record_of(CODE, 1, 0, 100, me), "{mode:?}");
        assert_eq!(windows.record(&machine, 0)[..2], [STATE_FILED, u64::from(CODE) + 2], "{mode:?}");
        for rank in 0..3 {
            let abort = Abort::from_word(windows.abort(&machine, rank));
            assert_eq!((abort.code, abort.origin), (CODE, 1), "{mode:?}, rank {rank}");
        }
    }
}

/// Files one launch's faults at rank 0 of two, over an abort word that may be there; returns both ranks' words after.
fn words_after(mode: epoxide_sim::Mode, code: u32, here: u32, word: u64) -> [u64; 2] {
    let machine = machine(2, mode);
    let windows = Windows::new(&machine, FREE);
    // SAFETY: memory of this test's own, which no kernel uses now.
    unsafe { machine.write(windows.bases[0] + ABORT, &[word]) }.expect("in bounds");
    let args = FaultArgs { channel: windows.channel(0, 0), code, here, mark: 0 };
    run(&machine, [everyone_files.simulated(1, 0, args)]).expect("it ends");
    assert_eq!(windows.record(&machine, 0)[..2], [STATE_FILED, u64::from(code)], "{mode:?}");
    [0, 1].map(|rank| windows.abort(&machine, rank))
}

/// Every block stops because it looked at the abort word.
#[kernel(threads = 64)]
fn everyone_was_told(args: FaultArgs) {
    let watch = Watch::begin(args.channel, 1);
    if let Err(stopped) = watch.unless_aborted(3) {
        watch.file(stopped);
    }
}

/// Launches [`everyone_was_told`] at rank 0 of three, whose word names `origin`; returns that word, all words after, and the record.
fn told(mode: epoxide_sim::Mode, origin: u32) -> (u64, [u64; 3], Vec<u64>) {
    let machine = machine(3, mode);
    let windows = Windows::new(&machine, FREE);
    let word = Abort { code: CODE, origin, peer: 0 }.to_word();
    // SAFETY: memory of this test's own, which no kernel uses now.
    unsafe { machine.write(windows.bases[0] + ABORT, &[word]) }.expect("in bounds");
    let args = FaultArgs { channel: windows.channel(0, 0), code: 0, here: 0, mark: 0 };
    run(&machine, [everyone_was_told.simulated(2, 0, args)]).expect("it ends");
    (word, [0, 1, 2].map(|rank| windows.abort(&machine, rank)), windows.record(&machine, 0))
}

#[test]
fn who_was_told_tells_on_what_it_was_told() {
    for mode in modes() {
        // Rank 0 stopped because of itself: it has told whom it wanted to.
        let (word, words, _) = told(mode, 0);
        assert_eq!(words, [word, 0, 0], "{mode:?}");
        let (word, words, record) = told(mode, 2);
        assert_eq!(words, [word; 3], "{mode:?}");
        assert_eq!(record[..2], [STATE_FILED, u64::from(CODE_ABORTED)], "{mode:?}");
        assert_eq!((record[3], record[7]), (2, word), "{mode:?}: by whom, and what was seen");
    }
}

#[test]
fn who_files_here_tells_its_own_rank_alone_and_the_first_word_stays() {
    for mode in modes() {
        let [own, peers] = words_after(mode, CODE, 1, 0);
        let abort = Abort::from_word(own);
        assert_eq!((abort.code, abort.origin, peers), (CODE, 0, 0), "{mode:?}");
        let before = Abort { code: 20, origin: 1, peer: 0 }.to_word();
        assert_eq!(words_after(mode, CODE, 1, before), [before, 0], "{mode:?}");
        // Who tells all, tells what its own word says.
        assert_eq!(words_after(mode, CODE, 0, before), [before, before], "{mode:?}");
    }
}

#[test]
fn an_abort_word_is_never_zero_and_reads_back() {
    for code in [0, 1, 2, CODE, 0xff] {
        for origin in [0, 1, 1023, 0xffff] {
            for peer in [0, 7, 0xffff] {
                let abort = Abort { code, origin, peer };
                assert_ne!(abort.to_word(), 0);
                assert_eq!(Abort::from_word(abort.to_word()), abort);
            }
        }
    }
    // No peer is u32::MAX in a fault, and 0xffff in the word.
    let word = Abort { code: CODE, origin: 3, peer: u32::MAX }.to_word();
    assert_eq!(Abort::from_word(word), Abort { code: CODE, origin: 3, peer: 0xffff });
}
