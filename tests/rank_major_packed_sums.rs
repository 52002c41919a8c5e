//! What combines make of packed rows beside plain sums: by gate weights, and with a bias; bit for bit what the plain reference says.
use crate::rank_major_packed::{Packed, fitting, ways};
use crate::support;

use epoxide::{CombineInput, ElasticBuffer, ExpertOutputs, IndexType, Layout, Mode, WireFormat, bf16};
use proptest::prelude::*;
use support::by_expert::expert_outputs;
use support::combine_options::{self, Agreed, Extra, Own};
use support::exchange::Tensors;
use support::reference::{round, same};
use support::routing::{Bounds, Case, Choice};
use support::{Checked, Device, replay};

/// Sums of packed rows with gate weights, or with a bias.
fn summed_with(device: Device, case: &Case, packed: Packed, gated: bool) -> Checked {
    let world = packed.kept(&case.world()).0;
    let wires = world.wires();
    let (agreed, own) = (Agreed { gated, ..Agreed::default() }, Own { biases: usize::from(!gated), ..Own::default() });
    device.check(case.ranks, case.mode, |comm| {
        let (rank, asked) = (comm.rank(), case.world());
        let tokens = case.tokens[rank as usize];
        let mut buffer = ElasticBuffer::new(&comm, packed.config(case).with_combine_options())?;
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        let extra = Extra::new((tokens * case.hidden) as usize, case.data);
        let bias = comm.tensor(&extra.biases[0])?;
        let layout = Layout::ExpertContiguous { alignment: 1 };
        let want = combine_options::combined(&world, rank, &wires[rank as usize], layout, agreed, own, &extra);
        let want: Vec<bf16> = want.into_iter().map(round).collect();
        let mut checked = Ok(());
        for _ in 0..2 {
            tensors.fill(&asked, rank)?;
            comm.barrier()?;
            let handle = tensors.dispatch(&mut buffer, tokens)?;
            let received = buffer.received(&handle)?;
            buffer.write_expert_outputs(&handle, &expert_outputs(&world, rank, &received))?;
            let input = CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y);
            buffer.combine(&handle, if gated { input.gate_weighted() } else { input.with_bias(&bias) })?;
            let y = tensors.sums(tokens, case.hidden)?;
            checked = checked.and(same("combined rows", &y, &want, case.hidden as usize));
        }
        buffer.close()?;
        Ok(checked)
    })
}

/// Whoever hands over the rows there are hands over enough, though more came than an expert has room for.
#[test]
fn rows_of_which_selections_were_dropped_are_enough() {
    let device = Device::from_env();
    let case = Case {
        ranks: 3,
        experts: 1,
        top_k: 1,
        hidden: 8,
        format: WireFormat::Bf16,
        num_sms: 1,
        tokens: vec![3, 16, 0],
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 0,
        data: 1,
        mode: Mode::Fast { workers: 0 },
    };
    for gated in [false, true] {
        summed_with(device, &case, Packed::Dropping(2), gated).unwrap();
    }
}

/// Gate weights, and options beside them that are added behind the sum of ranks.
#[test]
fn gate_weighted_and_biased_sums_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=4, experts: 1..=24, top_k: 12, hidden: 320, tokens: 16 };
    let cases = (bounds.cases(device), ways(), any::<bool>()).prop_map(fitting);
    let test = "gate_weighted_and_biased_sums_are_bitwise_the_reference";
    replay::law(module_path!(), test, 6, cases, |(case, packed, gated)| summed_with(device, &case, packed, gated));
}
