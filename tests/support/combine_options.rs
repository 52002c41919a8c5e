//! The plain reference of combine's options, and one combine checked against it.
use std::collections::BTreeMap;

use epoxide::{
    CombineInput, CombineOutput, Comm, Config, DeviceTensor, Dispatched, ElasticBuffer, ExpertOutputs, Layout, Result,
    ReturnedWeights, bf16,
};

use super::by_expert::{Padding, Slot, slots};
use super::reference::{Wire, World, code_value, expert, quantize, round, same};
use super::routing::Random;
use super::{Checked, by_expert, exchange, fixed_places};

/// What ranks agree on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    pub gated: bool,
    pub returned: bool,
    /// What crosses between ranks is quantised.
    pub fp8: bool,
}

/// What a rank may do as it likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    pub biases: usize,
    pub accumulate: bool,
    pub wide: bool,
    /// Tensors are parts of larger ones.
    pub cut: bool,
}

impl Own {
    /// All there are, every second in parts of tensors.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..12).map(|i| Self { biases: i % 3, accumulate: i / 3 % 2 == 1, wide: i / 6 == 1, cut: i % 2 == 1 })
    }

    /// Any of them.
    pub fn random(random: &mut Random) -> Self {
        let at = random.below(12) as usize;
        Self { cut: random.below(2) == 1, ..Self::all().nth(at).expect("one of the 12") }
    }
}

/// The biases of a rank's tokens, and what is in `y` before.
pub struct Extra {
    pub biases: [Vec<bf16>; 2],
    pub before: Vec<f32>,
}

impl Extra {
    /// Numbers of all magnitudes, of which the biases often cancel: their sum depends on the order.
    pub fn new(elements: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut number = || (random.below(4096) as f32 - 2048.0) * 2.0f32.powi(random.below(24) as i32 - 12);
        let first: Vec<_> = (0..elements).map(|_| bf16::from_f32(number())).collect();
        let second = first.iter().enumerate().map(|(i, x)| if i % 2 == 0 { -*x } else { bf16::from_f32(number()) });
        let second = second.collect();
        Self { biases: [first, second], before: (0..elements).map(|_| number()).collect() }
    }
}

/// Whether a row is of one selection, and not of all that a token has on a rank.
fn by_selection(layout: Layout) -> bool {
    matches!(layout, Layout::ExpertContiguous { .. } | Layout::Slab { .. })
}

/// What ranks bring to the sum of a token: a row each, by their first selections.
fn rows_of_ranks(
    world: &World,
    source: u32,
    token: u32,
    seen: &[bf16],
    layout: Layout,
    agreed: Agreed,
) -> Vec<Vec<f32>> {
    let owners = world.owners();
    let at = token as usize * world.top_k as usize;
    let (mut order, mut sums) = (Vec::new(), BTreeMap::<u32, Vec<f32>>::new());
    for (k, selected) in world.selections(source, token).iter().enumerate() {
        let Ok(selected) = u32::try_from(*selected) else { continue };
        let owner = owners[selected as usize];
        if !sums.contains_key(&owner) {
            order.push(owner);
        } else if !by_selection(layout) {
            continue;
        }
        let weight = world.inputs[source as usize].topk_weights[at + k];
        let sum = sums.entry(owner).or_insert_with(|| vec![0.0; seen.len()]);
        for (sum, x) in sum.iter_mut().zip(seen) {
            let x = if by_selection(layout) { by_expert::expert(selected, *x) } else { expert(owner, *x) };
            *sum += if agreed.gated { f32::from(x) * weight } else { f32::from(x) };
        }
    }
    let row = |owner: &u32| {
        let row: Vec<bf16> = sums[owner].iter().map(|sum| round(*sum)).collect();
        if agreed.fp8 && *owner != source { crossed(&row) } else { row.into_iter().map(f32::from).collect() }
    };
    order.iter().map(row).collect()
}

/// What a row is that crosses in FP8.
pub fn crossed(row: &[bf16]) -> Vec<f32> {
    let (codes, scales) = quantize(row, row.len() as u32);
    let groups = codes.chunks(128).zip(scales);
    groups.flat_map(|(codes, scale)| codes.iter().map(move |code| code_value(*code) * scale)).collect()
}

/// The sums of `source`'s tokens, before they are rounded.
pub fn combined(
    world: &World,
    source: u32,
    wire: &Wire,
    layout: Layout,
    agreed: Agreed,
    own: Own,
    extra: &Extra,
) -> Vec<f32> {
    let hidden = world.hidden as usize;
    let (mut y, mut seen) = (Vec::new(), vec![bf16::ZERO; hidden]);
    for token in 0..world.inputs[source as usize].tokens {
        wire.dequantized(token, world.hidden, &mut seen);
        let mut rows = rows_of_ranks(world, source, token, &seen, layout, agreed);
        let here = token as usize * hidden..(token as usize + 1) * hidden;
        for bias in &extra.biases[..own.biases] {
            rows.push(bias[here.clone()].iter().map(|x| f32::from(*x)).collect());
        }
        if own.accumulate {
            let before = extra.before[here].iter();
            rows.push(before.map(|x| if own.wide { *x } else { f32::from(bf16::from_f32(*x)) }).collect());
        }
        let mut sum = vec![0.0f32; hidden];
        for row in rows {
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        y.extend(sum);
    }
    y
}

/// What the owner of its expert returns for a selection.
pub fn weight(source: u32, token: u32, position: usize, salt: u64) -> f32 {
    let mut random = Random::new(salt ^ u64::from(source) << 40 ^ u64::from(token) << 8 ^ position as u64);
    random.below(1 << 24) as f32 / 4096.0 - 2048.0
}

/// What comes back for a rank's tokens.
pub fn weights_back(world: &World, source: u32, salt: u64) -> Vec<f32> {
    let mut weights = Vec::new();
    for token in 0..world.inputs[source as usize].tokens {
        let selections = world.selections(source, token).iter().enumerate();
        weights.extend(selections.map(|(k, &e)| if e < 0 { 0.0 } else { weight(source, token, k, salt) }));
    }
    weights
}

/// What a rank returns for the rows that it receives: NaN where nobody may look. `max_tokens` says where rows in fixed places are.
pub fn weights_of_rows(world: &World, rank: u32, layout: Layout, max_tokens: u32, salt: u64) -> Vec<f32> {
    let of_slot = |slot: Slot| slot.map_or(f32::NAN, |(source, token, k)| weight(source, token, k, salt));
    if by_selection(layout) {
        return slots(world, rank, Padding::of(layout)).0.into_iter().map(of_slot).collect();
    }
    let (arrivals, top_k) = (world.arrivals(rank), world.top_k as usize);
    let mut weights = Vec::new();
    for (&(source, token), local) in arrivals.sources.iter().zip(arrivals.topk_idx.chunks_exact(top_k)) {
        let of_row = local.iter().enumerate();
        weights.extend(of_row.map(|(k, &e)| if e < 0 { f32::NAN } else { weight(source, token, k, salt) }));
        weights.resize(weights.len().next_multiple_of(4), f32::NAN);
    }
    match layout {
        Layout::RankMajor { .. } => {
            fixed_places::spread(world, rank, max_tokens, &weights, top_k.next_multiple_of(4), f32::NAN)
        }
        _ => weights,
    }
}

/// How a tensor's elements lie in a larger one: so many before them, and as many behind.
fn margin(own: Own, whole: u64) -> u64 {
    if own.cut { whole } else { 0 }
}

/// Elements with `margin` others on both sides.
fn within<T: Copy>(elements: &[T], margin: u64, other: T) -> Vec<T> {
    let around = vec![other; margin as usize];
    [around.as_slice(), elements, around.as_slice()].concat()
}

/// The tensors of a rank's combine with options, and what must come of it.
pub struct Options {
    rank: u32,
    layout: Layout,
    agreed: Agreed,
    own: Own,
    salt: u64,
    extra: Extra,
    biases: [DeviceTensor<bf16>; 2],
    narrow: DeviceTensor<bf16>,
    wide: DeviceTensor<f32>,
    back: DeviceTensor<f32>,
    /// Weights that this rank returns for the rows that it receives.
    from: DeviceTensor<f32>,
}

/// What is in BF16 where nothing is to be written.
const NONSENSE: bf16 = bf16::from_bits(0x5a5a);

impl Options {
    /// The tensors for the sums of `world`'s tokens in a buffer of this configuration; biases, weights and what was in `y` follow from `salt`.
    pub fn new(comm: &Comm, world: &World, config: &Config, agreed: Agreed, own: Own, salt: u64) -> Result<Self> {
        let (layout, max_tokens) = (config.layout, config.max_tokens_per_rank);
        let (rank, input) = (comm.rank(), &world.inputs[comm.rank() as usize]);
        let extra = Extra::new(input.x.len(), salt ^ u64::from(rank));
        // Rows begin at a multiple of 16 bytes, weights anywhere.
        let (rows, words) = (margin(own, 8), margin(own, 1));
        let [first, second] = [0, 1].map(|i| comm.tensor(&within(&extra.biases[i], rows, bf16::NAN)));
        let before: Vec<_> = extra.before.iter().map(|x| bf16::from_f32(*x)).collect();
        Ok(Self {
            biases: [first?, second?],
            narrow: comm.tensor(&within(&before, rows, NONSENSE))?,
            wide: comm.tensor(&within(&extra.before, rows, 1e30))?,
            back: comm.tensor(&within(&vec![-1.5f32; input.topk_idx.len()], words, 2.5))?,
            from: comm.tensor(&within(&weights_of_rows(world, rank, layout, max_tokens, salt), words, f32::NAN))?,
            rank,
            layout,
            agreed,
            own,
            salt,
            extra,
        })
    }

    /// The combine of `outputs`.
    pub fn input<'a>(&'a mut self, outputs: impl Into<ExpertOutputs<'a>>) -> Result<CombineInput<'a>> {
        let Self { agreed, own, biases, narrow, wide, back, from, .. } = self;
        let (rows, words) = (margin(*own, 8), margin(*own, 1));
        let end = biases[0].len() - rows;
        let y: CombineOutput<'_> =
            if own.wide { wide.slice_mut(rows..end)?.into() } else { narrow.slice_mut(rows..end)?.into() };
        let mut input = CombineInput::new(outputs, y);
        for bias in &biases[..own.biases] {
            input = input.with_bias(bias.slice(rows..end)?);
        }
        if own.accumulate {
            input = input.accumulating();
        }
        if agreed.gated {
            input = input.gate_weighted();
        }
        if agreed.fp8 {
            input = input.over_fp8();
        }
        if agreed.returned {
            let from: ReturnedWeights<'_> = from.slice(words..from.len() - words)?.into();
            let end = back.len() - words;
            input = input.with_returned_weights(from, back.slice_mut(words..end)?);
        }
        Ok(input)
    }

    /// Checks all that the combine has written, and that it wrote nothing else. Waits for the tensors' stream.
    pub fn check(&self, world: &World, wire: &Wire) -> Result<Checked> {
        let &Self { rank, layout, agreed, own, salt, ref extra, .. } = self;
        let (rows, words) = (margin(own, 8), margin(own, 1));
        let want = combined(world, rank, wire, layout, agreed, own, extra);
        let (narrow, wide, back) = (self.narrow.to_vec()?, self.wide.to_vec()?, self.back.to_vec()?);
        let hidden = world.hidden as usize;
        let sums = if own.wide {
            same("sums in f32", &wide, &within(&want, rows, 1e30), hidden)
        } else {
            let want: Vec<_> = want.into_iter().map(round).collect();
            same("sums", &narrow, &within(&want, rows, NONSENSE), hidden)
        };
        let wanted = match agreed.returned {
            true => weights_back(world, rank, salt),
            false => vec![-1.5; back.len() - 2 * words as usize],
        };
        let weights = same("weights", &back, &within(&wanted, words, 2.5), world.top_k as usize);
        Ok(sums.and(weights).map_err(|why| format!("{layout:?} {agreed:?} {own:?}: {why}")))
    }
}

/// Runs the experts of a dispatch on the host, combines with options, and checks all that is written.
#[allow(clippy::too_many_arguments, reason = "a case of a test")]
pub fn check_combine(
    comm: &Comm,
    buffer: &mut ElasticBuffer,
    handle: &Dispatched,
    world: &World,
    wires: &[Wire],
    agreed: Agreed,
    own: Own,
    salt: u64,
) -> Result<Checked> {
    let (rank, layout) = (comm.rank(), buffer.config().layout);
    let received = buffer.received(handle)?;
    let outputs = if by_selection(layout) {
        by_expert::expert_outputs(world, rank, &received)
    } else {
        exchange::expert_outputs(rank, world.hidden, &received)
    };
    buffer.write_expert_outputs(handle, &outputs)?;
    let mut options = Options::new(comm, world, buffer.config(), agreed, own, salt)?;
    buffer.combine(handle, options.input(ExpertOutputs::InPlace)?)?;
    buffer.synchronize()?;
    options.check(world, &wires[rank as usize])
}
