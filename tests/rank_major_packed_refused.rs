//! What packed rows refuse, on the host and on the device, and what a buffer of them needs.
use crate::rank_major_packed::Packed;
use crate::support;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, Layout, LocalGroup, Mode, Overflow,
    Packing, WireFormat, bf16,
};
use support::Device;
use support::by_expert::check_round;
use support::exchange::Tensors;
use support::routing::Case;

/// Ranks of which one weighs its outputs and the other does not find that.
#[test]
fn ranks_that_differ_in_gate_weights_are_out_of_step() {
    let device = Device::from_env();
    let case = Case::with_rows(2, 64, WireFormat::Bf16, vec![3, 3], 4, Mode::Fast { workers: 0 });
    let results = device.run_all(2, case.mode, |comm| {
        let mut buffer = ElasticBuffer::new(&comm, Packed::Whole.config(&case).with_combine_options())?;
        let mut tensors = Tensors::empty(&comm, 3, 64, case.top_k, case.index)?;
        tensors.fill(&case.world(), comm.rank())?;
        let handle = tensors.dispatch(&mut buffer, 3)?;
        let input = CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y);
        buffer.combine(&handle, if comm.rank() == 0 { input.gate_weighted() } else { input })?;
        let found = buffer.synchronize();
        drop(buffer);
        Ok(found)
    });
    for found in results {
        let found = found.unwrap();
        assert!(matches!(found, Err(Error::OutOfStep { .. })), "{found:?}");
    }
}

/// A dispatch whose ranks find a bad selection brings nothing that is packed, and counts nothing.
#[test]
fn behind_a_dispatch_that_failed_nothing_is_packed() {
    let device = Device::from_env();
    let case = Case::with_rows(2, 64, WireFormat::Bf16, vec![3, 3], 4, Mode::Fast { workers: 0 });
    let (good, padding) = (case.world(), Packed::Whole.padding(&case));
    let mut bad = case.world();
    bad.inputs[1].topk_idx[0] = 1000;
    let results = device.run_all(2, case.mode, |comm| {
        let (rank, wires) = (comm.rank(), good.wires());
        let (mut buffer, copier) = (ElasticBuffer::new(&comm, Packed::Whole.config(&case))?, Quantizer::new(&comm)?);
        let mut tensors = Tensors::empty(&comm, 3, 64, case.top_k, case.index)?;
        tensors.fill(&good, rank)?;
        let before = check_round(&comm, &mut buffer, &mut tensors, &good, &wires, padding)?;
        tensors.fill(&bad, rank)?;
        let handle = tensors.dispatch(&mut buffer, 3)?;
        let view = buffer.recv_view(&handle)?;
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
        let (found, counts) = (buffer.synchronize(), comm.empty::<u32>(4)?);
        // SAFETY: words of the buffer's own, of which there are more, that nobody writes any more.
        unsafe { copier.copy_raw(view.counts, counts.address(), 16)? };
        let counts = counts.to_vec()?;
        buffer.reset()?;
        tensors.fill(&good, rank)?;
        let behind = check_round(&comm, &mut buffer, &mut tensors, &good, &wires, padding)?;
        buffer.close()?;
        Ok((before, found, counts[0], behind))
    });
    for result in results {
        let (before, found, rows, behind) = result.unwrap();
        assert_eq!((before, rows, behind), (Ok(()), 0, Ok(())));
        assert!(matches!(found, Err(Error::IndexOutOfRange { .. })), "{found:?}");
    }
}

/// What does not go together is refused by name, with the rule.
#[test]
fn what_cannot_be_packed_is_refused() {
    let said = |config: Config| epoxide::bytes_needed(&config, 2, 4).map(|_| ()).unwrap_err().to_string();
    let new = || Config::new(8, 2, 64, 16);
    let fixed = || new().with_layout(Layout::RankMajor { alignment: 1 });
    let slab = |capacity_per_source| Packing::Slab { capacity_per_source };
    epoxide::bytes_needed(&fixed().with_packing(Packing::ExpertContiguous), 2, 4).unwrap();
    epoxide::bytes_needed(&fixed().with_packing(slab(16)), 2, 4).unwrap();
    epoxide::bytes_needed(&fixed().with_packing(slab(3)).with_overflow(Overflow::Drop), 2, 4).unwrap();
    for (config, rule) in [
        (
            new().with_packing(slab(16)),
            "packing = Slab { capacity_per_source: 16 }: rows that came to fixed places are packed",
        ),
        (
            new().with_layout(Layout::Slab { capacity: 4 }).with_packing(Packing::ExpertContiguous),
            "packing = ExpertContiguous: rows that came to fixed places are packed",
        ),
        (
            fixed().with_packing(slab(15)),
            "capacity_per_source = 15: max_tokens_per_rank = 16, or selections are dropped",
        ),
        (
            fixed().with_packing(slab(0)).with_overflow(Overflow::Drop),
            "capacity_per_source = 0: of a source rank's rows",
        ),
        (fixed().with_packing(slab(17)), "capacity_per_source = 17: of a source rank's rows"),
        (fixed().with_packing(slab(16)).with_returned_weights(), "not where weights travel back"),
        (
            fixed().with_packing(Packing::ExpertContiguous).with_overflow(Overflow::Drop),
            "overflow = Drop: selections are dropped",
        ),
        (fixed().with_overflow(Overflow::Drop), "overflow = Drop: selections are dropped"),
    ] {
        let said = said(config);
        assert!(said.contains(rule), "{said}");
    }
    let refused = LocalGroup::simulated(1, Mode::Fast { workers: 0 }).unwrap().run(|comm| {
        let mut buffer = ElasticBuffer::new(&comm, fixed().with_packing(slab(16)).with_combine_options())?;
        let (x, idx) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[0i64, 1])?);
        let handle = buffer.dispatch(&DispatchInput::new(1, &x, &idx, &comm.tensor(&[1.0f32; 2])?))?;
        let mut y = comm.empty::<bf16>(64)?;
        let mut refused = Vec::new();
        // Of so many rows nobody knows yet whether they are enough.
        let few = comm.tensor(&[bf16::ONE; 64])?;
        refused.push(buffer.combine(&handle, CombineInput::new(&few, &mut y)).unwrap_err().to_string());
        let both = CombineInput::new(ExpertOutputs::InPlace, &mut y).gate_weighted().with_bias(&x);
        refused.push(buffer.combine(&handle, both).unwrap_err().to_string());
        refused.push(buffer.lend_expert_outputs().unwrap_err().to_string());
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
        buffer.close()?;
        Ok(refused)
    });
    let refused = refused.unwrap().remove(0);
    for (said, rule) in refused.iter().zip([
        "expert outputs = 1 rows: one row for each of the 128 that there is room for",
        "bias = 1: not beside gate weights, where rows of fixed places are packed",
        "RankMajor",
    ]) {
        assert!(said.contains(rule), "{said}");
    }
}

/// The memory is that of rows by expert, beside that of rows in fixed places.
#[test]
fn packed_rows_are_in_what_a_buffer_needs() {
    let fixed = Config::new(256, 8, 7168, 128).with_layout(Layout::RankMajor { alignment: 128 });
    let needed = |config: &Config| epoxide::bytes_needed(config, 2, 16).unwrap();
    let packed = fixed.clone().with_packing(Packing::ExpertContiguous);
    let more = needed(&packed).private - needed(&fixed).private;
    let rows = 2 * 128 * 8 + 128 * 127;
    // The rows, their outputs, and 16 bytes for each beside them.
    assert_eq!(more / rows, 2 * 14336 + 16);
    assert_eq!(needed(&packed).window, needed(&fixed).window);
    assert!(needed(&packed).regions.iter().any(|region| region.name == "packed expert outputs"));
}
