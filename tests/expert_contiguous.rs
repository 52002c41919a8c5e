//! Where rows lie by expert, dispatch and combine are bitwise what the plain reference says, for every shape, routing, alignment and
//! schedule.
mod support;

use epoxide::{Config, ElasticBuffer, Layout, Mode, WireFormat};
use proptest::prelude::*;
use support::by_expert::check_round;
use support::exchange::Tensors;
use support::reference::Wire;
use support::routing::{Bounds, Case, Choice};
use support::{Device, replay};

/// A case, its alignment, and whether padding is zeroed.
type Aligned = (Case, u32, bool);

fn config(&(ref case, alignment, zeroed): &Aligned) -> Config {
    let config = case.config().with_layout(Layout::ExpertContiguous { alignment });
    if zeroed { config.with_zero_padding() } else { config }
}

/// Runs a case on a group of its own, `rounds` times with other data.
fn check(device: Device, aligned: &Aligned, rounds: u64) -> Result<(), String> {
    let (case, alignment, _) = aligned;
    let worlds: Vec<_> =
        (0..rounds).map(|round| Case { data: case.data.wrapping_add(round), ..case.clone() }.world()).collect();
    let wires: Vec<Vec<Wire>> =
        worlds.iter().map(|world| (0..case.ranks).map(|rank| world.wire(rank)).collect()).collect();
    device.check(case.ranks, case.mode, |comm| {
        let mut buffer = ElasticBuffer::new(&comm, config(aligned))?;
        let tokens = case.tokens[comm.rank() as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        let mut checked = Ok(());
        for (world, wires) in worlds.iter().zip(&wires) {
            tensors.fill(world, comm.rank())?;
            comm.barrier()?;
            let round = check_round(&comm, &mut buffer, &mut tensors, world, wires, *alignment)?;
            checked = checked.and(round);
        }
        buffer.close()?;
        Ok(checked)
    })
}

fn aligned(cases: impl Strategy<Value = Case>) -> impl Strategy<Value = Aligned> {
    (cases, prop_oneof![Just(1), Just(8), Just(128), 1..=20u32], any::<bool>())
}

#[test]
fn random_routings_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=8, experts: 1..=64, top_k: 32, hidden: 320, tokens: 24 };
    let cases = aligned(bounds.cases(device));
    replay::law(module_path!(), "random_routings_are_bitwise_the_reference", 24, cases, |case| check(device, &case, 2));
}

#[test]
fn many_experts_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=8, experts: 1..=2048, top_k: 16, hidden: 64, tokens: 60 };
    let cases = aligned(bounds.cases(device)).prop_map(|(case, alignment, zeroed)| (case, alignment.min(8), zeroed));
    replay::law(module_path!(), "many_experts_are_bitwise_the_reference", 8, cases, |case| check(device, &case, 1));
}

/// One expert, all tokens; every token the same experts; none at all; top-1.
#[test]
fn extremes_are_bitwise_the_reference() {
    let device = Device::from_env();
    let base = Case {
        ranks: 4,
        experts: 16,
        top_k: 8,
        hidden: 256,
        format: WireFormat::Bf16,
        num_sms: 2,
        tokens: vec![40, 0, 17, 3],
        index: epoxide::IndexType::I64,
        choice: Choice::Uniform,
        holes: 0,
        data: 7,
        mode: Mode::Fast { workers: 0 },
    };
    let cases = [
        Case { experts: 1, top_k: 1, ..base.clone() },
        Case { choice: Choice::Same, ..base.clone() },
        Case { holes: 16, ..base.clone() },
        Case { tokens: vec![0; 4], ..base.clone() },
        Case { top_k: 1, ..base.clone() },
        Case { top_k: 16, ..base.clone() },
        // More ranks than experts: some own none.
        Case { experts: 3, top_k: 2, ..base.clone() },
    ];
    for case in cases {
        for (format, alignment) in [(WireFormat::Bf16, 1), (WireFormat::Fp8, 64)] {
            let case = (Case { format, ..case.clone() }, alignment, true);
            check(device, &case, 2).unwrap_or_else(|error| panic!("{case:?}: {error}"));
        }
    }
}
