//! Ranks that a launcher made processes: each measures, all tell each other, and rank 0 prints.
use anyhow::Result;
use epoxide::processes::Place;
use epoxide::{Comm, MachineConfig, Mode};

use crate::ceiling::Ceilings;
use crate::counts::Times;
use crate::halves::Halves;
use crate::measure::{Outcome, Ranks};
use crate::options::{Device, Options};
use crate::ranks_on_gpus;
use crate::routes::Sent;
use crate::start::Start;

/// How a device's description ends whose rank is a process.
pub const OF_ITS_OWN: &str = "a process of its own";

/// The rank that this process is, if the environment says that it is one of several, and no option says otherwise.
///
/// # Errors
///
/// What is wrong with the environment.
pub fn place(options: &Options) -> epoxide::Result<Option<Place>> {
    Place::from_environment(options.asked_ranks)
}

/// The ranks of this process, once all are there.
///
/// # Errors
///
/// What keeps them from meeting, or from sharing memory.
pub fn ranks(place: Option<&Place>, options: &mut Options) -> Result<Ranks> {
    let Some(place) = place else { return Ok(Ranks::Threads) };
    let start = Start::begins();
    let world = place.meet()?;
    let mut start = start.met(&world)?;
    let comm = match options.device {
        Device::Sim => Comm::simulated(&world, MachineConfig::new(world.size(), Mode::Fast { workers: 1 }))?,
        Device::Cuda => {
            let _driver = match (&mut start, options.named_gpus()) {
                (Some(start), Some(gpus)) => Some(start.driver(&world, gpus[world.rank() as usize % gpus.len()])?),
                (Some(start), None) => Some(start.driver(&world, world.gpu()?)?),
                (None, _) => None,
            };
            if options.named_gpus().is_none() {
                let all = world.all_gather(&world.gpu()?.to_le_bytes())?;
                let gpu = |bytes: &Vec<u8>| bytes.as_slice().try_into().map_or(0, u32::from_le_bytes);
                options.found_gpus = Some(all.iter().map(gpu).collect());
            }
            ranks_on_gpus::of_process(&world, options.named_gpus())?
        }
    };
    if let Some(mut start) = start {
        start.part("ranks made");
        start.end(&comm, options)?;
    }
    Ok(Ranks::Process(comm))
}

/// Gives this rank's outcome to all, and returns every rank's, in rank order: fewer where one is another program.
///
/// # Errors
///
/// When another rank is gone.
pub fn gather(comm: &Comm, own: &Outcome) -> epoxide::Result<Vec<Outcome>> {
    Ok(comm.all_gather(&written(own))?.iter().filter_map(|bytes| read(bytes)).collect())
}

fn written(own: &Outcome) -> Vec<u8> {
    let Outcome { device, ceilings, dispatch_ms, combine_ms, told, halves, by_source, sent, mismatch } = own;
    let mut bytes = Vec::new();
    let mut numbers = |numbers: &[f64]| {
        bytes.extend((numbers.len() as u64).to_le_bytes());
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    };
    let text = |text: &str| text.bytes().map(f64::from).collect::<Vec<_>>();
    let [copy, push, pull] = [ceilings.copy, ceilings.push, ceilings.pull].map(|rate| rate.unwrap_or(f64::NAN));
    numbers(&text(device));
    numbers(&[copy, push, pull]);
    numbers(dispatch_ms);
    numbers(combine_ms);
    numbers(told.as_ref().map_or(&[], |times| &times.told));
    numbers(told.as_ref().map_or(&[], |times| &times.done));
    for half in 0..4 {
        numbers(halves.as_ref().map_or(&[], |halves| &halves.each[half]));
    }
    for half in 0..4 {
        numbers(halves.as_ref().map_or(&[], |halves| &halves.loaded[half]));
    }
    numbers(halves.as_ref().map_or(&[], |halves| &halves.beside));
    numbers(&by_source.iter().map(|rows| f64::from(*rows)).collect::<Vec<_>>());
    let each = |sent: &Sent| [sent.selections, sent.tokens, sent.several].map(f64::from);
    numbers(&sent.iter().flat_map(each).collect::<Vec<_>>());
    numbers(&text(mismatch.as_deref().unwrap_or_default()));
    bytes
}

fn read(bytes: &[u8]) -> Option<Outcome> {
    let mut rest = bytes;
    let mut numbers = || {
        let (length, behind) = rest.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let (part, behind) = behind.split_at_checked(length.checked_mul(8)?)?;
        rest = behind;
        Some(part.as_chunks::<8>().0.iter().map(|number| f64::from_le_bytes(*number)).collect::<Vec<f64>>())
    };
    let text = |numbers: Vec<f64>| String::from_utf8(numbers.into_iter().map(|byte| byte as u8).collect()).ok();
    let device = text(numbers()?)?;
    let [copy, push, pull] =
        <[f64; 3]>::try_from(numbers()?).ok()?.map(|rate| Some(rate).filter(|rate| !rate.is_nan()));
    let (dispatch_ms, combine_ms) = (numbers()?, numbers()?);
    let (told, done) = (numbers()?, numbers()?);
    let each = [numbers()?, numbers()?, numbers()?, numbers()?];
    let loaded = [numbers()?, numbers()?, numbers()?, numbers()?];
    let beside = numbers()?;
    let by_source = numbers()?.into_iter().map(|rows| rows as u32).collect();
    let sent = numbers()?;
    let sent = sent.as_chunks::<3>().0.iter().map(|of_rank| {
        let [selections, tokens, several] = of_rank.map(|number| number as u32);
        Sent { selections, tokens, several }
    });
    let sent = sent.collect();
    let mismatch = Some(text(numbers()?)?).filter(|what| !what.is_empty());
    let told = (!told.is_empty()).then_some(Times { told, done });
    let halves = (!beside.is_empty()).then_some(Halves { each, loaded, beside });
    let ceilings = Ceilings { copy, push, pull };
    Some(Outcome { device, ceilings, dispatch_ms, combine_ms, told, halves, by_source, sent, mismatch })
}
