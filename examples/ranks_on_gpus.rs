//! Which GPU each rank of an example runs on.
use anyhow::{Result, bail, ensure};
use epoxide::processes::World;
use epoxide::{Comm, LocalGroup};

/// Checks the GPUs that `--gpus` names, if it was given, for so many ranks.
///
/// # Errors
///
/// The rule that is broken.
pub fn check_named(gpus: Option<&[u32]>, ranks: u32, on_cuda: bool) -> Result<()> {
    let Some(gpus) = gpus else { return Ok(()) };
    ensure!(on_cuda, "--gpus names NVIDIA GPUs, and --device sim has none (--device cuda)");
    ensure!(
        gpus.len() <= ranks as usize,
        "--gpus names {} GPUs for {ranks} ranks: a GPU without a rank does nothing",
        gpus.len()
    );
    Ok(())
}

/// The GPU of every rank: the named ones, or GPU 0, dealt out in turn.
pub fn deal(gpus: Option<&[u32]>, ranks: u32) -> Vec<u32> {
    gpus.unwrap_or(&[0]).iter().copied().cycle().take(ranks as usize).collect()
}

/// The rank of a process, on the named GPU that is its turn, or else on that of all.
///
/// # Errors
///
/// The library's.
#[allow(dead_code, reason = "not all examples know launchers")]
pub fn of_process(world: &World, gpus: Option<&[u32]>) -> epoxide::Result<Comm> {
    let gpu = match gpus {
        Some(gpus) => gpus[world.rank() as usize % gpus.len()],
        None => world.gpu()?,
    };
    let comm = Comm::on_gpu(world, gpu)?;
    if world.rank() == 0 {
        comm.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
    }
    Ok(comm)
}

/// The GPU of every rank, or none on the simulated GPU; where `--device` does not say, they are GPUs if some are named or there.
///
/// # Errors
///
/// The rule that is broken, or why there is no GPU.
#[allow(dead_code, reason = "not all examples look for GPUs by themselves")]
pub fn of_ranks(on_cuda: Option<bool>, gpus: Option<&[u32]>, ranks: u32) -> Result<Option<Vec<u32>>> {
    let there_are = || LocalGroup::gpus().is_ok_and(|gpus| gpus > 0);
    let on_cuda = on_cuda.unwrap_or_else(|| gpus.is_some() || there_are());
    check_named(gpus, ranks, on_cuda)?;
    if !on_cuda {
        return Ok(None);
    }
    let (dealt, there) = (deal(gpus, ranks), LocalGroup::gpus()?);
    if let Some(gpu) = dealt.iter().find(|gpu| **gpu >= there) {
        bail!("--gpus {gpu}: this process may use {there} GPUs, numbered from 0");
    }
    Ok(Some(dealt))
}
