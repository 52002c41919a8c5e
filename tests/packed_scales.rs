//! e4m3 with UE8M0 scales packed by four, for 128 elements and MXFP8's 32, made by dispatch: bit for bit the reference, by every kernel that makes it.
use crate::support;

use epoxide::{ElasticBuffer, IndexType, Layout, Mode, Result, ScaleLayout, WireFormat};
use support::brought::{Brought, Lie};
use support::by_expert;
use support::exchange::{Tensors, check_round_of};
use support::routing::{Case, Choice};
use support::{Checked, Device};

/// Rows of which the last group, the last word and the last 16 bytes of scales are whole or not.
const WIDTHS: [u32; 6] = [16, 48, 144, 544, 2192, 7168];

fn case(hidden: u32, format: WireFormat, data: u64, mode: Mode) -> Case {
    Case {
        ranks: 3,
        experts: 7,
        top_k: 3,
        hidden,
        format,
        num_sms: 1 + data as u32 % 2,
        tokens: vec![7, 0, 12],
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 2,
        data,
        mode,
    }
}

/// A dispatch and a replay with other rows, each with its combine. Ranks bring their rows, or have them made, by turns.
fn check(device: Device, case: &Case, layout: Layout, observed: bool) -> Checked {
    let first = case.world();
    let mut second = Case { data: case.data ^ 1 << 40, ..case.clone() }.world();
    second.inputs.iter_mut().zip(&first.inputs).for_each(|(input, routed)| {
        input.topk_idx.clone_from(&routed.topk_idx);
        input.topk_weights.clone_from(&routed.topk_weights);
    });
    let worlds = [first, second];
    let wires = [worlds[0].wires(), worlds[1].wires()];
    device.check(case.ranks, case.mode, |comm| {
        let rank = comm.rank();
        let config = case.config().with_layout(layout).with_scale_layout(ScaleLayout::ColumnMajor);
        let config = if observed { config.with_expert_statistics() } else { config };
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        let tokens = case.tokens[rank as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        let brought =
            wires.iter().map(|w| Brought::new(&comm, &w[rank as usize], worlds[0].scale_words(), Lie::default()));
        let brought = brought.collect::<Result<Vec<_>>>()?;
        comm.barrier()?;
        let (mut checked, mut last) = (Ok(()), None);
        for (round, (world, wires)) in worlds.iter().zip(&wires).enumerate() {
            tensors.fill(world, rank)?;
            let brings = (u64::from(rank) + round as u64 + case.data) % 3 == 2;
            let rows = if brings { brought[round].rows()? } else { (&tensors.x).into() };
            let handle = match &last {
                None => tensors.dispatch_rows(&mut buffer, tokens, rows)?,
                Some(handle) => buffer.dispatch_again(handle, rows)?,
            };
            let right = match layout {
                Layout::ExpertContiguous { alignment } => {
                    by_expert::check_round_of(&comm, &mut buffer, &handle, &mut tensors.y, world, wires, alignment)?
                }
                _ => check_round_of(&comm, &mut buffer, &handle, &mut tensors, world, wires)?,
            };
            checked = checked.and(right.map_err(|e| format!("round {round}: {e}")));
            last = Some(handle);
        }
        buffer.close()?;
        Ok(checked)
    })
}

#[test]
fn every_kernel_makes_what_the_reference_does() {
    let device = Device::from_env();
    let mut data = 0;
    for format in [WireFormat::Fp8Ue8m0, WireFormat::Mxfp8] {
        for hidden in WIDTHS {
            for mode in device.schedules([data]) {
                for (layout, observed) in [
                    (Layout::Compact, false),
                    (Layout::Compact, true),
                    (Layout::ExpertContiguous { alignment: 4 }, false),
                    (Layout::ExpertContiguous { alignment: 1 }, true),
                ] {
                    data += 1;
                    check(device, &case(hidden, format, data, mode), layout, observed)
                        .unwrap_or_else(|e| panic!("{format:?}, {hidden}, {layout:?}, observed: {observed}: {e}"));
                }
            }
        }
    }
}
