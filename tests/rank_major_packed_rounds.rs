//! Rounds of packed rows that are enqueued one behind the other, with nothing on the host between them: what experts make of the rows is known before, and lies in
//! tensors.
use crate::rank_major_packed::Packed;
use crate::support;

use std::time::Duration;

use epoxide::{CombineInput, Comm, DeviceTensor, ElasticBuffer, Mode, Result, bf16};
use support::by_expert::{combined, predicted_outputs};
use support::exchange::Tensors;
use support::reference::{Wire, World, same};
use support::routing::{Case, Random};
use support::{Checked, Device, replay, uneven};

/// Rounds of one case.
pub struct Rounds {
    pub case: Case,
    pub packed: Packed,
    /// What is sent in each.
    worlds: Vec<World>,
    /// And what of it is not dropped.
    kept: Vec<World>,
    wires: Vec<Vec<Wire>>,
}

/// What a rank has of each round.
pub struct Prepared {
    pub tensors: Vec<Tensors>,
    /// What its experts make of what comes.
    pub outputs: Vec<DeviceTensor<bf16>>,
}

impl Rounds {
    pub fn new(case: Case, packed: Packed, worlds: Vec<World>) -> Self {
        let kept = worlds.iter().map(|world| packed.kept(world).0).collect();
        let wires = worlds.iter().map(World::wires).collect();
        Self { case, packed, worlds, kept, wires }
    }

    /// Tokens of a rank in a round.
    pub fn tokens(&self, round: usize, rank: u32) -> u32 {
        self.worlds[round].inputs[rank as usize].tokens
    }

    /// Tensors for all rounds. Those of outputs have a row for each row that there is room for, as the host does not know how many come.
    pub fn prepare(&self, comm: &Comm, buffer: &ElasticBuffer) -> Result<Prepared> {
        let (rank, case) = (comm.rank(), &self.case);
        let regions = buffer.bytes()?.regions;
        let region = regions.iter().find(|region| region.name == "packed expert outputs").expect("rows are packed");
        let mut prepared = Prepared { tensors: Vec::new(), outputs: Vec::new() };
        for (round, world) in self.worlds.iter().enumerate() {
            let mut mine = Tensors::empty(comm, self.tokens(round, rank), case.hidden, case.top_k, case.index)?;
            mine.fill(world, rank)?;
            prepared.tensors.push(mine);
            let padding = self.packed.padding(case);
            let mut predicted = predicted_outputs(&self.kept[round], rank, &self.wires[round], padding);
            predicted.resize(region.bytes as usize / 2, bf16::NAN);
            prepared.outputs.push(comm.tensor(&predicted)?);
        }
        Ok(prepared)
    }

    /// A round of a rank.
    fn enqueue(
        &self,
        buffer: &mut ElasticBuffer,
        mine: &mut Tensors,
        outputs: &DeviceTensor<bf16>,
        (round, rank): (usize, u32),
    ) -> Result<()> {
        let handle = mine.dispatch(buffer, self.tokens(round, rank))?;
        buffer.combine(&handle, CombineInput::new(outputs, &mut mine.y))
    }

    /// Compares the sums of all rounds, which are over.
    pub fn check(&self, rank: u32, tensors: &[Tensors]) -> Result<Checked> {
        let (hidden, mut checked) = (self.case.hidden, Ok(()));
        for (round, kept) in self.kept.iter().enumerate() {
            let y = tensors[round].sums(self.tokens(round, rank), hidden)?;
            let want = combined(kept, rank, &self.wires[round][rank as usize]);
            let right = same("combined rows", &y, &want, hidden as usize);
            checked = checked.and(right.map_err(|why| format!("round {round}: {why}")));
        }
        Ok(checked)
    }
}

/// Rounds that are eager or each a graph of its own, with random delays. The rank without a token takes turns.
fn uneven_rounds(device: Device, seed: u64, mode: Mode, rounds: u32) -> Checked {
    let packed = [Packed::Contiguous(8), Packed::Whole, Packed::Dropping(3)][seed as usize % 3];
    let case = uneven::case(device, seed, mode);
    let worlds = uneven::worlds(&case, seed, rounds);
    let all = Rounds::new(case, packed, worlds);
    device.check(all.case.ranks, mode, |comm| {
        let rank = comm.rank();
        let mut random = Random::new(seed ^ (u64::from(rank) + 1) << 48);
        let config = all.packed.config(&all.case).with_timeout(Duration::from_secs(30));
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        let Prepared { mut tensors, outputs } = all.prepare(&comm, &buffer)?;
        comm.barrier()?;
        // Captured on one rank and eager on another: before any peer waits, as the driver may wait for what runs when it makes a graph.
        let mut graphs = Vec::new();
        for (round, (mine, outputs)) in tensors.iter_mut().zip(&outputs).enumerate() {
            let captured = random.below(3) == 0;
            let mut graph = || comm.capture(|_| all.enqueue(&mut buffer, mine, outputs, (round, rank)));
            graphs.push(if captured { Some(graph()?) } else { None });
        }
        comm.barrier()?;
        for (round, ((mine, outputs), graph)) in tensors.iter_mut().zip(&outputs).zip(&graphs).enumerate() {
            uneven::be_late(&comm, &mut random)?;
            match graph {
                // SAFETY: the tensors live until the stream has passed the graph.
                Some(graph) => unsafe { graph.launch(&comm)? },
                None => all.enqueue(&mut buffer, mine, outputs, (round, rank))?,
            }
        }
        buffer.synchronize()?;
        let checked = all.check(rank, &tensors)?;
        drop(graphs);
        buffer.close()?;
        Ok(checked)
    })
}

#[test]
fn uneven_rounds_are_bitwise_the_reference() {
    let device = Device::from_env();
    for seed in replay::seeds(3) {
        for mode in device.schedules([seed]) {
            if let Err(why) = uneven_rounds(device, seed, mode, 40) {
                let line = replay::line(module_path!(), "uneven_rounds_are_bitwise_the_reference", seed);
                panic!("{why}\nreplay: {line}");
            }
        }
    }
}
