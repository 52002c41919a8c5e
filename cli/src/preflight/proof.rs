//! The proof that something runs: two ranks dispatch, their experts scale what they get, combine sums, and every number is checked.
use std::fmt;
use std::time::{Duration, Instant};

use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, ExpertOutputs, LocalGroup, Result, WireRows, bf16,
};

/// Ranks of the proof.
pub(crate) const RANKS: u32 = 2;
const EXPERTS: u32 = 4;
const TOP_K: u32 = 2;
const HIDDEN: u32 = 128;
const TOKENS: u32 = 8;

/// What ran, and how long it took.
#[derive(Debug)]
pub(crate) struct Proof {
    elements: usize,
    wrong: usize,
    time: Duration,
}

impl Proof {
    /// Whether every element was right.
    pub fn holds(&self) -> bool {
        self.wrong == 0
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.time.as_secs_f64();
        if self.holds() {
            let elements = self.elements;
            write!(
                f,
                "{RANKS} ranks dispatched and combined {TOKENS} tokens each in {seconds:.2} s; all {elements} elements are right"
            )
        } else {
            write!(
                f,
                "{RANKS} ranks dispatched and combined, but {} of {} elements are wrong",
                self.wrong, self.elements
            )
        }
    }
}

/// Runs a dispatch and a combine on the ranks of `group`.
///
/// # Errors
///
/// The library's.
pub(crate) fn run(group: LocalGroup) -> Result<Proof> {
    let start = Instant::now();
    let wrong = group.run(rank)?;
    let elements = (RANKS * TOKENS * HIDDEN) as usize;
    Ok(Proof { elements, wrong: wrong.iter().sum(), time: start.elapsed() })
}

/// One rank; how many elements of its result are wrong.
fn rank(comm: Comm) -> Result<usize> {
    let config = Config::new(EXPERTS, TOP_K, HIDDEN, TOKENS).with_num_sms(1).with_timeout(Duration::from_secs(10));
    let mut buffer = ElasticBuffer::new(&comm, config)?;
    let x: Vec<bf16> = (0..TOKENS * HIDDEN).map(|i| value(comm.rank(), i)).collect();
    let experts: Vec<i64> = (0..TOKENS).flat_map(experts).map(i64::from).collect();
    let x = comm.tensor(&x)?;
    let topk_idx = comm.tensor(&experts)?;
    let topk_weights = comm.tensor(&vec![1.0f32; experts.len()])?;
    let mut y = comm.empty::<bf16>(u64::from(TOKENS * HIDDEN))?;
    let handle = buffer.dispatch(&DispatchInput::new(TOKENS, &x, &topk_idx, &topk_weights))?;
    // Every rank doubles what it gets: a token comes back as often doubled as ranks had it.
    let received = buffer.received(&handle)?;
    let rows: Vec<bf16> = match received.x {
        WireRows::Bf16(rows) => rows.iter().map(|row| bf16::from_f32(2.0 * row.to_f32())).collect(),
        _ => Vec::new(),
    };
    buffer.write_expert_outputs(&handle, &rows)?;
    buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    buffer.synchronize()?;
    let y = y.to_vec()?;
    buffer.close()?;
    let wanted = |i: u32| {
        let [a, b] = experts_of_ranks(i / HIDDEN);
        let ranks = if a == b { 1.0 } else { 2.0 };
        2.0 * ranks * value(comm.rank(), i).to_f32()
    };
    Ok((0..).zip(&y).filter(|(i, y)| y.to_f32() != wanted(*i)).count())
}

/// Small integers: exact in BF16 also after doubling and summing.
fn value(rank: u32, i: u32) -> bf16 {
    bf16::from_f32(((i + 7 * rank) % 31) as f32 - 15.0)
}

/// The experts of a token: of one rank, of both, of the other.
fn experts(token: u32) -> [u32; TOP_K as usize] {
    [token % EXPERTS, (token % EXPERTS + 1 + token / EXPERTS % 2) % EXPERTS]
}

/// Their ranks: each has as many experts.
fn experts_of_ranks(token: u32) -> [u32; TOP_K as usize] {
    experts(token).map(|expert| expert / (EXPERTS / RANKS))
}
