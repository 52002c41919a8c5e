//! Device memory and windows: every access of `Global` and `Symmetric`, in every element type.
mod rig;

use epoxide_dsl::prelude::*;
use rig::*;

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct CopyArgs {
    from: Global<u8>,
    /// `[TYPES][BYTES]`.
    to: Global<u8>,
    /// `[TYPES][BYTES]`.
    window: Symmetric<u8>,
}

const BYTES: u64 = 1024;
const TYPES: u64 = 9;

macro_rules! reverse_as {
    ($args:ident, $at:literal, $t:ty) => {{
        let n = BYTES / size_of::<$t>() as u64;
        let mut i = u64::from(thread::index());
        while i < n {
            let value = $args.from.cast::<$t>().load_weak(n - 1 - i);
            $args.to.at($at * BYTES).cast::<$t>().store_weak(i, value);
            $args.window.at($at * BYTES).cast::<$t>().store_weak(i, value);
            // What this thread wrote it reads back, through the other kind of address.
            let again = $args.window.at($at * BYTES).cast::<$t>().load_weak(i);
            $args.to.at($at * BYTES).cast::<$t>().store_weak(i, again);
            i += 64;
        }
    }};
}

#[kernel(threads = 64)]
fn reverse_all(args: CopyArgs) {
    reverse_as!(args, 0, u8);
    reverse_as!(args, 1, E4m3);
    reverse_as!(args, 2, u16);
    reverse_as!(args, 3, Bf16);
    reverse_as!(args, 4, u32);
    reverse_as!(args, 5, i32);
    reverse_as!(args, 6, f32);
    reverse_as!(args, 7, u64);
    reverse_as!(args, 8, i64);
}

#[test]
fn weak_accesses_move_every_type_whole() {
    for mode in modes() {
        let machine = machine(1, mode);
        let words: Vec<u64> = (0..BYTES / 8).map(scramble).collect();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let from = filled(&machine, 0, &words);
        let [to, window] = [0; 2].map(|_| zeros(&machine, 0, (TYPES * BYTES / 8) as usize));
        let args = CopyArgs { from: global(from), to: global(to), window: symmetric(window) };
        run(&machine, [reverse_all.simulated(1, 0, args)]).expect("it ends");
        for (place, out) in [("global", to), ("window", window)] {
            for (i, size) in [1, 1, 2, 2, 4, 4, 4, 8, 8].into_iter().enumerate() {
                let expected: Vec<u8> = bytes.chunks(size).rev().flatten().copied().collect();
                let found = machine.read(out + BYTES * i as u64, words.len()).expect("in bounds");
                let found: Vec<u8> = found.into_iter().flat_map(u64::to_le_bytes).collect();
                assert_eq!(found, expected, "{mode:?}, {place}, type {i}");
            }
        }
    }
}

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct VectorArgs {
    from: Global<U32x4>,
    window: Symmetric<U32x4>,
    to: Global<U32x4>,
    n: u64,
}

#[kernel(threads = 32)]
fn vectors(args: VectorArgs) {
    let mut i = u64::from(thread::index());
    while i < args.n {
        let [a, b, c, d] = args.from.load_weak(i);
        args.window.store_weak(i, [d, a, b, c]);
        let [a, b, c, d] = args.window.load_weak_streaming(i);
        let same = args.window.load_weak(i) == [a, b, c, d] && args.from.load_weak_streaming(i) == [b, c, d, a];
        args.to.store_weak(i, if same { [a, b, c, d] } else { [0; 4] });
        i += 32;
    }
}

#[test]
fn vectors_move_whole() {
    for mode in modes() {
        let machine = machine(1, mode);
        let words: Vec<u32> = (0..400).map(|i| scramble(i) as u32).collect();
        let [window, to] = [0; 2].map(|_| zeros(&machine, 0, 200));
        let args = VectorArgs {
            from: global(filled(&machine, 0, &pack(&words))),
            window: symmetric(window),
            to: global(to),
            n: 100,
        };
        run(&machine, [vectors.simulated(1, 0, args)]).expect("it ends");
        let expected: Vec<u32> = words.chunks(4).flat_map(|v| [v[3], v[0], v[1], v[2]]).collect();
        assert_eq!(read_u32(&machine, to, 400), expected, "{mode:?}");
    }
}

/// Words that all threads of all ranks change at once, and what each saw.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct AtomicArgs {
    /// At rank 0: `[8]`.
    shared: Symmetric<u64>,
    /// This rank's: `[8]`.
    own: Global<u64>,
    /// How often a value before an addition was seen, `[ranks * threads]`.
    seen: Symmetric<u32>,
    first: u64,
    threads: u64,
}

#[kernel(threads = 64)]
fn atomics(args: AtomicArgs) {
    let me = args.first + u64::from(thread::block_index() * 64 + thread::index());
    let before = args.shared.fetch_add_acq_rel::<System>(0, 2);
    args.seen.fetch_add_acq_rel::<System>(before / 2, 1);
    args.shared.fetch_min_relaxed::<System>(1, 1000 - me);
    // One wins, and the others are told who.
    let winner = args.shared.compare_exchange_acq_rel::<System>(2, 0, me + 1);
    if winner == 0 {
        args.shared.fetch_add_acq_rel::<System>(3, 1);
    }
    // The halves of a word, and its signed reading.
    let halves = args.shared.at(4).cast::<u32>();
    halves.fetch_add_acq_rel::<System>(0, 1);
    halves.cast::<i32>().fetch_add_acq_rel::<System>(1, -1);
    // On this GPU alone.
    args.own.fetch_add_acq_rel::<Gpu>(0, me);
    args.own.fetch_min_relaxed::<Gpu>(1, me);
    args.own.compare_exchange_acq_rel::<Gpu>(2, 1, me);
    // In the order of the type: as a u32, -1 is large.
    args.own.at(3).cast::<u32>().fetch_min_relaxed::<Gpu>(0, u32::MAX);
    args.own.at(3).cast::<u32>().fetch_min_relaxed::<Gpu>(1, (me % 7 + 3) as u32);
}

#[test]
fn atomics_lose_nothing_between_the_threads_of_two_ranks() {
    for mode in modes() {
        let machine = machine(2, mode);
        let shared = filled(&machine, 0, &[0, u64::MAX, 0, 0, 0, 0, 0, 0]);
        let seen = zeros(&machine, 0, 128);
        let own = [0, 1].map(|rank| filled(&machine, rank, &[0, u64::MAX, 5, 0xffff_ffff_0000_0007, 0, 0, 0, 0]));
        run_on_all(&machine, |rank| {
            let args = AtomicArgs {
                shared: symmetric(shared),
                own: global(own[rank as usize]),
                seen: symmetric(seen),
                first: u64::from(rank) * 128,
                threads: 256,
            };
            vec![atomics.simulated(2, 0, args)]
        });
        let found = machine.read(shared, 5).expect("in bounds");
        assert_eq!((found[0], found[1], found[3]), (512, 1000 - 255, 1), "{mode:?}");
        assert!((1..=256).contains(&found[2]), "{mode:?}: winner {}", found[2]);
        assert_eq!(found[4], 256 | u64::from(-256i32 as u32) << 32, "{mode:?}");
        assert_eq!(read_u32(&machine, seen, 256), [1; 256], "{mode:?}: each value before was seen once");
        for (rank, own) in own.into_iter().enumerate() {
            let first = 128 * rank as u64;
            let sum = (first..first + 128).sum();
            let found = machine.read(own, 4).expect("in bounds");
            assert_eq!(found, [sum, first, 5, 7 | 3 << 32], "{mode:?}, rank {rank}");
        }
    }
}

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct StrongArgs {
    words: Global<u64>,
    window: Symmetric<u64>,
}

#[kernel(threads = 32)]
fn strong(args: StrongArgs) {
    if thread::index() == 0 {
        args.words.store_relaxed::<Gpu>(0, 10);
        args.words.store_release::<Gpu>(1, args.words.load_relaxed::<Gpu>(0) + 1);
        args.window.store_relaxed::<System>(2, args.words.load_acquire::<Gpu>(1) + 1);
        args.window.store_release::<System>(3, args.window.load_relaxed::<System>(2) + 1);
        args.words.store_relaxed::<System>(4, args.window.load_acquire::<System>(3) + 1);
        args.words.cast::<i32>().store_release::<System>(10, -7);
        args.words.cast::<u32>().store_relaxed::<System>(11, args.words.cast::<i32>().load_acquire::<Gpu>(10) as u32);
    }
}

#[test]
fn strong_accesses_read_what_they_wrote_at_every_scope() {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = zeros(&machine, 0, 6);
        let args = StrongArgs { words: global(at), window: symmetric(at) };
        run(&machine, [strong.simulated(1, 0, args)]).expect("it ends");
        let minus = u64::from(-7i32 as u32);
        assert_eq!(machine.read(at, 6).expect("in bounds"), [10, 11, 12, 13, 14, minus | minus << 32], "{mode:?}");
    }
}

#[test]
fn addresses_count_in_elements_of_their_type() {
    let x: Global<f32> = global(0x1000);
    assert_eq!(
        (x.at(3).address(), x.cast::<U32x4>().at(2).address(), x.cast::<u8>().at(7).address()),
        (0x100c, 0x1020, 0x1007)
    );
    assert_eq!(Optional::some(x).get().map(Global::address), Some(0x1000));
    assert!(Optional::<u64>::none().get().is_none());
    assert_eq!([0, 2].map(|row| x.rows(5).row(row).at(1).address()), [0x1004, 0x102c]);
    let y: Symmetric<Bf16> = symmetric(0x2000);
    assert_eq!((y.at(5).address(), y.at(5).as_global().address()), (0x200a, 0x200a));
    assert_eq!(format!("{x:?} {y:?} {:?}", Region::<u64>::new(0x40)), "Global(0x1000) Symmetric(0x2000) Region(0x40)");
    assert_eq!(Region::<u64>::new(0x40).offset(), 0x40);
}

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct OptionalArgs {
    /// `[1]`, or absent.
    out: Optional<u64>,
    /// `[1]`.
    there: Global<u64>,
}

#[kernel(threads = 32)]
fn writes_if_it_may(args: OptionalArgs) {
    if thread::index() == 7 {
        args.there.store_weak(0, 1 + u64::from(args.out.get().is_some()));
        if let Some(out) = args.out.get() {
            out.store_weak(0, 9);
        }
    }
}

#[test]
fn an_optional_argument_is_an_address_or_none() {
    for mode in modes() {
        let machine = machine(1, mode);
        let [out, there] = [0; 2].map(|_| zeros(&machine, 0, 1));
        for (optional, said, written) in [(Optional::none(), 1, 0), (Optional::some(global(out)), 2, 9)] {
            let args = OptionalArgs { out: optional, there: global(there) };
            run(&machine, [writes_if_it_may.simulated(1, 0, args)]).expect("it ends");
            assert_eq!(machine.read(there, 1).expect("in bounds"), [said], "{mode:?}");
            assert_eq!(machine.read(out, 1).expect("in bounds"), [written], "{mode:?}");
        }
    }
}

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct WindowArgs {
    window: Window,
    /// `[ranks]` of every rank: who wrote here.
    from: Region<u64>,
    /// `[1]`: a word of this rank's own.
    own: Region<u32>,
}

#[kernel(threads = 32)]
fn greet(args: WindowArgs) {
    let (peer, me) = (thread::index(), args.window.me.0);
    if peer < args.window.peers {
        args.window.of(Peer(peer), args.from).store_weak(me, u64::from(100 * me + peer));
    } else if peer == args.window.peers {
        args.window.own(args.own).store_weak(0, me + 1);
    }
}

#[test]
fn a_region_is_at_the_same_offset_in_every_ranks_window() {
    const RANKS: u32 = 4;
    for mode in modes() {
        let machine = machine(RANKS, mode);
        let windows = Windows::new(&machine, 512);
        run_on_all(&machine, |rank| {
            let args = WindowArgs {
                window: windows.of(rank),
                from: Region::new(FREE),
                own: Region::new(FREE + 8 * u64::from(RANKS)),
            };
            vec![greet.simulated(1, 0, args)]
        });
        for (rank, base) in (0u64..).zip(&windows.bases) {
            let expected: Vec<u64> = (0..u64::from(RANKS)).map(|from| 100 * from + rank).chain([rank + 1]).collect();
            assert_eq!(machine.read(base + FREE, 5).expect("in bounds"), expected, "{mode:?}, rank {rank}");
        }
    }
}

/// Words that all threads of two ranks raise, lower and add to at once.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct ExtremeArgs {
    /// At rank 0: `[4]`.
    shared: Symmetric<u64>,
    /// This rank's: `[4]`.
    own: Global<u64>,
    first: u32,
    reserved: u32,
}

#[kernel(threads = 64)]
fn extremes(args: ExtremeArgs) {
    let me = args.first + thread::block_index() * 64 + thread::index();
    // From -100 to 155 over both ranks.
    let signed = me as i32 - 100;
    args.shared.fetch_max_relaxed::<System>(0, u64::from(me) << 33);
    args.shared.at(1).cast::<i32>().fetch_max_relaxed::<System>(0, signed);
    args.shared.at(1).cast::<i32>().fetch_min_relaxed::<System>(1, signed);
    args.shared.at(2).cast::<u32>().fetch_max_relaxed::<System>(0, signed as u32);
    args.shared.at(3).cast::<f32>().fetch_add_relaxed::<System>(0, 0.5);
    args.own.at(1).cast::<i32>().fetch_max_relaxed::<Gpu>(0, -7 - (me % 5) as i32);
    // Lanes see different values before, each once: the additions are whole.
    let before = args.own.at(2).cast::<f32>().fetch_add_relaxed::<Gpu>(0, 1.0);
    args.own.at(4).cast::<u32>().fetch_add_acq_rel::<Gpu>(before as u32, 1);
    let most = Shared::<u32>::dynamic(0);
    if thread::index() == 0 {
        most.store_weak(1, 5);
    }
    block::sync();
    let _ = most.fetch_max_relaxed(1, thread::index() * 7 % 64 + 1);
    block::sync();
    args.own.fetch_add_acq_rel::<Gpu>(0, u64::from(most.load_weak(1)));
}

#[test]
fn the_largest_and_the_sum_of_all_threads_are_kept() {
    for mode in modes() {
        let machine = machine(2, mode);
        // -1000 below a 1000; both halves of a word are another type's.
        let both = u64::from(-1000i32 as u32) | 1000 << 32;
        let shared = filled(&machine, 0, &[5, both, 0, u64::from(2.25f32.to_bits())]);
        let own = [0, 1].map(|rank| {
            let words = [0, both, 0, 0].into_iter().chain([0; 64]);
            filled(&machine, rank, &words.collect::<Vec<u64>>())
        });
        run_on_all(&machine, |rank| {
            let args = ExtremeArgs {
                shared: symmetric(shared),
                own: global(own[rank as usize]),
                first: 128 * rank,
                reserved: 0,
            };
            vec![extremes.simulated(2, 8, args)]
        });
        let found = machine.read(shared, 4).expect("in bounds");
        assert_eq!(found[0], 255 << 33, "{mode:?}");
        assert_eq!(found[1], 155 | u64::from(-100i32 as u32) << 32, "{mode:?}");
        assert_eq!(found[2], u64::from(-1i32 as u32), "{mode:?}");
        assert_eq!(found[3], u64::from((2.25f32 + 128.0).to_bits()), "{mode:?}: halves add up exactly");
        for own in own {
            let found = machine.read(own, 3).expect("in bounds");
            assert_eq!(found[0], 128 * 64, "{mode:?}: the largest in shared memory");
            assert_eq!(found[1], u64::from(-7i32 as u32) | 1000 << 32, "{mode:?}");
            assert_eq!(found[2], u64::from(128f32.to_bits()), "{mode:?}");
            assert_eq!(read_u32(&machine, own + 32, 128), [1; 128], "{mode:?}: each value before was seen once");
        }
    }
}

#[kernel(threads = 32)]
fn add_least(args: StrongArgs) {
    if thread::index() < 3 {
        let to = args.words.at(thread::index()).cast::<f32>();
        to.fetch_add_relaxed::<Gpu>(0, to.load_weak(1));
    }
}

#[test]
fn an_atomic_addition_flushes_subnormal_numbers_as_the_gpu_does() {
    let machine = machine(1, modes()[1]);
    let pair = |to: f32, add: f32| u64::from(to.to_bits()) | u64::from(add.to_bits()) << 32;
    let least = f32::MIN_POSITIVE;
    // A subnormal sum; a subnormal term before and after.
    let words = [pair(1.5 * least, -least), pair(least / 2.0, 2.0 * least), pair(2.0 * least, least / 2.0)];
    let at = filled(&machine, 0, &words);
    run(&machine, [add_least.simulated(1, 0, StrongArgs { words: global(at), window: symmetric(at) })])
        .expect("it ends");
    let found: Vec<u32> = machine.read(at, 3).expect("in bounds").into_iter().map(|word| word as u32).collect();
    assert_eq!(found, [0.0, 2.0 * least, 2.0 * least].map(f32::to_bits));
}
