//! Faults: what a record says, that the first one stays, and that the abort word reaches every rank and keeps its origin.
mod rig;

use epoxide_dsl::fault::{
    Abort, CODE_ABORTED, CODE_FIRST_OF_KERNELS, Fault, FaultChannel, RECORD_WORDS, STATE_EMPTY, STATE_FILED,
};
use epoxide_dsl::prelude::*;
use rig::*;

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
    let fault = Fault {
        code: args.code,
        phase: 3,
        peer: me as u32,
        epoch: me + 1,
        expected: me + 2,
        seen: me + 3,
        elapsed_ns: me + 4,
        detail: [me + 5, me + 6, me + 7],
    };
    if args.here == 1 {
        args.channel.file_here(thread::block_index(), fault);
    } else {
        args.channel.file(thread::block_index(), fault);
    }
}

/// The record of [`everyone_files`]'s thread whose number is `me`.
fn record_of(code: u32, rank: u32, block: u64, me: u64) -> Vec<u64> {
    let mut words = vec![STATE_FILED, u64::from(code), 77 << 32 | 3, u64::from(rank) << 32 | me, block];
    words.extend((1..=7).map(|i| me + i));
    words.resize(RECORD_WORDS as usize, 0);
    words
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
        assert_eq!(record, record_of(CODE, 0, block, me), "{mode:?}");
        // The word that came first stays, the same at both ranks or not: each names rank 0 and this code.
        for rank in 0..2 {
            let abort = Abort::from_word(windows.abort(&machine, rank));
            assert_eq!((abort.code, abort.origin), (CODE, 0), "{mode:?}, rank {rank}");
            assert!((1000..1064).contains(&abort.peer), "{mode:?}, rank {rank}: {abort:?}");
        }
        assert_eq!(windows.record(&machine, 1), [STATE_EMPTY; 16], "{mode:?}: who is told files nothing by that");
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
        assert_eq!(record, record_of(CODE, 1, 0, record[3] & 0xffff_ffff), "{mode:?}");
        assert!((100..164).contains(&(record[3] & 0xffff_ffff)), "{mode:?}");
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

/// Files that it stopped because of an abort word, as a wait does that has seen it.
#[kernel(threads = 64)]
fn everyone_was_told(args: FaultArgs) {
    let (code, peer) = (CODE_ABORTED, args.code);
    let fault = Fault { code, phase: 3, peer, epoch: 1, expected: 0, seen: args.mark, elapsed_ns: 0, detail: [0; 3] };
    args.channel.file(thread::block_index(), fault);
}

#[test]
fn who_was_told_tells_on_what_it_was_told() {
    for mode in modes() {
        let machine = machine(3, mode);
        let windows = Windows::new(&machine, FREE);
        let told = |origin| Abort { code: CODE, origin, peer: 0 }.to_word();
        let args = |origin| FaultArgs { channel: windows.channel(0, 0), code: origin, here: 0, mark: told(origin) };
        // Rank 0 stopped because of itself: it has told whom it wanted to.
        run(&machine, [everyone_was_told.simulated(2, 0, args(0))]).expect("it ends");
        assert_eq!([0, 1, 2].map(|rank| windows.abort(&machine, rank)), [0; 3], "{mode:?}");
    }
    for mode in modes() {
        let machine = machine(3, mode);
        let windows = Windows::new(&machine, FREE);
        let word = Abort { code: CODE, origin: 2, peer: 0 }.to_word();
        let args = FaultArgs { channel: windows.channel(0, 0), code: 2, here: 0, mark: word };
        run(&machine, [everyone_was_told.simulated(2, 0, args)]).expect("it ends");
        assert_eq!([0, 1, 2].map(|rank| windows.abort(&machine, rank)), [word; 3], "{mode:?}");
        assert_eq!(windows.record(&machine, 0)[..2], [STATE_FILED, u64::from(CODE_ABORTED)], "{mode:?}");
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
