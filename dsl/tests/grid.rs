//! The grid's barrier and the election of its last block.
mod rig;

use epoxide_dsl::fault::{CODE_TIMEOUT, FaultChannel, STATE_EMPTY, STATE_FILED};
use epoxide_dsl::prelude::*;
use grid::GridCounters;
use rig::*;
use wait::Watch;

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct GridArgs {
    channel: FaultChannel,
    counters: GridCounters,
    /// `[blocks][threads]`.
    words: Global<u64>,
    /// `[blocks][threads]`.
    out: Global<u64>,
    rounds: u32,
    /// A block that leaves before the first barrier, or `u32::MAX`.
    absent: u32,
}

/// In every round each thread takes the word of the same thread of the next block, and adds one.
#[kernel(threads = 64, cooperative)]
fn rotate(args: GridArgs) {
    let (block, blocks) = (u64::from(thread::block_index()), u64::from(thread::grid_blocks()));
    let (t, me) = (u64::from(thread::index()), block * 64 + u64::from(thread::index()));
    if thread::block_index() == args.absent {
        return;
    }
    let watch = Watch::begin(args.channel, 5);
    let mut round = 0;
    while round < args.rounds {
        let next = args.words.load_weak((block + 1) % blocks * 64 + t);
        // Between everyone's reads and everyone's writes, and the other way round.
        if let Err(stopped) = args.counters.sync(&watch, round) {
            args.out.store_weak(me, 1);
            let _ = args.counters.last_out(bulk::land(), true);
            return watch.file(stopped);
        }
        args.words.store_weak(me, next + 1);
        if let Err(stopped) = args.counters.sync(&watch, round) {
            let _ = args.counters.last_out(bulk::land(), true);
            return watch.file(stopped);
        }
        round += 1;
    }
    args.out.store_weak(me, args.words.load_weak((block + 1) % blocks * 64 + t));
    let _ = args.counters.last_out(bulk::land(), false);
}

fn grid_args(machine: &epoxide_sim::Machine, windows: &Windows, blocks: usize, rounds: u32) -> (GridArgs, [u64; 3]) {
    let start: Vec<u64> = (0..blocks as u64 * 64).map(|i| i * 100).collect();
    let [counters, out] = [2, blocks * 64].map(|words| zeros(machine, 0, words));
    let words = filled(machine, 0, &start);
    let args = GridArgs {
        channel: windows.channel(0, 10_000_000_000),
        counters: GridCounters { words: global(counters) },
        words: global(words),
        out: global(out),
        rounds,
        absent: u32::MAX,
    };
    (args, [counters, words, out])
}

#[test]
fn a_grid_that_met_sees_what_its_threads_wrote_in_every_launch() {
    const BLOCKS: u64 = 5;
    const ROUNDS: u64 = 4;
    for mode in modes() {
        let machine = machine(1, mode);
        let windows = Windows::new(&machine, FREE);
        let (args, [counters, words, out]) = grid_args(&machine, &windows, BLOCKS as usize, ROUNDS as u32);
        // Three launches on the same counters, which nobody resets.
        run(&machine, [0; 3].map(|_| rotate.simulated(BLOCKS as u32, 0, args))).expect("it ends");
        let after = |i: u64| {
            let (block, t) = (i / 64, i % 64);
            (block + 3 * ROUNDS) % BLOCKS * 6400 + t * 100 + 3 * ROUNDS
        };
        let n = BLOCKS * 64;
        let expected: Vec<u64> = (0..n).map(after).collect();
        assert_eq!(machine.read(words, n as usize).expect("in bounds"), expected, "{mode:?}");
        let expected: Vec<u64> = (0..n).map(|i| after((i + 64) % n)).collect();
        assert_eq!(machine.read(out, n as usize).expect("in bounds"), expected, "{mode:?}");
        assert_eq!(machine.read(counters, 2).expect("in bounds"), [0, 0], "{mode:?}");
        assert_eq!(windows.record(&machine, 0)[0], STATE_EMPTY, "{mode:?}");
    }
}

#[test]
fn a_block_that_never_comes_faults_the_others_at_the_deadline() {
    for mode in modes() {
        let machine = machine(1, mode);
        let windows = Windows::new(&machine, FREE);
        let (mut args, [_, _, out]) = grid_args(&machine, &windows, 3, 1);
        args.absent = 1;
        run(&machine, [rotate.simulated(3, 0, args)]).expect("it gives up by itself");
        let record = windows.record(&machine, 0);
        assert_eq!(record[..2], [STATE_FILED, u64::from(CODE_TIMEOUT)], "{mode:?}");
        assert_eq!((record[3], record[6], record[7]), (u64::from(u32::MAX), 3, 2), "{mode:?}: 2 of 3 blocks came");
        let expected: Vec<u64> = (0..192).map(|i| u64::from(i / 64 != 1)).collect();
        assert_eq!(machine.read(out, 192).expect("in bounds"), expected, "{mode:?}: all threads of the others know");
    }
}

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct LastArgs {
    counters: GridCounters,
    /// `[blocks]`: written by ordinary stores.
    parts: Global<u64>,
    /// What the last block's threads saw, `[threads]`: how often, and the parts' sum.
    seen: Global<u64>,
    flag: Symmetric<u64>,
    value: u64,
    /// The block that stops, or `u64::MAX`.
    stops: u64,
}

#[kernel(threads = 64)]
fn sum_up(args: LastArgs) {
    if thread::index() == 63 {
        args.parts.store_weak(u64::from(thread::block_index()), args.value + u64::from(thread::block_index()));
    }
    let landed = bulk::land();
    let stops = u64::from(thread::block_index()) == args.stops;
    if let Some(last) = args.counters.last_out(landed, stops) {
        let mut sum = 0;
        let mut block = 0;
        while block < thread::grid_blocks() {
            sum += args.parts.load_weak(u64::from(block));
            block += 1;
        }
        args.seen.fetch_add_acq_rel::<Gpu>(u64::from(thread::index()), 1 << 32 | sum);
        if let Some(all) = last.landed()
            && thread::index() == 0
        {
            all.publish(args.flag, args.value);
        }
    }
}

#[test]
fn one_block_of_each_launch_is_the_last_and_sees_all_parts() {
    // More blocks than an SM-poor rank holds at once: the last block out needs no residency.
    const BLOCKS: u64 = 9;
    for mode in modes() {
        let mut config = epoxide_sim::MachineConfig::new(1, mode);
        config.sms_per_rank = 2;
        let machine = epoxide_sim::Machine::new(config).expect("a machine");
        let [counters, parts, seen, flag] = [2, BLOCKS as usize, 64, 1].map(|words| zeros(&machine, 0, words));
        let args = |value, stops| LastArgs {
            counters: GridCounters { words: global(counters) },
            parts: global(parts),
            seen: global(seen),
            flag: symmetric(flag),
            value,
            stops,
        };
        // Launches need not have the same number of blocks.
        let launches = [(10, BLOCKS - 2), (500, BLOCKS), (7000, BLOCKS)];
        let launches = launches.map(|(value, blocks)| sum_up.simulated(blocks as u32, 0, args(value, u64::MAX)));
        run(&machine, launches).expect("it ends");
        let sum = 7510 * BLOCKS - 2 * 10 + 3 * (0..BLOCKS).sum::<u64>() - (BLOCKS - 2..BLOCKS).sum::<u64>();
        assert_eq!(machine.read(seen, 64).expect("in bounds"), [3 << 32 | sum; 64], "{mode:?}");
        assert_eq!(machine.read(flag, 1).expect("in bounds"), [7000], "{mode:?}");
        assert_eq!(machine.read(counters, 2).expect("in bounds"), [0, 0], "{mode:?}");
        // One that stops, whichever it is: nothing is published, and the next launch begins anew.
        for stops in [0, 4, BLOCKS - 1] {
            run(&machine, [sum_up.simulated(BLOCKS as u32, 0, args(9000, stops))]).expect("it ends");
            assert_eq!(machine.read(flag, 1).expect("in bounds"), [7000], "{mode:?}");
            assert_eq!(machine.read(counters, 2).expect("in bounds"), [0, 0], "{mode:?}");
        }
    }
}
