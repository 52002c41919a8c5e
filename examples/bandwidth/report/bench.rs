//! What a rank has for all cells: rows and selections of the most tokens, of which every cell takes the first.
use epoxide::quantize::{Quantizer, scale_stride};
use epoxide::{Comm, DeviceTensor, ElasticBuffer, Layout, Result, Rows, bf16};

use super::cells::Cell;
use super::routing::Routing;
use crate::identity;
use crate::measure::{first_experts, quantized, random};
use crate::options::{Format, Options};
use crate::routes;

/// A rank's tensors, and what must come back of them.
pub struct Bench<'r> {
    pub options: &'r Options,
    pub comm: &'r Comm,
    /// BF16 `[tokens, hidden]`.
    x: DeviceTensor<bf16>,
    /// i32 `[tokens, top_k]`.
    pub picks: DeviceTensor<i32>,
    /// f32 `[tokens, top_k]`.
    pub weights: DeviceTensor<f32>,
    /// The rows as e4m3, with their scales, for cells that bring them so.
    brought: Option<(DeviceTensor<u8>, DeviceTensor<f32>)>,
    /// What no sum is, `[tokens, hidden]`.
    nan: DeviceTensor<bf16>,
    copier: Quantizer,
    x_here: Vec<bf16>,
    picks_here: Vec<i32>,
    /// The first expert of every rank.
    first: Vec<u32>,
    routing: Routing,
    /// The sums that must come, for cells that are alike in this.
    expected: Option<(Routing, Format, Layout, Vec<bf16>)>,
}

impl<'r> Bench<'r> {
    /// Makes the tensors; collective. `cell` is any of the cells.
    ///
    /// # Errors
    ///
    /// The library's.
    pub fn new(options: &'r Options, comm: &'r Comm, cell: Cell) -> Result<Self> {
        let tokens = options.tokens.iter().copied().max().unwrap_or(1);
        let mut next = random(options.seed, comm.rank());
        let elements = tokens as usize * options.hidden as usize;
        // Four elements of each number.
        let element = |bits: u64| bf16::from_f32((bits & 0xffff) as f32 / 32_768.0 - 1.0);
        let numbers = (0..elements.div_ceil(4)).flat_map(|_| {
            let number = next();
            [0, 16, 32, 48].map(|shift| element(number >> shift))
        });
        let x_here: Vec<bf16> = numbers.take(elements).collect();
        // A small buffer says where experts are.
        let one = ElasticBuffer::new(comm, options.config(Cell { tokens: 1, ..cell }.case()))?;
        let first = first_experts(comm, &one)?;
        one.close()?;
        let selections = tokens as usize * options.top_k as usize;
        let routing = cell.routing;
        let picks_here = picks(options, comm.rank(), routing, tokens);
        Ok(Self {
            options,
            comm,
            x: comm.tensor(&x_here)?,
            picks: comm.tensor(&picks_here)?,
            weights: comm.tensor(&vec![1.0 / options.top_k as f32; selections])?,
            brought: None,
            nan: comm.tensor(&vec![bf16::NAN; elements])?,
            copier: Quantizer::new(comm)?,
            x_here,
            picks_here,
            first,
            routing,
            expected: None,
        })
    }

    /// A cell's rows, in the form in which it dispatches them.
    ///
    /// # Errors
    ///
    /// The library's.
    pub fn rows(&self, cell: Cell) -> Result<Rows<'_>> {
        let stride = scale_stride(self.options.hidden);
        match &self.brought {
            Some((codes, scales)) if cell.format == Format::Fp8Brought => Ok(Rows::fp8(
                codes.prefix(self.elements(cell))?,
                scales.prefix(u64::from(cell.tokens) * u64::from(stride))?,
                stride,
            )),
            _ => Ok(Rows::from(self.x.prefix(self.elements(cell))?)),
        }
    }

    /// Elements of a cell's rows.
    pub fn elements(&self, cell: Cell) -> u64 {
        u64::from(cell.tokens) * u64::from(self.options.hidden)
    }

    /// Selections of a cell's tokens.
    pub fn selections(&self, cell: Cell) -> u64 {
        u64::from(cell.tokens) * u64::from(self.options.top_k)
    }

    /// Makes ready what a cell has of its own, where nobody waits for this rank.
    ///
    /// # Errors
    ///
    /// The library's.
    pub fn prepare(&mut self, cell: Cell) -> Result<()> {
        let tokens = (self.picks_here.len() / self.options.top_k as usize) as u32;
        if self.routing != cell.routing {
            self.routing = cell.routing;
            self.picks_here = picks(self.options, self.comm.rank(), cell.routing, tokens);
            self.picks.copy_from_host(&self.picks_here)?;
        }
        if cell.format == Format::Fp8Brought && self.brought.is_none() {
            self.brought = Some(quantized(self.comm, &self.x, tokens, self.options.hidden)?);
        }
        let config = self.options.config(cell.case());
        let layout_of_rows = config.layout_of_rows(self.options.ranks);
        let known = self.expected.as_ref();
        if known.is_none_or(|(of, format, layout, _)| {
            (*of, *format) != (cell.routing, cell.format) || *layout != layout_of_rows
        }) {
            self.expected = None;
            let x = identity::on_the_wire(self.comm, &self.x_here, tokens, self.options.hidden, config.format)?;
            let sums = identity::sums(&x, &self.picks_here, self.options.top_k as usize, &self.first, layout_of_rows);
            self.expected = Some((cell.routing, cell.format, layout_of_rows, sums));
        }
        Ok(())
    }

    /// Writes what no sum is where a cell's sums will be. Enqueued.
    ///
    /// # Errors
    ///
    /// The library's.
    pub fn spoil(&self, cell: Cell, y: &DeviceTensor<bf16>) -> Result<()> {
        let bytes = self.elements(cell) * size_of::<bf16>() as u64;
        // SAFETY: two tensors of at least so many bytes, of which this rank's stream alone uses either.
        unsafe { self.copier.copy_raw(self.nan.address(), y.address(), bytes) }
    }

    /// What is wrong with a cell's sums, if anything is, bit for bit.
    ///
    /// # Errors
    ///
    /// The library's.
    pub fn mismatch(&self, cell: Cell, y: &DeviceTensor<bf16>) -> Result<Option<String>> {
        let Some((.., expected)) = &self.expected else { return Ok(Some("nothing was expected".to_owned())) };
        let got = y.prefix(self.elements(cell))?.to_vec()?;
        let at = got.iter().zip(expected).position(|(got, want)| got.to_bits() != want.to_bits());
        Ok(at.map(|at| {
            let hidden = self.options.hidden as usize;
            let (rank, token, element) = (self.comm.rank(), at / hidden, at % hidden);
            format!(
                "wrong sums: rank {rank}, token {token}, element {element} is {}, and must be {}",
                got[at], expected[at]
            )
        }))
    }

    /// Tokens of a cell that send a row to each rank.
    pub fn sent(&self, cell: Cell) -> Vec<u32> {
        let picks = &self.picks_here[..self.selections(cell) as usize];
        routes::sent(picks, self.options.top_k as usize, &self.first).iter().map(|sent| sent.tokens).collect()
    }
}

/// A rank's selections: of the first tokens the same, however many there are.
fn picks(options: &Options, rank: u32, routing: Routing, tokens: u32) -> Vec<i32> {
    let mut next = random(options.seed ^ 0x5eed, rank);
    routing.picks(options.experts, options.top_k, tokens, &mut next)
}
