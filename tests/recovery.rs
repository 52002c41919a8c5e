//! After a fault a buffer is as new, in the memory that it has; and ranks that are left go on without one that was killed.
mod support;

use std::time::Duration;

use epoxide::{Comm, Config, ElasticBuffer, Error, Gone, IndexType, Layout, Mode, Result, ScaleLayout, WireFormat};
use support::by_expert::Padding;
use support::combine_options::{Agreed, Own, check_combine};
use support::exchange::{Indices, Tensors, check_round};
use support::masked::without;
use support::processes::{Rank, Ranks};
use support::reference::{Wire, World};
use support::routing::{Case, Choice};
use support::{Checked, Device, by_expert, replay};

/// Every layout; slabs have room for all that could come.
const LAYOUTS: [Layout; 4] = [
    Layout::Compact,
    Layout::ExpertContiguous { alignment: 4 },
    Layout::Slab { capacity: 4 * (7 + 5 * 3) },
    Layout::RankMajor { alignment: 4 },
];

/// What the ranks of a test exchange: they all know it from its number.
fn case(ranks: u32, data: u64, format: WireFormat, mode: Mode) -> Case {
    Case {
        ranks,
        experts: 3 * ranks + 1,
        top_k: 4,
        hidden: 272,
        format,
        num_sms: 2,
        tokens: (0..ranks).map(|rank| 7 + 5 * rank).collect(),
        index: [IndexType::I64, IndexType::I32, IndexType::U32][data as usize % 3],
        choice: Choice::Uniform,
        holes: 2,
        data,
        mode,
    }
}

fn formats() -> impl Iterator<Item = (WireFormat, Layout)> {
    [WireFormat::Bf16, WireFormat::Fp8].into_iter().flat_map(|format| LAYOUTS.map(|layout| (format, layout)))
}

/// Whether what combines bring from other ranks crosses in FP8: of compact rows, for which their owners have words of their own.
fn crosses_in_fp8(format: WireFormat, layout: Layout) -> bool {
    format == WireFormat::Fp8 && layout == Layout::Compact
}

/// A dispatch and a combine of what `asked` says, which come to what `world` says.
fn round(
    comm: &Comm,
    buffer: &mut ElasticBuffer,
    tensors: &mut Tensors,
    [asked, world]: [&World; 2],
) -> Result<Checked> {
    tensors.fill(asked, comm.rank())?;
    let wires: Vec<Wire> = world.wires();
    match buffer.config().layout {
        Layout::Compact if buffer.config().fp8_combine => {
            let handle = tensors.dispatch(buffer, world.inputs[comm.rank() as usize].tokens)?;
            let agreed = Agreed { fp8: true, ..Agreed::default() };
            check_combine(comm, buffer, &handle, world, &wires, agreed, Own::default(), 1)
        }
        Layout::Compact | Layout::RankMajor { .. } => check_round(comm, buffer, tensors, world, &wires),
        layout => by_expert::check_round(comm, buffer, tensors, world, &wires, Padding::of(layout)),
    }
}

/// How the fault comes about.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// A rank does not come.
    Absent,
    /// A rank selects an expert that is not there.
    Selection,
    /// A rank dispatches where the others combine.
    OutOfStep,
}

#[test]
fn a_buffer_is_as_new_after_a_fault() {
    let device = Device::from_env();
    for seed in replay::seeds(1) {
        for mode in device.schedules([seed]) {
            for (i, (format, layout)) in (0..).zip(formats()) {
                // Each fault with one or two of them, and with others for another seed.
                let faults = [Fault::Absent, Fault::Selection, Fault::OutOfStep];
                let fault = faults[(seed.wrapping_add(i) % 3) as usize];
                let case = case(3, seed.wrapping_add(i), format, mode);
                let config = case.config().with_layout(layout).with_timeout(Duration::from_millis(200));
                let fixed = matches!(layout, Layout::RankMajor { .. });
                let config = if crosses_in_fp8(format, layout) { config.with_fp8_combine() } else { config };
                let config = if fixed { config } else { config.with_counts_mirror().with_routing_slots(2) };
                let checked = device.check(3, mode, |comm| faults_and_goes_on(&comm, &case, &config, fault));
                checked.unwrap_or_else(|complaint| panic!("{case:?}, {layout:?}, {fault:?}: {complaint}"));
            }
        }
    }
}

fn faults_and_goes_on(comm: &Comm, case: &Case, config: &Config, fault: Fault) -> Result<Checked> {
    let mut buffer = ElasticBuffer::new(comm, config.clone())?;
    let tokens = case.tokens[comm.rank() as usize];
    let mut tensors = Tensors::empty(comm, tokens, case.hidden, case.top_k, case.index)?;
    let world = case.world();
    let mut checked = Ok(());
    for again in 0..2 {
        for _ in 0..again + 2 {
            checked = checked.and(round(comm, &mut buffer, &mut tensors, [&world; 2])?);
        }
        let old = tensors.dispatch(&mut buffer, tokens)?;
        if matches!(fault, Fault::Selection) && comm.rank() == 1 {
            match &mut tensors.topk_idx {
                Indices::I32(idx) => idx.copy_from_host(&vec![1000; (tokens * case.top_k) as usize])?,
                Indices::I64(idx) => idx.copy_from_host(&vec![1000; (tokens * case.top_k) as usize])?,
                Indices::U32(idx) => idx.copy_from_host(&vec![1000; (tokens * case.top_k) as usize])?,
            }
        }
        let comes = !matches!(fault, Fault::Absent) || comm.rank() != 2;
        if comes && (comm.rank() == 0 || !matches!(fault, Fault::OutOfStep)) {
            tensors.dispatch(&mut buffer, tokens)?;
        } else if comes {
            let input = epoxide::CombineInput::new(epoxide::ExpertOutputs::InPlace, &mut tensors.y);
            buffer.combine(&old, input)?;
        }
        if comes && buffer.synchronize().is_ok() {
            return Ok(Err("there was no fault".to_owned()));
        }
        buffer.reset()?;
        match buffer.dispatch_again(&old, &tensors.x) {
            Err(Error::StaleHandle { .. }) => {}
            other => return Ok(Err(format!("a handle of before: {other:?}"))),
        }
        buffer.check()?;
    }
    for data in 0..3 {
        let world = Case { data: case.data + 3 * data, ..case.clone() }.world();
        checked = checked.and(round(comm, &mut buffer, &mut tensors, [&world; 2])?);
    }
    buffer.close()?;
    Ok(checked)
}

const RANKS: u32 = 4;

/// One after the other is killed, and those that are left go on.
fn goes_on(rank: Rank) {
    let order: Vec<u32> = rank.told.split(' ').map(|rank| rank.parse().expect("the test says who")).collect();
    let machine = rank.machine();
    let comm = rank.comm(machine).expect("all are there");
    let mode = Mode::Fast { workers: 1 };
    let tokens = case(RANKS, 0, WireFormat::Bf16, mode).tokens[comm.rank() as usize];
    let mut buffers = Vec::new();
    for (number, (format, layout)) in (0..).zip(formats()) {
        let config = case(RANKS, 0, format, mode).config().with_layout(layout).with_row_slots(1 + number % 2);
        let config = if crosses_in_fp8(format, layout) { config.with_fp8_combine() } else { config };
        let columns = format == WireFormat::Fp8 && !matches!(layout, Layout::RankMajor { .. });
        let config = if columns { config.with_scale_layout(ScaleLayout::ColumnMajor) } else { config };
        buffers.push(ElasticBuffer::new(&comm, config).expect("all are there"));
    }
    let tensors = |data| {
        let case = case(RANKS, data, WireFormat::Bf16, mode);
        Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index).expect("fits")
    };
    let mut tensors: Vec<Tensors> = (0..3).map(tensors).collect();
    let mut number = 0;
    for dead in 0..=order.len() {
        let gone = &order[..dead];
        // As many rounds as it takes, until the next one is killed.
        let error = loop {
            let of = number % buffers.len();
            let (format, _) = formats().nth(of).expect("it is one of them");
            let data = number as u64;
            let asked = case(RANKS, data, format, mode).world();
            let (left, dropped) = without(&asked, gone);
            let buffer = &mut buffers[of];
            let before = buffer.masked_selections().expect("the device works");
            match round(&comm, buffer, &mut tensors[number % 3], [&asked, &left]) {
                Ok(checked) => checked.unwrap_or_else(|complaint| panic!("without {gone:?}: {complaint}")),
                Err(error) => break error,
            }
            let here = buffers[of].masked_selections().expect("the device works") - before;
            assert_eq!(here, dropped[comm.rank() as usize], "dropped, without {gone:?}");
            number += 1;
            // The last ones end together.
            if dead == order.len() && number.is_multiple_of(40) {
                comm.barrier().expect("nobody else is gone");
                return;
            }
            println!("one more without {dead}");
        };
        let next = order[dead];
        assert!(matches!(error, Error::PeerGone { rank, how: Gone::Ended, .. } if rank == next), "{error}");
        comm.mask(&[next]).expect("it has ended");
        let masked = comm.masked();
        assert!(masked.len() == dead + 1 && masked.contains(&next), "{masked:?}");
        assert!(comm.all_gather(b"here").expect("all others live")[next as usize].is_empty());
        // All but the last are as new; that one is made anew.
        let last = buffers.pop().expect("there are several");
        for buffer in &mut buffers {
            buffer.reset().expect("all others live");
        }
        let config = last.config().clone();
        drop(last);
        buffers.push(ElasticBuffer::new(&comm, config).expect("all others live"));
        // Who was at another round goes on with the same.
        let rounds = comm.all_gather(&(number as u64).to_le_bytes()).expect("all others live");
        let furthest = rounds.iter().filter_map(|bytes| Some(u64::from_le_bytes(bytes.as_slice().try_into().ok()?)));
        number = furthest.max().expect("this rank is one") as usize + 1;
    }
}

#[test]
fn ranks_go_on_without_those_that_were_killed() {
    let test = "ranks_go_on_without_those_that_were_killed";
    if let Some(rank) = Rank::of_this_process() {
        return goes_on(rank);
    }
    for (order, after) in [(&[1, 2][..], 3), (&[0], 11), (&[3, 0, 1], 0)] {
        let told: Vec<String> = order.iter().map(u32::to_string).collect();
        let mut ranks = Ranks::start(RANKS, test, &told.join(" "));
        for (dead, rank) in order.iter().enumerate() {
            ranks.wait_for(*rank, &format!("one more without {dead}\n"));
            std::thread::sleep(Duration::from_millis(after));
            ranks.kill(*rank);
        }
        let said = ranks.end(Duration::from_secs(60));
        assert_eq!(said.len(), RANKS as usize - order.len());
    }
}

/// A rank that lives is not masked, nor one that is not there.
#[test]
fn only_who_is_gone_is_masked() {
    if let Some(rank) = Rank::of_this_process() {
        let machine = rank.machine();
        let comm = rank.comm(machine).expect("all are there");
        let here = comm.rank();
        for (rank, said) in [(here, "another rank of the group"), (9, "another rank of the group")] {
            let refused = comm.mask(&[rank]).expect_err("it cannot be").to_string();
            assert!(refused.contains(said), "{refused}");
        }
        comm.barrier().expect("nothing has happened");
        return;
    }
    Ranks::start(2, "only_who_is_gone_is_masked", "").end(Duration::from_secs(20));
    epoxide::LocalGroup::simulated(2, Mode::Fast { workers: 1 })
        .and_then(|group| {
            group.run(|comm| {
                let refused = comm.mask(&[1 - comm.rank()]).expect_err("it is a thread").to_string();
                assert!(refused.contains("only who is gone is masked"), "{refused}");
                // Until both have seen it: who has ended is gone.
                comm.barrier()
            })
        })
        .expect("both end");
}
