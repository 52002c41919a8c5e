//! What the simulator's own operations cost. Prints; run with `--release -- --ignored --nocapture`.

mod rig;

use std::time::Instant;

use epoxide_sim::{Machine, Mode, device};
use rig::*;

/// Runs a kernel on every rank and returns wall seconds.
fn timed(machine: &Machine, grid: u32, threads: u32, entry: impl Fn() + Send + Sync + Clone + 'static) -> f64 {
    let start = Instant::now();
    on_all_ranks(machine, |actor, stream| {
        actor.start(stream, launch("timed", grid, threads, entry.clone())).expect("a legal launch");
        actor.synchronize(stream).expect("done");
    });
    start.elapsed().as_secs_f64()
}

#[test]
#[ignore = "prints numbers, checks none"]
fn print_costs() {
    let one = || machine(1, Mode::Fast { workers: 1 });
    let at = |machine: &Machine| machine.allocate(0, 1 << 20, 256).expect("fits");
    let print = |what: &str, seconds: f64, count: f64| println!("{what}: {:.2} ns", seconds * 1e9 / count);

    let machine1 = one();
    let base = at(&machine1);
    let seconds = timed(&machine1, 1, 32, move || {
        let mut sum = 0;
        for i in 0..10_000_000u64 {
            sum += device::load::<u64>(word(base, i & 0xFFFF), WEAK);
        }
        device::store(word(base, 0), sum, WEAK);
    });
    print("load", seconds, 32e7);
    let machine1 = one();
    let base = at(&machine1);
    let seconds = timed(&machine1, 1, 32, move || {
        for i in 0..10_000_000u64 {
            device::store(word(base, i & 0xFFFF), i, WEAK);
        }
    });
    print("store", seconds, 32e7);
    let machine1 = one();
    let base = at(&machine1);
    let seconds = timed(&machine1, 1, 32, move || {
        for i in 0..5_000_000u64 {
            let value = device::load_vector::<u32, 4>(word(base, 2 * (i & 0x7FFF)), WEAK);
            device::store_vector(word(base, 2 * (i & 0x7FFF)), value, WEAK);
        }
    });
    print("load_vector + store_vector", seconds, 32.0 * 5e6);
    for threads in [32, 512] {
        let seconds = timed(&one(), 1, threads, || {
            for _ in 0..200_000 {
                device::warp_sync(ALL);
            }
        });
        print(&format!("warp_sync per lane, {threads} threads"), seconds, f64::from(threads) * 2e5);
    }
    let seconds = timed(&one(), 1, 32, || {
        for i in 0..1_000_000 {
            device::shuffle(ALL, device::Shuffle::Xor, i, 1);
        }
    });
    print("shuffle per lane", seconds, 32e6);
    let seconds = timed(&one(), 1, 512, || {
        for _ in 0..50_000 {
            device::barrier(0, 0);
        }
    });
    print("block barrier per thread, 512 threads", seconds, 512.0 * 5e4);
    let seconds = timed(&one(), 100_000, 512, || {});
    print("thread start to end", seconds, 512e5);
    let machine1 = one();
    let base = at(&machine1);
    let seconds = timed(&machine1, 1, 32, move || {
        if device::thread_index() == 0 {
            device::mbarrier_init(4088, 1);
            for phase in 0..1_000_000 {
                arrive(4088, 2048);
                bulk_load(0, base, 2048, 4088);
                while !try_wait(4088, phase % 2) {}
            }
        }
    });
    println!("bulk_load: {:.1} GB/s", 2048.0 * 1e6 / seconds / 1e9);

    let machine8 = machine(8, Mode::Fast { workers: 0 });
    let base = at(&machine8);
    let seconds = timed(&machine8, 16, 512, move || {
        let thread = u64::from(device::thread_index());
        for round in 0..500 {
            for i in 0..30 {
                device::store(word(base, (thread * 32 + i + round) & 0xFFFF), i, WEAK);
            }
            for _ in 0..30 {
                device::warp_sync(ALL);
            }
        }
    });
    println!("8 ranks x 16 blocks x 512 threads, 1e9 stores and 1e9 collective arrivals: {seconds:.1} s");
}
