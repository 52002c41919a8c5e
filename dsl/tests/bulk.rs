//! Bulk copies: a stage's cycle, its seal, and what a flag after the landing promises.
mod rig;

use bulk::{Loads, Ring};
use epoxide_dsl::fault::FaultChannel;
use epoxide_dsl::prelude::*;
use epoxide_sim::{Machine, Mode};
use rig::*;
use wait::{Poll, Watch};

/// Bytes of a row, which is what a stage holds.
const ROW: u32 = 512;
/// Words of a row.
const WORDS: usize = ROW as usize / 8;

/// This warp's stage: the mbarriers lie below the rows.
#[inline(always)]
fn stage() -> Ring<1, Loads> {
    let warp = warp::index();
    Ring::with_loads(Shared::dynamic(128 + warp * ROW), ROW, Shared::dynamic(8 * warp))
}

/// Shared memory of a block of `warps`.
const fn shared_bytes(warps: u32) -> u32 {
    128 + warps * ROW
}

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct CopyArgs {
    from: Global<u8>,
    to: Global<u8>,
    rows: u64,
    /// What a test leaves out to see that it notices: 1 = the recycling between a store and the next fill.
    skip: u64,
}

/// Every warp loads, stores and recycles its rows.
#[kernel(threads = 64)]
fn copy_rows(args: CopyArgs) {
    let mut stage = stage();
    let mut row = u64::from(thread::block_index() * warp::count() + warp::index());
    while row < args.rows {
        let at = row * u64::from(ROW);
        let source = stage.load(args.from.at(at), ROW).wait();
        if warp::lane() == (row % 32) as u32 {
            source.store_here(0, args.to.at(at), ROW);
        }
        stage = source.send();
        row += u64::from(thread::grid_blocks() * warp::count());
    }
    let _ = bulk::land();
}

#[test]
fn a_stage_cycles_through_loads_and_stores() {
    const ROWS: u64 = 29;
    for mode in modes().into_iter().chain((100..130).map(|seed| Mode::Seeded { seed })) {
        let machine = machine(1, mode);
        let data: Vec<u64> = (0..ROWS * WORDS as u64).map(scramble).collect();
        let from = filled(&machine, 0, &data);
        let to = zeros(&machine, 0, data.len() + 1);
        let args = CopyArgs { from: global(from), to: global(to), rows: ROWS, skip: 0 };
        run(&machine, [copy_rows.simulated(3, shared_bytes(2), args)]).expect("it ends");
        assert!(machine.read(to, data.len()).expect("in bounds") == data, "{mode:?}");
        assert_eq!(machine.read(to + 8 * data.len() as u64, 1).expect("in bounds"), [0], "{mode:?}: the word after");
    }
}

/// Every lane writes its piece of a row by ordinary stores; after the seal every lane stores another lane's piece.
#[kernel(threads = 64)]
fn write_rows(args: CopyArgs) {
    let mut stage = Ring::<1>::new(Shared::dynamic(128 + warp::index() * ROW), ROW);
    let lane = warp::lane();
    let mut row = u64::from(warp::index());
    while row < args.rows {
        let editable = stage.open();
        let data = editable.data().cast::<u64>();
        data.store_weak(2 * lane, row * 1000 + u64::from(2 * lane));
        data.store_weak(2 * lane + 1, row * 1000 + u64::from(2 * lane + 1));
        let source = editable.seal();
        let piece = 16 * (31 - lane);
        let at = row * u64::from(ROW) + u64::from(piece);
        source.store_here(piece, args.to.at(at), 16);
        if args.skip == 1 {
            // What the states keep apart: the next row is written while this one may still be read.
            let early = row + 2;
            if early < args.rows {
                data.store_weak(2 * lane, early * 1000 + u64::from(2 * lane));
            }
        }
        stage = source.send();
        row += 2;
    }
    let _ = bulk::land();
}

/// Whether the rows that [`write_rows`] made are right.
fn writes(mode: Mode, skip: u64) -> bool {
    const ROWS: u64 = 12;
    let machine = machine(1, mode);
    let to = zeros(&machine, 0, ROWS as usize * WORDS);
    let args = CopyArgs { from: global(0), to: global(to), rows: ROWS, skip };
    run(&machine, [write_rows.simulated(1, shared_bytes(2), args)]).expect("it ends");
    let expected: Vec<u64> = (0..ROWS).flat_map(|row| (0..WORDS as u64).map(move |i| row * 1000 + i)).collect();
    machine.read(to, expected.len()).expect("in bounds") == expected
}

#[test]
fn sealed_bytes_of_all_lanes_are_what_any_lane_stores() {
    for mode in modes().into_iter().chain((100..130).map(|seed| Mode::Seeded { seed })) {
        assert!(writes(mode, 0), "{mode:?}");
    }
}

/// The schedules are adversarial enough to see a missing recycling: without it the test above proves nothing.
#[test]
fn a_stage_that_is_refilled_before_it_is_recycled_sends_wrong_bytes_in_some_schedule() {
    let caught = (0..100).filter(|&seed| !writes(Mode::Seeded { seed }, 1)).count();
    assert!(caught > 10, "only {caught} of 100 seeds overwrote a stage that was still to be read");
}

/// Every warp writes its rows in turn into the two stages of a ring; every lane stores another lane's piece.
#[kernel(threads = 64)]
fn post_rows(args: CopyArgs) {
    let mut ring = Ring::<2>::new(Shared::dynamic(128 + warp::index() * 2 * ROW), ROW);
    let lane = warp::lane();
    let mut row = u64::from(warp::index());
    while row < args.rows {
        let editable = ring.open();
        let data = editable.data().cast::<u64>();
        data.store_weak(2 * lane, row * 1000 + u64::from(2 * lane));
        data.store_weak(2 * lane + 1, row * 1000 + u64::from(2 * lane + 1));
        let source = editable.seal();
        let piece = 16 * (31 - lane);
        source.store_here(piece, args.to.at(row * u64::from(ROW) + u64::from(piece)), 16);
        ring = source.send();
        if args.skip == 1 {
            // What the turns keep apart: the stage of the turn after the next is written while it may still be read.
            data.store_weak(2 * lane, 0);
        }
        row += 2;
    }
    let _ = bulk::land();
}

/// Whether the rows that [`post_rows`] made are right.
fn posts(mode: Mode, skip: u64) -> bool {
    const ROWS: u64 = 15;
    let machine = machine(1, mode);
    let to = zeros(&machine, 0, ROWS as usize * WORDS);
    let args = CopyArgs { from: global(0), to: global(to), rows: ROWS, skip };
    run(&machine, [post_rows.simulated(1, 128 + 4 * ROW, args)]).expect("it ends");
    let expected: Vec<u64> = (0..ROWS).flat_map(|row| (0..WORDS as u64).map(move |i| row * 1000 + i)).collect();
    machine.read(to, expected.len()).expect("in bounds") == expected
}

#[test]
fn a_ring_of_two_sends_what_was_written_in_each_turn() {
    for mode in modes().into_iter().chain((100..140).map(|seed| Mode::Seeded { seed })) {
        assert!(posts(mode, 0), "{mode:?}");
    }
}

#[test]
fn a_stage_of_two_that_is_written_after_it_was_sent_sends_wrong_bytes_in_some_schedule() {
    let caught = (0..100).filter(|&seed| !posts(Mode::Seeded { seed }, 1)).count();
    assert!(caught > 10, "only {caught} of 100 seeds overwrote a stage that was still to be read");
}

/// Every warp loads its rows, adds one to each word where it lies, and stores them.
#[kernel(threads = 64)]
fn edit_rows(args: CopyArgs) {
    let mut stage = stage();
    let mut row = u64::from(warp::index());
    while row < args.rows {
        let at = row * u64::from(ROW);
        let editable = stage.load(args.from.at(at), ROW).wait_to_edit();
        let data = editable.data().cast::<u64>();
        unroll!(J in 2 => {
            let i = 32 * J as u32 + warp::lane();
            data.store_weak(i, data.load_weak(i) + 1);
        });
        let source = editable.seal();
        if warp::lane() == 7 {
            source.store_here(0, args.to.at(at), ROW);
        }
        stage = source.send();
        row += 2;
    }
    let _ = bulk::land();
}

#[test]
fn loaded_bytes_are_edited_where_they_lie_and_sealed_again() {
    const ROWS: u64 = 9;
    for mode in modes().into_iter().chain((100..130).map(|seed| Mode::Seeded { seed })) {
        let machine = machine(1, mode);
        let data: Vec<u64> = (0..ROWS * WORDS as u64).map(|i| scramble(i) >> 1).collect();
        let [from, to] = [filled(&machine, 0, &data), zeros(&machine, 0, data.len())];
        let args = CopyArgs { from: global(from), to: global(to), rows: ROWS, skip: 0 };
        run(&machine, [edit_rows.simulated(1, shared_bytes(2), args)]).expect("it ends");
        let expected: Vec<u64> = data.iter().map(|word| word + 1).collect();
        assert!(machine.read(to, data.len()).expect("in bounds") == expected, "{mode:?}");
    }
}

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct SendArgs {
    channel: FaultChannel,
    from: Global<u8>,
    /// `[rows][ROW]` of every rank.
    inbox: Region<u8>,
    /// `[ranks]` of every rank: the epoch of what that rank sent.
    arrived: Region<u64>,
    out: Global<u8>,
    grid: grid::GridCounters,
    epoch: u64,
    rows: u64,
}

/// Sends this rank's rows to the next, and the last block out posts the flag.
#[kernel(threads = 64)]
fn send(args: SendArgs) {
    let window = args.channel.window;
    let next = Peer(window.me.0 + 1);
    let inbox = window.of(next, args.inbox);
    // Nobody has read an inbox yet: there is nothing to wait for.
    let watch = Watch::begin(args.channel, args.epoch);
    let Ok(nothing) = watch.wait_until(0, 0, |_| Poll::relaxed::<System>(inbox.cast::<u64>(), 0, 0, 0, |_| true))
    else {
        return;
    };
    let free = nothing.for_bulk_copies();
    let mut stage = stage();
    let mut row = u64::from(thread::block_index() * warp::count() + warp::index());
    while row < args.rows {
        let at = row * u64::from(ROW);
        let source = stage.load(args.from.at(at), ROW).wait();
        if warp::lane() == 0 {
            // In two copies, of which the second begins inside the stage.
            source.store(&free, 0, inbox.at(at), 128);
            source.store(&free, 128, inbox.at(at + 128), ROW - 128);
        }
        stage = source.send();
        row += u64::from(thread::grid_blocks() * warp::count());
    }
    let landed = bulk::land();
    if let Some(last) = args.grid.last_out(landed, false)
        && let Some(all) = last.landed()
        && thread::index() == 0
    {
        all.publish(window.of(next, args.arrived).at(window.me), args.epoch);
        // The simulator completes a block's copies at its end. What the flag promises must hold before.
        clock::sleep_until(clock::global_ns() + 100_000);
    }
}

/// Waits for the rank before, and bulk-loads what it sent.
#[kernel(threads = 64)]
fn receive(args: SendArgs) {
    let window = args.channel.window;
    let before = window.me.0 - 1;
    let arrived = window.own(args.arrived);
    let watch = Watch::begin(args.channel, args.epoch);
    let outcome = watch
        .wait_until(1, 1, |_| Poll::acquire::<System>(arrived, before, before, args.epoch, |seen| seen == args.epoch));
    let Ok(acquired) = outcome else { return };
    let _readable = acquired.for_bulk_copies();
    let inbox = window.own(args.inbox).as_global();
    let mut stage = stage();
    let mut row = u64::from(thread::block_index() * warp::count() + warp::index());
    while row < args.rows {
        let at = row * u64::from(ROW);
        let source = stage.load(inbox.at(at), ROW).wait();
        // The bytes are there for ordinary loads too, in every lane.
        let first = source.data().cast::<u64>().load_weak(0);
        if warp::ballot(warp::ALL, first == 0) == 0 && warp::lane() == 31 {
            source.store_here(0, args.out.at(at), ROW);
        }
        stage = source.send();
        row += u64::from(thread::grid_blocks() * warp::count());
    }
    let _ = bulk::land();
}

/// Every rank sends `rows` to the next, and the last has nothing to do but wait for them.
fn chain(machine: &Machine, rows: u64, mode: Mode) {
    let ranks = machine.config().ranks;
    let flags = FREE + rows * u64::from(ROW);
    let windows = Windows::new(machine, flags + 8 * u64::from(ranks));
    let words = rows as usize * WORDS;
    let data = |rank: u32| -> Vec<u64> { (0..words as u64).map(|i| scramble(u64::from(rank) << 32 | i) | 1).collect() };
    let per_rank = |f: &dyn Fn(u32) -> u64| -> Vec<u64> { (0..ranks).map(f).collect() };
    let from = per_rank(&|rank| filled(machine, rank, &data(rank)));
    let out = per_rank(&|rank| zeros(machine, rank, words));
    let counters = per_rank(&|rank| zeros(machine, rank, 2));
    run_on_all(machine, |rank| {
        let r = rank as usize;
        let args = SendArgs {
            channel: windows.channel(rank, 1_000_000_000),
            from: global(from[r]),
            inbox: Region::new(FREE),
            arrived: Region::new(flags),
            out: global(out[r]),
            grid: grid::GridCounters { words: global(counters[r]) },
            epoch: 7,
            rows,
        };
        let sending = (rank + 1 < ranks).then(|| send.simulated(3, shared_bytes(2), args));
        let receiving = (rank > 0).then(|| receive.simulated(2, shared_bytes(2), args));
        sending.into_iter().chain(receiving).collect()
    });
    for rank in 0..ranks {
        assert_eq!(windows.record(machine, rank)[..2], [0, 0], "{mode:?}, rank {rank}");
        if rank > 0 {
            let found = machine.read(out[rank as usize], words).expect("in bounds");
            assert!(found == data(rank - 1), "{mode:?}, rank {rank}");
        }
    }
}

#[test]
fn a_flag_after_the_landing_says_that_all_rows_have_arrived() {
    for mode in modes().into_iter().chain((100..120).map(|seed| Mode::Seeded { seed })) {
        chain(&machine(3, mode), 17, mode);
    }
}

#[test]
fn a_grid_with_nothing_to_send_publishes_too() {
    for mode in modes() {
        chain(&machine(2, mode), 0, mode);
    }
}

/// Asks for more than there is.
#[kernel(threads = 32)]
fn prefetches(args: Global<u8>) {
    args.prefetch(256);
    args.at(128).prefetch(256);
}

#[test]
fn a_prefetch_stays_in_bounds() {
    for mode in modes() {
        let machine = machine(1, mode);
        let error = run(&machine, [prefetches.simulated(1, 0, global(zeros(&machine, 0, 32)))]).expect_err("too far");
        let text = error.to_string();
        assert!(text.contains("bulk_prefetch of 256 bytes") && text.contains("tests/bulk.rs"), "{mode:?}: {text}");
    }
}
