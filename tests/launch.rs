//! Kernels of the caller's own run between a dispatch and its combine, in that order, and what cannot run is refused by name.
use crate::assert_error;
use crate::support;

use std::time::Duration;

use custom_kernel_device::gated_experts::{GatedExpertsArgs, gated_experts};
use epoxide::kernels::{Family, Global};
use epoxide::{
    CombineInput, Comm, Config, ElasticBuffer, Error, ExpertOutputs, IndexType, Layout, LocalGroup, Machine,
    MachineConfig, Mode, Result, WireFormat, bf16,
};
use proptest::prelude::*;
use support::errors::{dispatch, run, schedules, small};
use support::exchange::Tensors;
use support::gated::{KERNELS, combined, enqueue, factors};
use support::reference::same;
use support::routing::{Bounds, Case, Choice};
use support::{Checked, Device, complaints, replay};

/// Kernels without PTX, for the simulated GPU.
mod own {
    use epoxide_dsl::prelude::*;

    #[derive(Clone, Copy, KernelArg)]
    #[repr(C)]
    pub struct CountArgs {
        /// `[1]`: each block adds one.
        pub blocks: Global<u32>,
    }

    /// Counts its blocks; it could have a grid barrier.
    #[kernel(threads = 32, blocks_per_sm = 2, cooperative)]
    pub fn count_together(args: CountArgs) {
        if thread::index() == 0 {
            args.blocks.fetch_add_acq_rel::<Gpu>(0, 1);
        }
    }

    /// The name of a kernel of another crate's, with another argument.
    #[kernel(threads = 128)]
    pub fn gated_experts(args: CountArgs) {
        args.blocks.store_weak(0, 0);
    }
}
const OWN: &[Family] = &[Family::new("own", &["count_together"], "")];

fn layout(config: Config, by_expert: Option<u32>) -> Config {
    match by_expert {
        Some(alignment) => config.with_layout(Layout::ExpertContiguous { alignment }),
        None => config,
    }
}

/// Rounds on one buffer that are enqueued one behind the other: nothing waits for a kernel but the stream.
fn rounds(comm: &Comm, case: &Case, by_expert: Option<u32>, rounds: u64, grid: u32) -> Result<Checked> {
    let (rank, tokens) = (comm.rank(), case.tokens[comm.rank() as usize]);
    comm.load(KERNELS)?;
    let mut buffer = ElasticBuffer::new(comm, layout(case.config(), by_expert))?;
    let factors = factors(comm, case.experts)?;
    let mut prepared = Vec::new();
    for round in 0..rounds {
        let world = Case { data: case.data.wrapping_add(round), ..case.clone() }.world();
        let mut tensors = Tensors::empty(comm, tokens, case.hidden, case.top_k, case.index)?;
        tensors.fill(&world, rank)?;
        prepared.push((world, tensors));
    }
    comm.barrier()?;
    for (_, tensors) in &mut prepared {
        let handle = tensors.dispatch(&mut buffer, tokens)?;
        enqueue(&buffer, &handle, &factors, grid)?;
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
    }
    buffer.synchronize()?;
    let mut checked = Ok(());
    for (round, (world, tensors)) in prepared.iter().enumerate() {
        let want = combined(world, rank, by_expert.is_some());
        let right = same("sums", &tensors.sums(tokens, case.hidden)?, &want, case.hidden as usize);
        checked = checked.and(right.map_err(|why| format!("round {round}: {why}")));
    }
    buffer.close()?;
    Ok(checked)
}

#[test]
fn a_kernel_between_dispatch_and_combine_is_in_their_order() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=5, experts: 1..=24, top_k: 8, hidden: 320, tokens: 24 };
    let cases = (bounds.cases(device), proptest::option::of(1..=16u32), 1..=5u32)
        .prop_map(|(case, by_expert, grid)| (Case { format: WireFormat::Bf16, ..case }, by_expert, grid));
    let name = "a_kernel_between_dispatch_and_combine_is_in_their_order";
    replay::law(module_path!(), name, 24, cases, |(case, by_expert, grid)| {
        device.check(case.ranks, case.mode, |comm| rounds(&comm, &case, by_expert, 3, grid))
    });
}

/// More launches than the driver's queue of a stream holds: the host waits for its stream, and nobody for the driver.
#[test]
fn many_launches_are_paced() {
    let device = Device::from_env();
    let case = Case {
        ranks: 2,
        experts: 4,
        top_k: 2,
        hidden: 64,
        format: WireFormat::Bf16,
        num_sms: 2,
        tokens: vec![3, 2],
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 0,
        data: 5,
        mode: Mode::Fast { workers: 0 },
    };
    let launches = if device == Device::Cuda { 3000 } else { 200 };
    let checked = device.check(case.ranks, case.mode, |comm| {
        comm.load(KERNELS)?;
        let mut buffer = ElasticBuffer::new(&comm, case.config())?;
        let (world, factors) = (case.world(), factors(&comm, case.experts)?);
        let tokens = case.tokens[comm.rank() as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        tensors.fill(&world, comm.rank())?;
        comm.barrier()?;
        if comm.rank() == 1 {
            // The other rank's launches lie behind a dispatch that waits for this one.
            std::thread::sleep(Duration::from_millis(200));
        }
        let handle = tensors.dispatch(&mut buffer, tokens)?;
        for _ in 0..launches {
            enqueue(&buffer, &handle, &factors, 2)?;
        }
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
        buffer.synchronize()?;
        let right = same("sums", &tensors.sums(tokens, case.hidden)?, &combined(&world, comm.rank(), false), 64);
        buffer.close()?;
        Ok(right)
    });
    checked.expect("every launch is as good as one");
}

#[test]
fn kernels_may_be_loaded_while_operations_are_in_flight() {
    for mode in schedules() {
        let checked = complaints(run(2, mode, |comm| {
            let mut buffer = small(&comm)?;
            // One rank is late: the other's dispatch waits for it while both load.
            comm.delay(Duration::from_millis(1 + 20 * u64::from(comm.rank())))?;
            let handle = dispatch(&mut buffer, &comm, 4, &[0i64, 5, 1, 6, 2, 7, 3, 4])?;
            comm.load(KERNELS)?;
            comm.load(KERNELS)?;
            enqueue(&buffer, &handle, &factors(&comm, 8)?, 1)?;
            let mut y = comm.empty::<bf16>(4 * 64)?;
            buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            buffer.synchronize()?;
            buffer.close()?;
            Ok(if y.to_vec()?.iter().all(|y| y.to_f32() > 0.5) { Ok(()) } else { Err("no sum".to_owned()) })
        }));
        checked.unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}

#[test]
fn what_cannot_be_launched_is_refused_by_kernel_argument_and_rule() {
    for result in run(2, Mode::Fast { workers: 0 }, |comm| {
        let word = comm.tensor(&[0u32; 4])?;
        // SAFETY: a word of this tensor.
        let count = own::CountArgs { blocks: unsafe { Global::from_raw(word.address()) } };
        // SAFETY: it is refused, and launches nothing.
        let unknown = unsafe { comm.launch(&own::count_together, 1, 0, &count) };
        assert_error!(
            unknown.expect_err("it is not loaded"),
            Error::InvalidArgument { argument: "kernel", .. },
            "kernel = count_together: is of a family that Comm::load has loaded on this rank, and those are: none"
        );
        comm.load(KERNELS)?;
        // SAFETY: as above.
        let other_argument = unsafe { comm.launch(&own::gated_experts, 1, 0, &count) };
        assert_error!(
            other_argument.expect_err("the text is another kernel's"),
            Error::InvalidArgument { argument: "args", .. },
            "args = 8 bytes: gated_experts takes 64 bytes in the PTX of the family \"custom-kernel\""
        );
        let mut buffer = small(&comm)?;
        let handle = dispatch(&mut buffer, &comm, 1, &[0i64, 1])?;
        let grid = enqueue(&buffer, &handle, &factors(&comm, 8)?, 0);
        assert_error!(
            grid.expect_err("no block"),
            Error::InvalidArgument { argument: "grid", .. },
            "grid = 0: a launch of gated_experts has 1 to 2147483647 blocks"
        );
        let arrays = buffer.recv_arrays(&handle)?;
        let args = GatedExpertsArgs {
            x: arrays.x.global()?,
            topk_idx: arrays.topk_idx.global()?,
            topk_weights: arrays.topk_weights.global()?,
            row_count: arrays.row_count.global()?,
            factors: arrays.topk_weights.global()?,
            y: arrays.expert_outputs.global()?,
            hidden: 0,
            selections: 0,
            stride: 0,
        };
        // SAFETY: as above.
        let shared = unsafe { comm.launch(&gated_experts, 1, 1 << 20, &args) };
        assert_error!(
            shared.expect_err("no block has a MiB"),
            Error::InvalidArgument { argument: "shared_bytes", .. },
            "shared_bytes = 1048576: a block of gated_experts may have "
        );
        assert_error!(
            arrays.x.global::<f32>().expect_err("they are not"),
            Error::InvalidArgument { argument: "dtype", .. },
            "dtype = f32: the array's elements are bf16"
        );
        let mut y = comm.empty::<bf16>(64)?;
        // Right at last.
        enqueue(&buffer, &handle, &factors(&comm, 8)?, 1)?;
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
        assert_error!(
            buffer.recv_arrays(&handle).expect_err("it is combined"),
            Error::WrongOrder { call: "recv_arrays", .. },
            "its rows are combined once"
        );
        let next = dispatch(&mut buffer, &comm, 1, &[0i64, 1])?;
        assert_error!(buffer.recv_arrays(&handle).expect_err("it is stale"), Error::StaleHandle { .. }, "stale handle");
        buffer.recv_arrays(&next)?;
        buffer.synchronize()?;
        buffer.close()
    }) {
        result.expect("every rank came to its end");
    }
}

#[test]
fn what_cannot_be_loaded_is_refused_and_all_ranks_hear_of_it() {
    let results = run(3, Mode::Fast { workers: 0 }, |comm| {
        let wrong = &[Family::new("mine", &["gone"], KERNELS[0].ptx)][..];
        let failed = comm.load(if comm.rank() == 1 { wrong } else { KERNELS }).expect_err("a rank could not");
        let said = failed.to_string();
        // Nothing has changed for anybody but that some have what they asked for.
        comm.load(KERNELS)?;
        comm.barrier()?;
        let twice = comm.load(&[Family::new("again", &["gated_experts"], "")]).expect_err("the name is taken");
        Ok((said, twice.to_string()))
    });
    for (rank, result) in results.into_iter().enumerate() {
        let (said, twice) = result.expect("the rank came to its end");
        let want = match rank {
            1 => "kernel = gone: is in the family \"mine\", and not in its PTX",
            _ => "bootstrap: rank 1 could not load its kernels",
        };
        assert_eq!(said, want);
        assert!(
            twice.starts_with("kernel = gated_experts: is in the family \"custom-kernel\" and in \"again\""),
            "{twice}"
        );
    }
    let results = run(2, Mode::Fast { workers: 0 }, |comm| {
        Ok(if comm.rank() == 0 { comm.load(KERNELS) } else { small(&comm).map(drop) }.expect_err("apart").to_string())
    });
    for result in results {
        let said = result.expect("the rank came to its end");
        assert!(said.contains("ranks are in different collective calls"), "{said}");
    }
    if Device::from_env() == Device::Cuda {
        let refused = run(1, Mode::Fast { workers: 0 }, |comm| comm.load(OWN)).remove(0).expect_err("it has no text");
        assert_eq!(refused.to_string(), "family = own: has no PTX: its kernels run on the simulated GPU alone");
    }
}

/// Of kernels without PTX, so on the simulated GPU.
#[test]
fn a_grid_barrier_has_room_for_all_its_blocks_or_is_refused() {
    for mode in Device::Simulated.schedules([1, 2]) {
        let machine = Machine::new(MachineConfig::new(2, mode).with_sms_per_rank(3)).expect("a machine");
        let group = LocalGroup::on_machine(&machine).expect("a group");
        let counted = group.run(|comm| {
            comm.load(OWN)?;
            let blocks = comm.tensor(&[0u32; 2])?;
            // SAFETY: a word of this tensor.
            let args = own::CountArgs { blocks: unsafe { Global::from_raw(blocks.address()) } };
            // SAFETY: the word is the kernel's alone, and lives until the stream has passed it.
            let launch = |grid| unsafe { comm.launch(&own::count_together, grid, 0, &args) };
            let refused = launch(7).expect_err("there are three SMs");
            assert_error!(
                refused,
                Error::InvalidArgument { argument: "grid", .. },
                "grid = 7: count_together has a grid barrier, so its blocks run together, 2 on an SM: a simulated rank has 3 SMs"
            );
            launch(6)?;
            launch(1)?;
            blocks.to_vec()
        });
        assert_eq!(counted.expect("they run"), [[7, 0], [7, 0]]);
    }
}
