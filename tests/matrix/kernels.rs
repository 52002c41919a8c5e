//! Every instance of a kernel, each launched by some small cell or by a call of its own: for who watches them from outside, such as NVIDIA's
//! compute-sanitizer. That none is missing the simulated machine tells, which knows what was launched on it; which kernel a call launches does not
//! depend on the device. Under compute-sanitizer whoever waits for its stream waits for all kernels in the GPU's context, also for those that wait for another rank: name
//! a GPU for each of the two ranks (`EPOXIDE_TEST_DEVICE=cuda:0,1`).
use std::collections::BTreeSet;
use std::fmt;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Comm, ElasticBuffer, ExpertOutputs, Layout, LocalGroup, Machine, MachineConfig, Mode, Overflow,
    Packing, Result, WireFormat, bf16,
};
use epoxide_kernels::families;

use super::cell::{self, Filter, Part};
use super::dimensions::Cell;
use super::round::{self, Streams};
use super::sense::{self, Sense};
use super::support::brought::{Brought, Lie};
use super::support::exchange::{Tensors, check_round_of};
use super::support::halves::{check_rest, send};
use super::support::reference::{Wire, same};
use super::support::routing::{Case, Random, rows};
use super::support::{Checked, Device, by_expert, complaints, packed, reference};
use super::worlds::{self, Plan};

/// Kernels for ranks that go on without others, which are processes: `recovery` and `kills` launch them.
const OF_PROCESSES: [&str; 2] = ["stand_in", "without_masked"];

/// Kernels that measure links and launches: the report of the example `bandwidth` launches them, and its tests do.
const OF_MEASUREMENTS: [&str; 7] =
    ["link_stores", "link_loads", "link_copies", "empty", "empty_together", "flag_to_and_fro", "multiply"];

/// What all cells have. Rows end in the middle of a warp's vectors.
const SMALL: &str = "schedule=Fast,ranks=2,top_k=3,experts=Even,routing=Uniform,row_bytes=1008,row_bytes=2896,alignment=1,alignment=8,\
                     num_sms=2,calls=2,room=Worst,stream=Own,routings=1,row_slots=1,gradient=false,kept=false,padding=false";
/// Nothing that decides which kernel it is, unless a cell says so.
const PLAIN: &str = "biases=0,accumulate=false,y=Bf16,gated=false,returned=false,over_fp8=false,statistics=false";

/// Forms in which rows are given, each with kernels of its own.
const FORMS: [&str; 5] = [
    "rows=Bf16,columns=false",
    "rows=Fp8Inside,scales=F32,columns=false",
    "rows=Fp8Brought,scales=F32,columns=true",
    "rows=Fp8Inside,scales=Ue8m0,columns=true",
    "rows=Fp8Inside,scales=Mx,columns=false",
];

/// Cells of which the names do not follow from a form and a layout.
const OTHERS: [&str; 8] = [
    "layout=Compact,rows=Bf16,columns=false,told=false,again=false,outputs=Tensor,biases=1,accumulate=true,y=F32,gated=false,returned=true,over_fp8=true",
    "layout=Compact,rows=Bf16,columns=false,told=false,again=false,outputs=Lent,biases=2,accumulate=true,y=Bf16,gated=false,returned=true",
    "layout=ByExpert,rows=Bf16,columns=false,told=false,again=false,outputs=Staged,biases=1,accumulate=true,y=F32,gated=false,returned=true",
    "layout=ByExpert,rows=Bf16,columns=false,told=false,again=false,outputs=Kernel,biases=0,accumulate=false,y=Bf16,gated=true,returned=false",
    "layout=Slab,rows=Bf16,columns=false,told=true,again=true,outputs=Tensor,biases=0,accumulate=false,y=Bf16,gated=true,returned=true",
    "layout=ByExpert,rows=Bf16,columns=false,told=false,again=true,outputs=Host,biases=0,accumulate=false,y=Bf16,gated=false,returned=false,gradient=true",
    "layout=ByExpert,rows=Bf16,columns=false,told=false,again=false,outputs=Tensor,biases=2,accumulate=true,y=F32,gated=false,returned=true,over_fp8=true",
    "layout=Slab,rows=Bf16,columns=false,told=false,again=false,outputs=Host,biases=0,accumulate=false,y=Bf16,gated=true,returned=false,over_fp8=true",
];

/// The cells.
fn cells(device: Device) -> Vec<Cell> {
    let mut filters = Vec::new();
    for (layout, told) in [("Compact", false), ("Compact", true), ("ByExpert", false), ("Slab", true)] {
        filters.extend(FORMS.map(|form| {
            format!("{SMALL},{PLAIN},layout={layout},{form},told={told},again=true,outputs=Tensor,outputs=Kernel")
        }));
    }
    // With an index.
    let indexed = SMALL.replace("alignment=1,", "");
    filters.push(format!("{indexed},{PLAIN},layout=Compact,{},told=false,again=true,outputs=Kernel", FORMS[0]));
    filters.extend(OTHERS.map(|other| match other.contains("gradient=") {
        true => format!("{},{other},over_fp8=false,statistics=false", SMALL.replace("gradient=false,", "")),
        false if other.contains("over_fp8=") => format!("{SMALL},{other},statistics=false"),
        false => format!("{SMALL},{other},over_fp8=false,statistics=false"),
    }));
    let runs = |filter: &String| {
        let cell = cell::sample(11, device, &Filter::parse(filter)).find(|cell| sense::of(cell, device) == Sense::Runs);
        cell.unwrap_or_else(|| panic!("no cell runs: {filter}"))
    };
    filters.iter().map(runs).collect()
}

/// What launches some of them.
enum Launcher {
    Cell(Box<Cell>, Box<Plan>),
    /// Rows in fixed places.
    RankMajor(WireFormat, bool),
    /// The same, packed by their receivers.
    Packed(WireFormat, bool),
    Tensors,
}

impl Launcher {
    /// Everything, in the order of the parts.
    fn all(device: Device) -> Vec<Self> {
        let cells = cells(device).into_iter().map(|cell| {
            let plan = worlds::plan(&cell);
            Self::Cell(Box::new(cell), Box::new(plan))
        });
        let rank_major = RANK_MAJOR.map(|(format, brought)| Self::RankMajor(format, brought));
        let packed = RANK_MAJOR.map(|(format, brought)| Self::Packed(format, brought));
        cells.chain(rank_major).chain(packed).chain([Self::Tensors]).collect()
    }

    fn mode(&self) -> Mode {
        match self {
            Self::Cell(cell, _) => worlds::mode(cell),
            Self::RankMajor(..) | Self::Packed(..) | Self::Tensors => Mode::Fast { workers: 0 },
        }
    }

    fn rank(&self, streams: &Streams) -> Result<Checked> {
        let checked = match self {
            Self::Cell(cell, plan) => round::rank(cell, plan, streams),
            Self::RankMajor(format, brought) => rank_major(streams.own(), *format, *brought),
            Self::Packed(format, brought) => rank_major_packed(streams.own(), *format, *brought),
            Self::Tensors => tensors(streams.own()),
        };
        checked.map(|checked| checked.map_err(|why| format!("{self}: {why}")))
    }
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cell(cell, _) => write!(f, "{cell}"),
            Self::RankMajor(format, brought) => write!(f, "rows in fixed places, {format:?}, brought: {brought}"),
            Self::Packed(format, brought) => write!(f, "rows in fixed places, packed, {format:?}, brought: {brought}"),
            Self::Tensors => write!(f, "tensors"),
        }
    }
}

/// Ranks of each.
const RANKS: u32 = 2;

/// Launches a part of all, a line for each that is right; the names of what was launched, where the device tells.
fn launched(device: Device, part: &[(u64, &Launcher)]) -> std::result::Result<BTreeSet<&'static str>, String> {
    let mut seen = BTreeSet::new();
    if device == Device::Cuda {
        // On one group: watched from outside, kernels are loaded slowly.
        device.check(RANKS, Mode::Fast { workers: 0 }, |comm| {
            let streams = Streams::of(&comm);
            for (number, launcher) in part {
                let checked = launcher.rank(&streams)?;
                if checked.is_err() {
                    return Ok(checked);
                }
                if comm.rank() == 0 {
                    println!("{number}: right");
                }
            }
            Ok(Ok(()))
        })?;
        return Ok(seen);
    }
    for (number, launcher) in part {
        let machine = Machine::new(MachineConfig::new(RANKS, launcher.mode())).expect("a machine");
        let group = LocalGroup::on_machine(&machine).expect("a group");
        complaints(group.run_all(|comm| launcher.rank(&Streams::of(&comm))))?;
        let names = machine.launched_kernels();
        println!("{number}: right, {}", names.iter().copied().collect::<Vec<_>>().join(" "));
        seen.extend(names);
    }
    Ok(seen)
}

/// Forms of rows in fixed places, and whether they are brought: each has a pair of kernels.
const RANK_MAJOR: [(WireFormat, bool); 5] = [
    (WireFormat::Bf16, false),
    (WireFormat::Fp8, false),
    (WireFormat::Fp8, true),
    (WireFormat::Fp8Ue8m0, false),
    (WireFormat::Mxfp8, false),
];

/// Rows in fixed places, whole and by halves: so few tokens that quantised ones go in pieces, and more.
fn rank_major(comm: &Comm, format: WireFormat, brought: bool) -> Result<Checked> {
    const HIDDEN: u32 = 2896;
    let mut checked = Ok(());
    for tokens in [3, 12] {
        let case = Case {
            tokens: vec![tokens; comm.size() as usize],
            num_sms: 3,
            ..Case::with_rows(comm.size(), HIDDEN, format, vec![], 5, Mode::Fast { workers: 0 })
        };
        let world = case.world();
        let wires: Vec<Wire> = world.wires();
        let config = case.config().with_layout(Layout::RankMajor { alignment: 8 }).with_halves();
        let mut buffer = ElasticBuffer::new(comm, config)?;
        let mut tensors = Tensors::empty(comm, tokens, HIDDEN, case.top_k, case.index)?;
        tensors.fill(&world, comm.rank())?;
        comm.barrier()?;
        let own = Brought::new(comm, &wires[comm.rank() as usize], HIDDEN.div_ceil(128), Lie::default());
        for _ in 0..2 {
            let handle = match brought {
                true => tensors.dispatch_rows(&mut buffer, tokens, own.as_ref().map_err(Clone::clone)?.rows()?)?,
                false => tensors.dispatch(&mut buffer, tokens)?,
            };
            checked = checked.and(check_round_of(comm, &mut buffer, &handle, &mut tensors, &world, &wires)?);
        }
        let rows = if brought { own.as_ref().map_err(Clone::clone)?.rows()? } else { (&tensors.x).into() };
        let ticket = send(&mut buffer, &tensors, tokens, rows)?;
        checked = checked.and(check_rest(comm, &mut buffer, ticket, &mut tensors, &world, &wires)?);
        buffer.close()?;
    }
    Ok(checked)
}

/// Rows in fixed places that are laid by expert, whole and by halves, dropped and not; outputs that are weighed and not, and that are summed before a combine with a bias.
fn rank_major_packed(comm: &Comm, format: WireFormat, brought: bool) -> Result<Checked> {
    const HIDDEN: u32 = 2896;
    let case = Case { num_sms: 3, ..Case::with_rows(2, HIDDEN, format, vec![9; 2], 5, Mode::Fast { workers: 0 }) };
    let world = case.world();
    let wires: Vec<Wire> = world.wires();
    let fixed = case.config().with_layout(Layout::RankMajor { alignment: 8 }).with_combine_options().with_halves();
    let dropping = fixed.clone().with_packing(Packing::Slab { capacity_per_source: 1 }).with_overflow(Overflow::Drop);
    let mut checked = Ok(());
    for config in [fixed.with_packing(Packing::ExpertContiguous).with_zero_padding(), dropping] {
        let drops = config.overflow == Overflow::Drop;
        let mut buffer = ElasticBuffer::new(comm, config)?;
        let mut tensors = Tensors::empty(comm, 9, HIDDEN, case.top_k, case.index)?;
        tensors.fill(&world, comm.rank())?;
        comm.barrier()?;
        let own = Brought::new(comm, &wires[comm.rank() as usize], HIDDEN.div_ceil(128), Lie::default());
        for whole in [true, false] {
            let rows = if brought { own.as_ref().map_err(Clone::clone)?.rows()? } else { (&tensors.x).into() };
            let handle = if whole {
                tensors.dispatch_rows(&mut buffer, 9, rows)?
            } else {
                let ticket = send(&mut buffer, &tensors, 9, rows)?;
                buffer.dispatch_receive(ticket)?
            };
            if drops {
                let dropped = buffer.recv_counts(&handle)?.dropped > 0;
                checked = checked.and(if dropped { Ok(()) } else { Err("nothing was dropped".to_owned()) });
                let bias = comm.tensor(&[bf16::ONE; 9 * HIDDEN as usize])?;
                let input = CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y).gate_weighted();
                buffer.combine(&handle, input)?;
                let handle = tensors.dispatch(&mut buffer, 9)?;
                buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y).with_bias(&bias))?;
                buffer.synchronize()?;
            } else {
                let y = &mut tensors.y;
                checked = checked.and(by_expert::check_round_of(comm, &mut buffer, &handle, y, &world, &wires, 8)?);
            }
        }
        buffer.close()?;
    }
    Ok(checked)
}

/// The kernels of one rank's tensors.
fn tensors(comm: &Comm) -> Result<Checked> {
    const HIDDEN: u32 = 528;
    let x = rows(&mut Random::new(3), 5, HIDDEN);
    let elements = x.len() as u64;
    let from = comm.tensor(&x)?;
    comm.delay(std::time::Duration::from_micros(1))?;
    let mut checked = Ok(());
    for format in [WireFormat::Fp8, WireFormat::Fp8Ue8m0, WireFormat::Mxfp8] {
        let quantizer = match format {
            WireFormat::Fp8 => Quantizer::new(comm)?,
            packed => Quantizer::with_packed_scales(comm, packed)?,
        };
        let (mut codes, mut y) = (comm.empty::<u8>(elements)?, comm.empty::<bf16>(elements)?);
        let mut want = vec![bf16::ZERO; x.len()];
        if format == WireFormat::Fp8 {
            let (want_codes, want_scales) = reference::quantize(&x, HIDDEN);
            let mut scales = comm.tensor(&vec![0.0f32; want_scales.len()])?;
            quantizer.quantize(&from, 5, HIDDEN, &mut codes, &mut scales)?;
            quantizer.dequantize(&codes, &scales, 5, HIDDEN, &mut y)?;
            checked = checked.and(same("codes", &codes.to_vec()?, &want_codes, HIDDEN as usize));
            checked = checked.and(same("scales", &scales.to_vec()?, &want_scales, 1));
            let scales = want_scales.chunks_exact(want_scales.len() / 5);
            let rows = want_codes.chunks_exact(HIDDEN as usize).zip(scales);
            rows.zip(want.chunks_exact_mut(HIDDEN as usize))
                .for_each(|((codes, scales), row)| reference::dequantize_row(codes, scales, row));
        } else {
            let group = packed::group(format);
            let (want_codes, want_scales) = packed::quantize(&x, HIDDEN, group);
            let mut scales = comm.tensor(&vec![0u32; want_scales.len()])?;
            quantizer.quantize_packed(&from, 5, HIDDEN, &mut codes, &mut scales)?;
            quantizer.dequantize_packed(&codes, &scales, 5, HIDDEN, &mut y)?;
            checked = checked.and(same("codes", &codes.to_vec()?, &want_codes, HIDDEN as usize));
            checked = checked.and(same("scales", &scales.to_vec()?, &want_scales, 1));
            let scales = want_scales.chunks_exact(want_scales.len() / 5);
            let rows = want_codes.chunks_exact(HIDDEN as usize).zip(scales);
            rows.zip(want.chunks_exact_mut(HIDDEN as usize))
                .for_each(|((codes, scales), row)| packed::dequantize_row(codes, scales, group, row));
        }
        checked = checked.and(same("elements", &y.to_vec()?, &want, HIDDEN as usize));
    }
    Ok(checked)
}

/// Launches every kernel, or a part of them; what they come to is the reference. Says how many there are, and that none is missing.
pub fn every_one(device: Device, part: Part) -> Checked {
    let all: BTreeSet<&str> = families::ALL.iter().flat_map(|family| family.entries).copied().collect();
    let launchers = Launcher::all(device);
    let mine: Vec<_> = (0..).zip(&launchers).filter(|(number, _)| number % part.of + 1 == part.number).collect();
    let seen = launched(device, &mine)?;
    let elsewhere: Vec<_> = OF_PROCESSES.iter().chain(&OF_MEASUREMENTS).copied().collect();
    let missing: Vec<_> = all.difference(&seen).filter(|name| !elsewhere.contains(name)).collect();
    if (device, part) == (Device::Simulated, Part::WHOLE) && !missing.is_empty() {
        return Err(format!("nobody launched {missing:?}"));
    }
    let (here, families) = (all.len() - elsewhere.len(), families::ALL.len());
    println!(
        "part {part} of {} is right; the whole launches {here} of {} kernels in {families} families, all but {}",
        launchers.len(),
        all.len(),
        elsewhere.join(", ")
    );
    Ok(())
}
