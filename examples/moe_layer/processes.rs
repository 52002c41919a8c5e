//! Ranks that a launcher made processes: each works on its own part, and tells the others what came of it.
//!
//! Rank 0 checks the layer as a whole and prints; the others end quietly.
use std::time::Duration;

use epoxide::processes::{Place, World};
use epoxide::{Comm, MachineConfig, Mode, bf16};

use crate::Failure;
use crate::layer::{Clock, Outcome};
use crate::options::{Device, Options};
use crate::ranks_on_gpus;

/// Bytes of an outcome that are gathered at once.
const PIECE: usize = 8 << 20;

/// The rank that this process is, if the environment says that it is one of several, and no option says otherwise.
///
/// # Errors
///
/// What is wrong with the environment.
pub fn place(options: &Options) -> Result<Option<Place>, Failure> {
    let place = Place::from_environment(options.asked_ranks());
    place.map_err(|error| Failure::of_library("cannot make the ranks", &error))
}

/// The rank, once all are there.
///
/// # Errors
///
/// What keeps them from meeting, or from sharing memory.
pub fn rank(world: &World, options: &Options) -> epoxide::Result<Comm> {
    match options.device {
        Device::Sim => Comm::simulated(world, MachineConfig::new(world.size(), Mode::Fast { workers: 1 })),
        Device::Cuda => ranks_on_gpus::of_process(world, options.gpus()),
    }
}

/// Gives this rank's outcome to all, and returns every rank's, in rank order.
///
/// # Errors
///
/// When another rank is gone.
pub fn gather(comm: &Comm, outcome: &Outcome) -> Result<Vec<Outcome>, Failure> {
    let own = written(outcome);
    let all_gather = |bytes: &[u8]| {
        comm.all_gather(bytes).map_err(|error| Failure::of_library("the outcomes cannot be gathered", &error))
    };
    let lengths = all_gather(&(own.len() as u64).to_le_bytes())?;
    let longest =
        lengths.iter().filter_map(|length| Some(u64::from_le_bytes(length.as_slice().try_into().ok()?))).max();
    let mut all = vec![Vec::new(); lengths.len()];
    let mut rest = own.as_slice();
    for _ in 0..(longest.unwrap_or(0) as usize).div_ceil(PIECE) {
        let (piece, left) = rest.split_at(rest.len().min(PIECE));
        rest = left;
        for (whole, piece) in all.iter_mut().zip(all_gather(piece)?) {
            whole.extend(piece);
        }
    }
    let outcomes = all.iter().enumerate().map(|(rank, bytes)| {
        read(bytes, outcome).ok_or_else(|| Failure::Run(format!("rank {rank} is another program: it gave no outcome")))
    });
    outcomes.collect()
}

fn written(outcome: &Outcome) -> Vec<u8> {
    let Outcome { device, num_sms, buffer_bytes, mismatch, outputs, y, clock, passes, copy } = outcome;
    let mut bytes = Vec::new();
    let mut put = |part: &[u8]| {
        bytes.extend((part.len() as u64).to_le_bytes());
        bytes.extend(part);
    };
    let rows = |rows: &[bf16]| rows.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect::<Vec<u8>>();
    let times = clock.steps.iter().flat_map(|(_, time)| (time.as_nanos() as u64).to_le_bytes()).collect::<Vec<u8>>();
    let passes = passes.iter().flat_map(|(a, b)| [a.to_le_bytes(), b.to_le_bytes()].concat()).collect::<Vec<u8>>();
    put(device.as_bytes());
    put(&num_sms.to_le_bytes());
    put(&buffer_bytes.to_le_bytes());
    put(mismatch.as_deref().unwrap_or_default().as_bytes());
    put(&rows(outputs));
    put(&rows(y));
    put(&times);
    put(&passes);
    put(&copy.map_or(Vec::new(), |copy| copy.to_le_bytes().to_vec()));
    bytes
}

/// What [`written`] wrote, by a rank whose steps have the names of this one's.
fn read(bytes: &[u8], own: &Outcome) -> Option<Outcome> {
    let mut rest = bytes;
    let mut part = || {
        let (length, behind) = rest.split_first_chunk::<8>()?;
        let (part, behind) = behind.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        rest = behind;
        Some(part)
    };
    let text = |part: &[u8]| String::from_utf8(part.to_vec()).ok();
    let rows = |part: &[u8]| part.as_chunks::<2>().0.iter().map(|x| bf16::from_bits(u16::from_le_bytes(*x))).collect();
    let device = text(part()?)?;
    let num_sms = u32::from_le_bytes(part()?.try_into().ok()?);
    let buffer_bytes = u64::from_le_bytes(part()?.try_into().ok()?);
    let mismatch = Some(text(part()?)?).filter(|mismatch| !mismatch.is_empty());
    let (outputs, y) = (rows(part()?), rows(part()?));
    let mut clock = Clock::new();
    let times = part()?.as_chunks::<8>().0.iter().map(|time| Duration::from_nanos(u64::from_le_bytes(*time)));
    clock.steps = own.clock.steps.iter().map(|(step, _)| *step).zip(times).collect();
    let number = |bytes: &[u8; 8]| f64::from_le_bytes(*bytes);
    let passes = part()?.as_chunks::<8>().0.as_chunks::<2>().0.iter().map(|[a, b]| (number(a), number(b))).collect();
    let copy = part()?.first_chunk::<8>().map(number);
    Some(Outcome { device, num_sms, buffer_bytes, mismatch, outputs, y, clock, passes, copy })
}
