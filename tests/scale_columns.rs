//! The scales of received rows by column are those by row, bit for bit, in every layout; and nothing else is written.
use crate::assert_error;
use crate::support;

use epoxide::{
    CombineInput, Comm, Config, Dispatched, ElasticBuffer, Error, ExpertOutputs, Layout, Mode, Result, ScaleLayout,
    WireFormat, bytes_needed,
};
use support::brought::{Brought, Lie};
use support::exchange::{Tensors, check_received};
use support::reference::{Wire, World};
use support::routing::{Case, Random};
use support::{Checked, Device, by_expert, replay, scale_columns};

/// Formats with scales: few of a row and many, in whole vectors or not.
fn formats() -> Vec<(u32, WireFormat)> {
    let opaque = |scale_words| WireFormat::Opaque { row_bytes: 48, scale_words };
    vec![
        (16, WireFormat::Fp8),
        (7168, WireFormat::Fp8),
        (2192, WireFormat::Fp8),
        (7168, WireFormat::Fp8Ue8m0),
        (2192, WireFormat::Fp8Ue8m0),
        (7168, WireFormat::Mxfp8),
        (2192, WireFormat::Mxfp8),
        (24, opaque(1)),
        (24, opaque(14)),
        (24, opaque(35)),
    ]
}

/// Compares a dispatch's scales by column with those by row, and what was received with the reference.
fn compare(
    comm: &Comm,
    buffer: &mut ElasticBuffer,
    handle: &Dispatched,
    world: &World,
    wires: &[Wire],
    fresh: bool,
) -> Result<Checked> {
    let received = buffer.received(handle)?;
    let by_column = scale_columns::check(comm, buffer, handle, &received, fresh)?;
    let (layout, zeroed) = (buffer.config().layout, buffer.config().zero_padding);
    Ok(by_column.and_then(|()| match layout {
        Layout::Compact => check_received(world, wires, &world.arrivals(comm.rank()), &received),
        Layout::ExpertContiguous { alignment } => {
            by_expert::check_received(world, wires, comm.rank(), alignment, zeroed, &received)
        }
        Layout::Slab { capacity } => {
            let padding = by_expert::Padding::Slab(capacity);
            by_expert::check_received(world, wires, comm.rank(), padding, zeroed, &received)
        }
        other => Err(format!("the test knows no {other:?}")),
    }))
}

/// A dispatch, and another by its routing where padding need not be zero.
fn check(device: Device, case: &Case, layout: Layout, zeroed: bool) -> Checked {
    let first = case.world();
    let mut second = Case { data: case.data ^ 1 << 40, ..case.clone() }.world();
    second.inputs.iter_mut().zip(&first.inputs).for_each(|(input, routed)| {
        input.topk_idx.clone_from(&routed.topk_idx);
        input.topk_weights.clone_from(&routed.topk_weights);
    });
    let wires = [first.wires(), second.wires()];
    device.check(case.ranks, case.mode, |comm| {
        let rank = comm.rank();
        let config = case.config().with_layout(layout).with_scale_layout(ScaleLayout::ColumnMajor);
        let config = if zeroed { config.with_zero_padding() } else { config };
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        let tokens = case.tokens[rank as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        let brought = wires.iter().map(|w| Brought::new(&comm, &w[rank as usize], first.scale_words(), Lie::default()));
        let brought = brought.collect::<Result<Vec<_>>>()?;
        let inside = case.format.is_e4m3() && case.data.is_multiple_of(2);
        comm.barrier()?;
        tensors.fill(&first, rank)?;
        let handle = match inside {
            true => tensors.dispatch(&mut buffer, tokens)?,
            false => tensors.dispatch_rows(&mut buffer, tokens, brought[0].rows()?)?,
        };
        let mut checked = compare(&comm, &mut buffer, &handle, &first, &wires[0], true)?;
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
        if !zeroed {
            tensors.fill(&second, rank)?;
            let again = match inside {
                true => buffer.dispatch_again(&handle, &tensors.x)?,
                false => buffer.dispatch_again(&handle, brought[1].rows()?)?,
            };
            let right = compare(&comm, &mut buffer, &again, &second, &wires[1], false)?;
            checked = checked.and(right.map_err(|e| format!("again: {e}")));
            buffer.combine(&again, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
        }
        buffer.synchronize()?;
        buffer.close()?;
        Ok(checked)
    })
}

/// Slabs in which the expert that gets most has some rows of room.
fn slab(case: &Case) -> Layout {
    let mut selections = vec![0u32; case.experts as usize];
    let world = case.world();
    let all = world.inputs.iter().flat_map(|input| &input.topk_idx);
    all.filter_map(|&expert| usize::try_from(expert).ok()).for_each(|expert| selections[expert] += 1);
    Layout::Slab { capacity: selections.into_iter().max().unwrap_or(0) + 1 + case.data as u32 % 3 }
}

#[test]
fn scales_by_column_are_those_by_row() {
    let device = Device::from_env();
    for (number, (hidden, format)) in (0..).zip(formats()) {
        for mode in device.schedules([number]) {
            // More rows than a tile has, and an odd number of them.
            let case = Case::with_rows(3, hidden, format, vec![31, 0, 58], number, mode);
            let layouts = [
                (Layout::Compact, false),
                (Layout::ExpertContiguous { alignment: 8 }, false),
                (Layout::ExpertContiguous { alignment: 5 }, true),
                (slab(&case), false),
                (slab(&case), true),
            ];
            for (layout, zeroed) in layouts {
                check(device, &case, layout, zeroed)
                    .unwrap_or_else(|e| panic!("{format:?}, {layout:?}, padding zero: {zeroed}: {e}"));
            }
        }
    }
}

#[test]
fn random_scales_by_column_are_those_by_row() {
    let device = Device::from_env();
    for seed in replay::seeds(6) {
        let mut random = Random::new(seed);
        let ranks = 1 + random.below(8.min(device.max_ranks()));
        let format = match random.below(4) {
            0 => WireFormat::Fp8,
            1 => WireFormat::Fp8Ue8m0,
            2 => WireFormat::Mxfp8,
            _ => WireFormat::Opaque { row_bytes: 32, scale_words: 1 + random.below(70) },
        };
        let tokens = (0..ranks).map(|_| random.below(4) * random.below(20)).collect();
        for mode in device.schedules([seed]) {
            let case = Case::with_rows(ranks, 16 * (1 + random.below(160)), format, Clone::clone(&tokens), seed, mode);
            let case = Case { experts: 1 + random.below(20), ..case };
            let case = Case { top_k: 1 + random.below(case.experts.min(8)), ..case };
            let alignment = 1 + random.below(40);
            for layout in [Layout::Compact, Layout::ExpertContiguous { alignment }, slab(&case)] {
                let zeroed = random.below(2) == 0;
                check(device, &case, layout, zeroed).unwrap_or_else(|e| {
                    let line = replay::line(module_path!(), "random_scales_by_column_are_those_by_row", seed);
                    panic!("{case:?}, {layout:?}, {zeroed}: {e}\nreplay: {line}")
                });
            }
        }
    }
}

#[test]
fn no_row_has_no_scales() {
    let device = Device::from_env();
    for tokens in [vec![0, 0], vec![3, 0]] {
        let case = Case { holes: 16, ..Case::with_rows(2, 256, WireFormat::Fp8, tokens, 2, Mode::Fast { workers: 0 }) };
        for layout in [Layout::Compact, Layout::ExpertContiguous { alignment: 4 }, slab(&case)] {
            check(device, &case, layout, false).unwrap_or_else(|e| panic!("{layout:?}: {e}"));
        }
    }
}

/// What a buffer takes more, and what it refuses.
#[test]
fn scales_by_column_take_what_there_is_room_for() {
    let config = |format| Config::new(6, 2, 272, 5).with_format(format).with_scale_layout(ScaleLayout::ColumnMajor);
    let bytes = |config: Config| {
        let needed = bytes_needed(&config, 4, 1).unwrap();
        needed.regions.iter().find(|region| region.name == "scales by column").unwrap().bytes
    };
    let fp8 = || config(WireFormat::Fp8);
    // Three scales of a row; columns of whole 16 bytes.
    assert_eq!(bytes(fp8()), 3 * 20 * 4);
    assert_eq!(bytes(fp8().with_capacity(18)), 3 * 20 * 4);
    assert_eq!(bytes(fp8().with_scale_layout(ScaleLayout::RowMajor)), 0);
    // Two experts on the first ranks: 20 tokens with two selections, and what pads them.
    assert_eq!(bytes(fp8().with_layout(Layout::ExpertContiguous { alignment: 7 })), 3 * 52 * 4);
    assert_eq!(bytes(fp8().with_layout(Layout::Slab { capacity: 9 })), 2 * 3 * 12 * 4);
    for format in [WireFormat::Bf16, WireFormat::Opaque { row_bytes: 16, scale_words: 0 }] {
        assert_error!(
            bytes_needed(&config(format), 4, 1).unwrap_err(),
            Error::InvalidArgument { argument: "scale_layout", value, .. } if value == "ColumnMajor",
            format!("rows in {format:?} have no scales")
        );
    }
}
