//! The gradient of a gate-weighted combine is bitwise what the plain reference says: weighed rows of dy, the gradients of gate weights, and both
//! back at their tokens.
use crate::support;

use epoxide::{
    CombineInput, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, Layout, Mode, Result, ReturnedWeights,
    WireFormat, WireRows, bf16,
};
use proptest::prelude::*;
use support::by_expert::{Padding, expert_outputs};
use support::combine_options::{Agreed, Extra, Own, combined};
use support::exchange::Tensors;
use support::gradient::{back_at_tokens, check_weighed, gradients};
use support::reference::{round, same};
use support::routing::{Bounds, Case};
use support::{Checked, Device, replay};

const LAYOUT: Layout = Layout::ExpertContiguous { alignment: 4 };

/// A training step without its experts' own gradients: forward, gate-weighted, and back. What the experts made is saved in a tensor, or `kept` in a
/// row slot.
fn step(device: Device, case: &Case, kept: bool) -> Checked {
    let world = case.world();
    let gradients = gradients(&Case { data: case.data ^ 0xdada, ..case.clone() }.world());
    let hidden = case.hidden as usize;
    device.check(case.ranks, case.mode, |comm| {
        let rank = comm.rank();
        let config = case.config().with_layout(LAYOUT).with_returned_weights();
        let mut buffer = ElasticBuffer::new(&comm, config.with_row_slots(if kept { 2 } else { 1 }))?;
        let tokens = case.tokens[rank as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        tensors.fill(&world, rank)?;
        tensors.keep_rows = kept;
        let dy = comm.tensor(&gradients.inputs[rank as usize].x)?;
        let mut dw = comm.tensor(&vec![-3.0f32; (tokens * case.top_k) as usize])?;
        let handle = tensors.dispatch(&mut buffer, tokens)?;
        let received = buffer.received(&handle)?;
        let saved = comm.tensor(&expert_outputs(&world, rank, &received))?;
        buffer.combine(&handle, CombineInput::new(&saved, &mut tensors.y).gate_weighted())?;
        let forward = tensors.sums(tokens, case.hidden)?;
        let outputs = if kept { ExpertOutputs::InPlace } else { (&saved).into() };
        let back = buffer.dispatch_gradient(&handle, &dy, outputs)?;
        let WireRows::Bf16(rows) = buffer.received(&back)?.x else { return Ok(Err("no BF16".to_owned())) };
        buffer.write_expert_outputs(&back, &rows)?;
        let input = CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y);
        buffer.combine(&back, input.with_returned_weights(ReturnedWeights::InPlace, &mut dw))?;
        buffer.synchronize()?;
        let (dx, dw) = (tensors.sums(tokens, case.hidden)?, dw.to_vec()?);
        if kept {
            let still = buffer.received(&handle)? == received;
            buffer.release(&handle)?;
            if !still {
                return Ok(Err("what was kept is another".to_owned()));
            }
        }
        buffer.close()?;
        let (agreed, own) = (Agreed { gated: true, ..Agreed::default() }, Own::default());
        let sums = combined(&world, rank, &world.wire(rank), LAYOUT, agreed, own, &Extra::new(0, 0));
        let (want_dx, want_dw) = back_at_tokens(&world, &gradients, rank);
        Ok(same("sums", &forward, &sums.into_iter().map(round).collect::<Vec<_>>(), hidden)
            .and(check_weighed(&world, &gradients, rank, Padding::of(LAYOUT), &rows))
            .and(same("gradients of gate weights", &dw, &want_dw, case.top_k as usize))
            .and(same("gradients of tokens", &dx, &want_dx, hidden)))
    })
}

#[test]
fn random_steps_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=4, experts: 1..=24, top_k: 12, hidden: 1400, tokens: 10 };
    let cases = bounds.cases(device).prop_map(|case| {
        let hidden = case.hidden.next_multiple_of(8);
        Case { format: WireFormat::Bf16, hidden, ..case }
    });
    let cases = (cases, any::<bool>());
    replay::law(module_path!(), "random_steps_are_bitwise_the_reference", 10, cases, |(case, kept)| {
        step(device, &case, kept)
    });
}

fn config(layout: Layout) -> Config {
    Config::new(4, 2, 64, 4).with_layout(layout).with_num_sms(1)
}

/// One token of each rank, to both.
fn dispatch(buffer: &mut ElasticBuffer) -> Result<epoxide::Dispatched> {
    let comm = buffer.comm().clone();
    let (x, weights) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[1.0f32; 2])?);
    buffer.dispatch(&DispatchInput::new(1, &x, &comm.tensor(&[0i64, 3])?, &weights))
}

/// Outputs for fewer rows than were received are found on the device, and named.
#[test]
fn too_few_saved_outputs_are_a_fault() {
    let device = Device::from_env();
    let results = device.run_all(2, Mode::Fast { workers: 0 }, |comm| {
        let mut buffer = ElasticBuffer::new(&comm, config(LAYOUT).with_returned_weights())?;
        let handle = dispatch(&mut buffer)?;
        let (all, one) = (comm.tensor(&[bf16::ONE; 16 * 64])?, comm.tensor(&[bf16::ONE; 64])?);
        let mut y = comm.empty::<bf16>(64)?;
        let rows = buffer.recv_counts(&handle)?.rows;
        buffer.combine(&handle, CombineInput::new(all.prefix(u64::from(rows) * 64)?, &mut y).gate_weighted())?;
        buffer.dispatch_gradient(&handle, &one, &one)?;
        buffer.synchronize()
    });
    for error in results {
        let error = error.expect_err("rows are missing");
        assert!(
            matches!(error, Error::TooFewExpertOutputs { rows: 1, received: 4, .. })
                || error.to_string().contains("fewer expert outputs"),
            "{error}"
        );
    }
}

#[test]
fn what_has_no_such_gradient_is_refused_by_name() {
    let device = Device::from_env();
    let configs = [
        (config(Layout::Compact).with_returned_weights(), "layout = Compact: "),
        (config(LAYOUT).with_returned_weights().with_format(WireFormat::Fp8), "format = Fp8: "),
        (config(LAYOUT).with_combine_options(), "returned_weights = false: "),
        (config(LAYOUT).with_returned_weights(), "expert outputs = 63 elements: whole rows of 64"),
        (config(LAYOUT).with_returned_weights(), "expert outputs = InPlace: of a dispatch that keeps its rows"),
    ];
    for (config, wanted) in configs {
        let results = device.run_all(1, Mode::Fast { workers: 0 }, |comm| {
            let mut buffer = ElasticBuffer::new(&comm, config.clone())?;
            let handle = dispatch(&mut buffer)?;
            let x = comm.tensor(&[bf16::ONE; 64])?;
            let outputs = match wanted {
                _ if wanted.contains("63") => x.prefix(63)?.into(),
                _ if wanted.contains("InPlace") => ExpertOutputs::InPlace,
                _ => (&x).into(),
            };
            buffer.dispatch_gradient(&handle, &x, outputs).map(drop)
        });
        for error in results {
            let said = error.expect_err(wanted).to_string();
            assert!(said.starts_with(wanted), "{said}");
        }
    }
}
