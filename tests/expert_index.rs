//! The index by expert of compact rows: what it says of every routing, and who has none. That it is that of rows in all other combinations is shown by
//! `matrix`.
use crate::assert_error;
use crate::support;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Config, ElasticBuffer, Error, ExpertOutputs, Layout, Machine, MachineConfig, Mode, Result,
    WireFormat, bytes_needed,
};
use support::exchange::Tensors;
use support::fixed_places::check_index;
use support::routing::{Bounds, Case};
use support::{Checked, Device, complaints, replay};

/// Two dispatches by the same routing, the second a replay behind another dispatch where there is a slot for it.
fn check(device: Device, case: &Case, alignment: u32) -> Checked {
    let world = case.world();
    let other = Case { data: case.data ^ 1 << 40, ..case.clone() }.world();
    device.check(case.ranks, case.mode, |comm| {
        let config = case.config().with_expert_index(alignment).with_routing_slots(2);
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        let (tokens, quantizer) = (case.tokens[comm.rank() as usize], Quantizer::new(&comm)?);
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        comm.barrier()?;
        let mut checked = Ok(());
        let mut first = None;
        for world in [&world, &other, &world] {
            tensors.fill(world, comm.rank())?;
            let handle = match &first {
                Some((second, first)) if *second => buffer.dispatch_again(first, &tensors.x)?,
                _ => tensors.dispatch(&mut buffer, tokens)?,
            };
            let received = buffer.received(&handle)?;
            checked = checked.and(check_index(&comm, &quantizer, &buffer, &handle, &received, alignment)?);
            buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
            first = Some(first.map_or((false, handle), |(_, first)| (true, first)));
        }
        buffer.synchronize()?;
        buffer.close()?;
        Ok(checked)
    })
}

/// Few experts of a rank and more than a block has threads, of tokens that are few or in many tiles.
#[test]
fn the_index_is_that_of_the_rows() {
    let device = Device::from_env();
    let rows = |ranks, experts, top_k, tokens: Vec<u32>, num_sms| {
        let mode = Mode::Fast { workers: 0 };
        Case { experts, top_k, num_sms, ..Case::with_rows(ranks, 16, WireFormat::Bf16, tokens, 5, mode) }
    };
    for (case, alignment) in [
        (rows(1, 1, 1, vec![70], 3), 1),
        (rows(1, 1100, 5, vec![90], 2), 3),
        (rows(2, 9, 4, vec![150, 33], 4), 128),
        (rows(3, 2, 2, vec![5, 0, 64], 1), 8),
        (rows(2, 64, 32, vec![40, 41], 5), 7),
        (rows(2, 8, 2, vec![0, 0], 2), 8),
    ] {
        check(device, &case, alignment).unwrap_or_else(|why| panic!("{case:?}, {alignment}: {why}"));
    }
}

#[test]
fn random_routings_are_indexed() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=6, experts: 1..=40, top_k: 12, hidden: 64, tokens: 90 };
    let cases = (bounds.cases(device), 1..=200u32);
    replay::law(module_path!(), "random_routings_are_indexed", 12, cases, |(case, alignment)| {
        check(device, &case, alignment)
    });
}

/// What it takes, of bounded rows too, and whom it is not for.
#[test]
fn an_index_takes_what_rows_can_select() {
    let config = || Config::new(6, 3, 64, 5).with_expert_index(4);
    let bytes = |config: Config| {
        let needed = bytes_needed(&config, 4, 1).unwrap();
        let of = |name| needed.regions.iter().find(|region| region.name == name).unwrap().bytes;
        [of("index by expert"), of("index by expert: offsets")]
    };
    // Two experts on the first ranks: two selections of each of 20 rows, and what pads them.
    assert_eq!(bytes(config()), [(20 * 2 + 2 * 3) * 4, 3 * 4]);
    assert_eq!(bytes(config().with_capacity(7)), [(7 * 2 + 2 * 3) * 4, 3 * 4]);
    assert_eq!(bytes(Config::new(6, 3, 64, 5)), [0, 0]);
    let refused = |config: Config| bytes_needed(&config, 4, 1).unwrap_err();
    for alignment in [0, 1025] {
        assert_error!(
            refused(config().with_expert_index(alignment)),
            Error::InvalidArgument { argument: "expert_index", value, .. } if *value == alignment.to_string(),
            "1 to 1024"
        );
    }
    let others =
        [Layout::ExpertContiguous { alignment: 1 }, Layout::Slab { capacity: 3 }, Layout::RankMajor { alignment: 1 }];
    for layout in others {
        assert_error!(
            refused(config().with_layout(layout)),
            Error::InvalidArgument { argument: "expert_index", .. },
            "compact rows have an index beside them"
        );
    }
}

/// Who did not ask for one has no kernel behind a dispatch.
#[test]
fn who_asks_for_no_index_gets_no_kernel() {
    let launched = |config: Config| {
        let machine = Machine::new(MachineConfig::new(2, Mode::Fast { workers: 0 })).unwrap();
        let case = Case::with_rows(2, 64, WireFormat::Bf16, vec![3, 2], 1, Mode::Fast { workers: 0 });
        let group = epoxide::LocalGroup::on_machine(&machine).unwrap();
        complaints(group.run_all(|comm| -> Result<Checked> {
            let mut buffer = ElasticBuffer::new(&comm, config.clone())?;
            let tokens = case.tokens[comm.rank() as usize];
            let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
            tensors.fill(&case.world(), comm.rank())?;
            let handle = tensors.dispatch(&mut buffer, tokens)?;
            buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
            buffer.close()?;
            Ok(Ok(()))
        }))
        .unwrap();
        machine.launched_kernels().contains("index_rows")
    };
    let config = || Config::new(7, 3, 64, 3).with_num_sms(1);
    assert!(launched(config().with_expert_index(1)) && !launched(config()));
}

/// Behind a replay that failed every part of the index is empty, as behind a dispatch that did: who gathers by it has nothing to do.
#[test]
fn behind_a_replay_that_failed_the_index_is_empty() {
    for mode in Device::Simulated.schedules([1, 2]) {
        let machine = Machine::new(MachineConfig::new(2, mode)).unwrap();
        let case = Case { experts: 10, top_k: 3, ..Case::with_rows(2, 64, WireFormat::Bf16, vec![3, 2], 1, mode) };
        let results = epoxide::LocalGroup::on_machine(&machine).unwrap().run_all(|comm| {
            let tokens = case.tokens[comm.rank() as usize];
            let mut buffer = ElasticBuffer::new(&comm, case.config().with_expert_index(4).with_routing_slots(2))?;
            let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
            tensors.fill(&case.world(), comm.rank())?;
            let mut slots = Vec::new();
            for _ in 0..2 {
                let handle = tensors.dispatch(&mut buffer, tokens)?;
                let offsets = buffer.recv_view(&handle)?.index_offsets;
                buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
                slots.push((handle, offsets));
            }
            buffer.synchronize()?;
            // The ranks replay different handles.
            let (handle, offsets) = &slots[comm.rank() as usize];
            // SAFETY: the offsets of five experts and the end, which are this rank's own, between operations.
            let peek = || unsafe { machine.peek(*offsets, 3) }.expect("the buffer's own memory");
            let before = peek();
            buffer.dispatch_again(handle, &tensors.x)?;
            let said = buffer.synchronize();
            let after = peek();
            comm.barrier()?;
            let right = matches!(said, Err(Error::OtherHandle { .. })) && before[2] >> 32 > 0 && after == [0; 3];
            Ok(if right { Ok(()) } else { Err(format!("{said:?}: {before:x?}, then {after:x?}")) })
        });
        complaints(results).unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}
