//! Graphs of ranks that are processes, of which one is stopped and masked: what was captured before the others moved to fresh windows is
//! refused on every rank, whatever way it goes on, and what is captured anew serves.
mod support;

use std::time::{Duration, Instant};

use epoxide::{Comm, ElasticBuffer, Error, Gone, Graph, Layout, Result};
use rustix::process::Signal;
use support::graphs::{Layer, config};
use support::processes::{Rank, Ranks};

/// A divisor of the layer's experts.
const RANKS: u32 = 4;
const STOPPED: u32 = 2;
const TOKENS: u32 = 5;
/// Of an operation.
const DEADLINE: Duration = Duration::from_millis(700);

/// Every layout, and whether its rows lie by expert.
const LAYOUTS: [(Layout, bool); 4] = [
    (Layout::Compact, false),
    (Layout::ExpertContiguous { alignment: 4 }, true),
    (Layout::Slab { capacity: RANKS * TOKENS }, true),
    (Layout::RankMajor { alignment: 1 }, false),
];

/// A layer, its buffer, and the graph of both.
struct Captured {
    graph: Graph,
    layer: Layer,
    buffer: ElasticBuffer,
    by_expert: bool,
}

impl Captured {
    fn new(comm: &Comm, (layout, by_expert): (Layout, bool)) -> Result<Self> {
        let mut buffer = ElasticBuffer::new(comm, config(TOKENS).with_layout(layout).with_timeout(DEADLINE))?;
        let mut layer = Layer::new(comm, TOKENS)?;
        let graph = comm.capture(|_| layer.enqueue(&mut buffer))?;
        Ok(Self { graph, layer, buffer, by_expert })
    }

    /// Captures it anew, and returns the graph of before.
    fn again(&mut self, comm: &Comm) -> Result<Graph> {
        let graph = comm.capture(|_| self.layer.enqueue(&mut self.buffer))?;
        Ok(std::mem::replace(&mut self.graph, graph))
    }

    /// Launches it with other rows and another routing; the sums are the reference's.
    fn launches(&mut self, comm: &Comm, rounds: u64) -> Result<()> {
        for round in 0..rounds {
            self.layer.fill(10 * round + u64::from(comm.rank()))?;
            launch(&self.graph, comm)?;
            self.buffer.synchronize()?;
            self.layer.check(self.by_expert)?.unwrap_or_else(|why| panic!("round {round}: {why}"));
        }
        Ok(())
    }
}

fn launch(graph: &Graph, comm: &Comm) -> Result<()> {
    // SAFETY: the layer's tensors are there as long as its graphs, and nobody else touches them before the stream is waited for.
    unsafe { graph.launch(comm) }
}

/// A launch that is refused, with why.
fn refused(graph: &Graph, comm: &Comm) -> String {
    match launch(graph, comm) {
        Err(error @ Error::StaleGraph { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn goes_on(rank: Rank) {
    let machine = rank.machine();
    let comm = rank.comm(machine).expect("all are there");
    let mut all: Vec<_> = LAYOUTS.iter().map(|layout| Captured::new(&comm, *layout).expect("all are there")).collect();
    comm.barrier().expect("all are there");
    let end = Instant::now() + Duration::from_secs(60);
    let error = loop {
        assert!(Instant::now() < end, "nobody was stopped");
        match all.iter_mut().try_for_each(|captured| captured.launches(&comm, 1)) {
            Ok(()) => println!("a round"),
            Err(error) => break error,
        }
    };
    let mut first = Vec::new();
    if comm.rank() != STOPPED {
        assert!(matches!(error, Error::PeerTimeout { .. } | Error::PeerAborted { .. }), "{error}");
        comm.mask(&[STOPPED]).expect("the others live");
        for captured in &mut all {
            captured.buffer.reset().expect("the others live");
            let said = refused(&captured.graph, &comm);
            assert!(said.contains(&format!("its buffer goes on without [{STOPPED}]")), "{said}");
            captured.layer.gone = vec![STOPPED];
            first.push(captured.again(&comm).expect("nobody is waited for"));
            captured.launches(&comm, 5).expect("the others live");
        }
        println!("masked");
    } else {
        let how = matches!(
            error,
            Error::PeerGone { how: Gone::Masked, .. } | Error::PeerTimeout { .. } | Error::PeerAborted { .. }
        );
        assert!(how, "{error}");
    }
    comm.unmask(&[STOPPED]).expect("all live");
    for captured in &mut all {
        captured.buffer.reset().expect("all live");
        // In the windows of before, whether of with everyone or of without the rank that was stopped.
        let said = refused(&captured.graph, &comm);
        assert!(said.contains("to other windows"), "{said}");
        captured.layer.gone = Vec::new();
        captured.again(&comm).expect("nobody is waited for");
    }
    // Of with everyone too, and in no window that is left.
    for graph in &first {
        let said = refused(graph, &comm);
        assert!(said.contains("to other windows"), "{said}");
    }
    comm.barrier().expect("all live");
    for captured in &mut all {
        captured.launches(&comm, 5).expect("all live");
    }
    comm.barrier().expect("all live");
}

#[test]
fn graphs_of_before_a_move_to_fresh_windows_are_refused_and_new_ones_serve() {
    let test = "graphs_of_before_a_move_to_fresh_windows_are_refused_and_new_ones_serve";
    if let Some(rank) = Rank::of_this_process() {
        return goes_on(rank);
    }
    let mut ranks = Ranks::start(RANKS, test, "");
    ranks.wait_for(STOPPED, "a round\n");
    ranks.signal(STOPPED, Signal::STOP);
    (0..RANKS).filter(|rank| *rank != STOPPED).for_each(|rank| ranks.wait_for(rank, "masked\n"));
    ranks.signal(STOPPED, Signal::CONT);
    ranks.end(Duration::from_secs(60));
}
