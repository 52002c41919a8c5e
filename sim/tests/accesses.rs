//! What an access is: each kind moves what it says, and a refused one says what it was.

mod rig;

use epoxide_sim::SimError;
use epoxide_sim::device::{self, Address, Rmw};
use rig::*;

/// Runs one thread that must fail, in every mode; `body` is given the address of 64 bytes.
fn fails(body: fn(u64), part: &str) {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 64, 256).expect("fits");
        match run(&machine, launch("wild", 1, 32, move || body(at))) {
            Err(SimError::KernelFailed { message, location, .. }) => {
                assert!(message.contains(part), "{mode:?}: no {part:?} in {message}");
                assert!(location.contains("accesses.rs"), "{mode:?}: {location}");
            }
            other => panic!("{mode:?}, {part}: {other:?}"),
        }
    }
}

#[test]
fn a_refused_access_says_what_it_was() {
    fails(
        |at| {
            device::load::<u16>(word(at, 8), WEAK);
        },
        "a load of 2 bytes at device address",
    );
    fails(|at| device::store(word(at, 8), 0u8, WEAK), "a store of 1 bytes at device address");
    fails(
        |at| {
            device::load_vector::<u32, 4>(word(at, 8), WEAK);
        },
        "a load of 4 x 4 bytes at device address",
    );
    fails(|at| device::store_vector(word(at, 8), [0u64; 2], WEAK), "a store of 2 x 8 bytes at device address");
    fails(
        |at| {
            device::rmw(word(at, 8), Rmw::Max, 0u32, RELAXED);
        },
        "a read-modify-write of 4 bytes",
    );
    fails(|at| device::red(word(at, 8), Rmw::Max, 0u32, RELAXED), "a reduction of 4 bytes");
    fails(
        |at| {
            device::compare_exchange(word(at, 8), 0u64, 0, RELAXED);
        },
        "a compare-exchange of 8 bytes",
    );
    // A vector lies at a multiple of its own size, not only of an element's.
    fails(
        |at| {
            device::load_vector::<u32, 2>(word(at + 4, 0), WEAK);
        },
        "a load of 2 x 4 bytes",
    );
    fails(
        |_| device::store_vector(shared(8), [0u32; 4], WEAK),
        "a store of 4 x 4 bytes at shared offset 0x8 is misaligned",
    );
}

#[test]
fn a_reduction_has_the_operations_that_combine() {
    fails(|at| device::red(word(at, 0), Rmw::Exchange, 1u32, RELAXED), "red with Rmw::Exchange");
    fails(|at| device::red(word(at, 0), Rmw::AddF32, 1u64, RELAXED), "a reduction of 8 bytes with Rmw::AddF32");
    fails(
        |at| {
            device::rmw(word(at, 0), Rmw::AddF32, 1u16, RELAXED);
        },
        "a read-modify-write of 2 bytes with Rmw::AddF32",
    );
}

/// Half a word of 4 bytes.
fn half(base: u64, index: u64) -> Address {
    Address { at: base + 4 * index, ..word(base, 0) }
}

#[test]
fn all_threads_combine_in_a_word_with_a_result_or_without() {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 128, 256).expect("fits");
        let combine = launch("combine", 4, 64, move || {
            let me = 64 * device::block_index() + device::thread_index();
            let signed = me.wrapping_sub(100);
            let ops = [
                (Rmw::Add, me),
                (Rmw::AddF32, (me as f32).to_bits()),
                (Rmw::MinSigned, signed),
                (Rmw::MaxSigned, signed),
                (Rmw::Or, 1 << (me % 20)),
                (Rmw::Xor, me),
            ];
            for (i, (op, value)) in (0..).zip(ops) {
                device::red(half(at, i), op, value, RELAXED);
                device::rmw(half(at, 8 + i), op, value, RELAXED);
            }
        });
        run(&machine, combine).expect("it ends");
        let sum: u32 = (0..256).sum();
        let expected = [sum, (sum as f32).to_bits(), -100i32 as u32, 155, (1 << 20) - 1, 0];
        let words = machine.read(at, 8).expect("at rest");
        let halves: Vec<u32> = words.iter().flat_map(|&word| [word as u32, (word >> 32) as u32]).collect();
        assert_eq!(halves[..6], expected, "{mode:?}, without a result");
        assert_eq!(halves[8..14], expected, "{mode:?}, with one");
    }
}

#[test]
fn a_vector_is_its_elements_in_their_order() {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 64, 256).expect("fits");
        let moves = launch("moves", 1, 32, move || {
            if device::thread_index() == 0 {
                device::store_vector(word(at, 0), [1u8, 2, 3, 4, 5, 6, 7, 8], WEAK);
                device::store_vector(word(at, 2), [9u32, 10, 11, 12], WEAK);
                let [a, b] = device::load_vector::<u64, 2>(word(at, 2), WEAK);
                device::store_vector(word(at, 4), [b, a], WEAK);
            }
        });
        run(&machine, moves).expect("it ends");
        let (low, high) = (10 << 32 | 9, 12 << 32 | 11);
        let expected = [0x0807_0605_0403_0201, 0, low, high, high, low];
        assert_eq!(machine.read(at, 6).expect("at rest"), expected, "{mode:?}");
    }
}
