//! Cells without one of their ranks: it is killed in front of the first operation, which is a fault on every other rank. They mask it, reset the
//! buffer or make another one, and then all of the cell is as if nobody selected that rank's experts.
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use epoxide::{LocalGroup, Machine, MachineConfig, Result};

use super::dimensions::Cell;
use super::round::{self, Streams};
use super::support::{Checked, complaints};
use super::worlds::{self, Plan};

/// Runs a cell whose machine is a seeded one: there a rank of one process can be killed.
pub fn check(cell: &Cell) -> Checked {
    let dead = (cell.data >> 9) as u32 % cell.ranks;
    let plan = worlds::plan_without(cell, &[dead]);
    let machine = Machine::new(MachineConfig::new(cell.ranks, worlds::mode(cell))).expect("a machine");
    let killed = AtomicU32::new(0);
    let survive = |streams: &Streams| {
        let kills = streams.own().rank() == (dead + 1) % cell.ranks;
        let begins = || -> Result<()> {
            streams.own().barrier()?;
            if kills {
                machine.kill(dead)?;
                killed.store(1, Ordering::SeqCst);
            }
            Ok(())
        };
        survives(cell, &plan, streams, dead, &begins, &killed)
    };
    let group = LocalGroup::on_machine(&machine).expect("a group");
    let mut results = group.run_all(|comm| {
        let streams = Streams::of(&comm);
        if comm.rank() != dead {
            return survive(&streams);
        }
        let _buffer = streams.buffer(&plan)?;
        comm.barrier()?;
        // It is killed where it waits.
        comm.barrier().map(|()| Err("it lives".to_owned()))
    });
    drop(results.remove(dead as usize));
    complaints(results).map_err(|why| format!("without rank {dead}: {why}"))
}

/// What every other rank does.
fn survives(
    cell: &Cell,
    plan: &Plan,
    streams: &Streams,
    dead: u32,
    begins: &dyn Fn() -> Result<()>,
    killed: &AtomicU32,
) -> Result<Checked> {
    let mut buffer = streams.buffer(plan)?;
    match round::steps(cell, plan, streams, &mut buffer, begins) {
        Err(error) if error.to_string().contains(&format!("rank {dead} is gone")) => {}
        Err(other) => return Ok(Err(format!("that a rank is gone is told as: {other}"))),
        Ok(_) => return Ok(Err("nobody missed it".to_owned())),
    }
    // Who was refused something before an operation may be early.
    while killed.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    streams.own().mask(&[dead])?;
    // Statistics go on behind a reset, with what came before.
    if cell.statistics || cell.data.is_multiple_of(3) {
        drop(buffer);
        buffer = streams.buffer(plan)?;
    } else {
        buffer.reset()?;
    }
    if buffer.masked() != [dead] {
        return Ok(Err(format!("it goes on without {:?}", buffer.masked())));
    }
    let checked = round::steps(cell, plan, streams, &mut buffer, &|| streams.own().barrier())?;
    buffer.close()?;
    Ok(checked)
}
