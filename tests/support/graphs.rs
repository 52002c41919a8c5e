//! What the tests of graphs exchange: a layer whose experts give every row back as it is, and what must come of it.
use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, CombineTicket, Comm, Config, DeviceTensor, DispatchInput, DispatchTicket, Dispatched, ElasticBuffer,
    ExpertOutputs, Graph, Layout, Result, bf16,
};

use super::Checked;
use super::routing::Random;

pub const EXPERTS: u32 = 8;
pub const TOP_K: u32 = 3;
pub const HIDDEN: u32 = 64;

/// Rows in fixed places.
pub const FIXED: Layout = Layout::RankMajor { alignment: 1 };
/// The layouts of decode.
pub const DECODE: [Layout; 2] = [Layout::Compact, FIXED];

/// The buffer's configuration for up to so many tokens.
pub fn config(tokens: u32) -> Config {
    Config::new(EXPERTS, TOP_K, HIDDEN, tokens).with_num_sms(2)
}

/// A graph of one layer.
pub fn capture(comm: &Comm, buffer: &mut ElasticBuffer, layer: &mut Layer) -> Result<Graph> {
    let graph = comm.capture(|_| layer.enqueue(buffer))?;
    // Nobody waits for a rank that captures.
    comm.barrier()?;
    Ok(graph)
}

pub fn launch(graph: &Graph, comm: &Comm) -> Result<()> {
    // SAFETY: the layer's tensors are there, and the tests look at them when the stream has come by.
    unsafe { graph.launch(comm) }
}

/// A layer of one rank, of a fixed number of tokens.
pub struct Layer {
    copier: Quantizer,
    tokens: u32,
    hidden: u32,
    ranks: u32,
    /// Ranks that are gone: nothing comes back from them.
    pub gone: Vec<u32>,
    x: DeviceTensor<bf16>,
    idx: DeviceTensor<i64>,
    weights: DeviceTensor<f32>,
    pub y: DeviceTensor<bf16>,
    rows: Vec<bf16>,
    selections: Vec<i64>,
}

impl Layer {
    pub fn new(comm: &Comm, tokens: u32) -> Result<Self> {
        Self::of_rows(comm, tokens, HIDDEN)
    }

    /// One of rows of so many elements.
    pub fn of_rows(comm: &Comm, tokens: u32, hidden: u32) -> Result<Self> {
        let (rows, selections) = (u64::from(tokens * hidden), u64::from(tokens * TOP_K));
        Ok(Self {
            copier: Quantizer::new(comm)?,
            tokens,
            hidden,
            ranks: comm.size(),
            gone: Vec::new(),
            x: comm.empty(rows)?,
            idx: comm.empty(selections)?,
            weights: comm.tensor(&vec![1.0; selections as usize])?,
            y: comm.empty(rows)?,
            rows: Vec::new(),
            selections: Vec::new(),
        })
    }

    /// Other rows and another routing, in place. A selection is an expert, each at most once in a token, or none.
    pub fn fill(&mut self, seed: u64) -> Result<()> {
        let mut random = Random::new(seed);
        self.rows =
            (0..self.tokens * self.hidden).map(|_| bf16::from_f32(random.below(512) as f32 / 16.0 - 16.0)).collect();
        self.selections.clear();
        for _ in 0..self.tokens {
            let mut left: Vec<i64> = (0..i64::from(EXPERTS)).collect();
            for _ in 0..TOP_K {
                let expert = left.swap_remove(random.below(left.len() as u32) as usize);
                self.selections.push(if random.below(5) == 0 { -1 } else { expert });
            }
        }
        self.x.copy_from_host(&self.rows)?;
        self.idx.copy_from_host(&self.selections)?;
        self.y.copy_from_host(&vec![bf16::from_bits(0x5a5a); self.rows.len()])
    }

    /// One selection that no expert has.
    pub fn spoil(&mut self) -> Result<()> {
        self.selections[0] = 1000;
        self.idx.copy_from_host(&self.selections)
    }

    pub fn dispatch(&self, buffer: &mut ElasticBuffer) -> Result<Dispatched> {
        buffer.dispatch(&DispatchInput::new(self.tokens, &self.x, &self.idx, &self.weights))
    }

    /// The same rows, by the routing of an earlier dispatch.
    pub fn again(&self, buffer: &mut ElasticBuffer, handle: &Dispatched) -> Result<Dispatched> {
        buffer.dispatch_again(handle, &self.x)
    }

    /// The dispatch into a row slot.
    pub fn dispatch_into(&self, buffer: &mut ElasticBuffer, slot: u32) -> Result<Dispatched> {
        let input = DispatchInput::new(self.tokens, &self.x, &self.idx, &self.weights).in_row_slot(slot);
        buffer.dispatch(&input)
    }

    /// The send half of a dispatch into a row slot.
    pub fn send(&self, buffer: &mut ElasticBuffer, slot: u32) -> Result<DispatchTicket> {
        let input = DispatchInput::new(self.tokens, &self.x, &self.idx, &self.weights).in_row_slot(slot);
        buffer.dispatch_send(&input)
    }

    /// The experts, and the send half of the combine.
    pub fn give_back(&self, buffer: &mut ElasticBuffer, handle: &Dispatched) -> Result<CombineTicket> {
        self.experts(buffer, handle)?;
        buffer.combine_send(handle, ExpertOutputs::InPlace)
    }

    /// The experts, and the combine.
    pub fn finish(&mut self, buffer: &mut ElasticBuffer, handle: &Dispatched) -> Result<()> {
        self.experts(buffer, handle)?;
        buffer.combine(handle, CombineInput::new(ExpertOutputs::InPlace, &mut self.y))
    }

    /// The experts.
    pub fn experts(&self, buffer: &mut ElasticBuffer, handle: &Dispatched) -> Result<()> {
        let view = buffer.recv_view(handle)?;
        // SAFETY: the rows as they came, to where expert outputs go, of the same size: both there from the dispatch, which is before this, to
        // the combine, which is behind it, on the same stream.
        unsafe { self.copier.copy_raw(view.x, view.expert_outputs, view.max_rows * u64::from(self.hidden) * 2) }
    }

    /// Dispatch, experts and combine.
    pub fn enqueue(&mut self, buffer: &mut ElasticBuffer) -> Result<()> {
        let handle = self.dispatch(buffer)?;
        self.finish(buffer, &handle)
    }

    /// Compares the sums, bit for bit. Waits for the stream.
    pub fn check(&self, by_expert: bool) -> Result<Checked> {
        let y = self.y.to_vec()?;
        let hidden = self.hidden as usize;
        for (token, (row, got)) in self.rows.chunks_exact(hidden).zip(y.chunks_exact(hidden)).enumerate() {
            let each = self.of_ranks(token);
            for (column, (x, got)) in row.iter().zip(got).enumerate() {
                let want = sum(x.to_f32(), &each, by_expert);
                if got.to_bits() != want.to_bits() {
                    return Ok(Err(format!("token {token}, column {column}: {got}, expected {want} of {each:?}")));
                }
            }
        }
        Ok(Ok(()))
    }

    /// How many selections each rank has of a token, of those that have one.
    fn of_ranks(&self, token: usize) -> Vec<u32> {
        let selected = &self.selections[token * TOP_K as usize..][..TOP_K as usize];
        let per_rank = i64::from(EXPERTS / self.ranks);
        let of =
            |rank: i64| selected.iter().filter(|expert| **expert >= 0 && **expert / per_rank == rank).count() as u32;
        let here = (0..self.ranks).filter(|rank| !self.gone.contains(rank));
        here.map(|rank| of(rank.into())).filter(|&count| count > 0).collect()
    }
}

/// All summands are one number, so their order is of no matter: rounded once for all ranks, and where rows lie by expert for each before.
fn sum(x: f32, each: &[u32], by_expert: bool) -> bf16 {
    let repeated = |x: f32, times: u32| bf16::from_f32((0..times).fold(0.0, |sum, _| sum + x));
    let parts = each.iter().map(|&count| if by_expert { repeated(x, count).to_f32() } else { x });
    bf16::from_f32(parts.fold(0.0, |sum, part| sum + part))
}
