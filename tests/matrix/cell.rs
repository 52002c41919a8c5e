//! Cells: how they are drawn, printed, named, and all of them gone through.
use std::fmt;

use super::dimensions::{Cell, DIMENSIONS};
use super::sense::{self, Sense};
use super::support::Device;
use super::support::routing::Random;

/// Which of a dimension's values the whole has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Each, with each of those of the others that it has so.
    Every,
    /// One that is drawn.
    Drawn,
    /// One that is drawn, two times of three the first.
    Seldom,
}

/// One dimension.
pub struct Dimension {
    pub name: &'static str,
    pub how: How,
    pub values: fn() -> Vec<String>,
}

impl Dimension {
    pub fn values(&self) -> Vec<String> {
        (self.values)()
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (dimension, place) in DIMENSIONS.iter().zip(self.places()) {
            write!(f, "{}={},", dimension.name, dimension.values()[*place])?;
        }
        write!(f, "data={}", self.data)
    }
}

/// Draws of what is not given before a combination is given up: its own sizes may not fit each other.
const TRIES: u32 = 6;

/// How often another value is drawn for every dimension, none of which keeps more rules, before a cell is given up.
const IN_VAIN: u32 = 8;

/// Which cells are meant: the places that each dimension may have, all if none is named.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    places: Vec<Vec<usize>>,
    data: Option<u64>,
}

impl Filter {
    /// What the environment says.
    pub fn from_env() -> Self {
        Self::parse(&std::env::var("EPOXIDE_MATRIX").unwrap_or_default())
    }

    /// `dimension=value`, with commas between them; a dimension may have several.
    pub fn parse(text: &str) -> Self {
        let mut filter = Self { places: vec![Vec::new(); DIMENSIONS.len()], data: None };
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if name == "data" {
                filter.data = Some(value.parse().unwrap_or_else(|_| panic!("{part}: data is a number")));
                continue;
            }
            let names: Vec<_> = DIMENSIONS.iter().map(|dimension| dimension.name).collect();
            let at = names.iter().position(|known| *known == name);
            let at = at.unwrap_or_else(|| panic!("{part}: there are the dimensions {}", names.join(", ")));
            let values = DIMENSIONS[at].values();
            let place = values.iter().position(|known| known.eq_ignore_ascii_case(value));
            filter.places[at].push(place.unwrap_or_else(|| panic!("{part}: {name} is one of {}", values.join(", "))));
        }
        filter
    }

    /// The places that a dimension may have.
    fn places(&self, dimension: usize) -> Vec<usize> {
        match self.places.get(dimension) {
            Some(places) if !places.is_empty() => places.clone(),
            _ => (0..DIMENSIONS[dimension].values().len()).collect(),
        }
    }

    /// The one cell that is meant, if nothing is open.
    pub fn cell(&self) -> Option<Cell> {
        let places: Option<Vec<_>> = self.places.iter().map(|places| places.first().copied()).collect();
        Some(Cell::of(places.filter(|places| !places.is_empty())?, self.data?))
    }
}

/// Draws a place for each dimension that has none.
fn drawn(given: &[Option<usize>], open: &[Vec<usize>], random: &mut Random) -> Cell {
    let places = DIMENSIONS.iter().zip(given.iter().zip(open)).map(|(dimension, (given, open))| {
        let values = open.len() as u32;
        given.unwrap_or_else(|| match dimension.how {
            How::Seldom if random.below(3) > 0 => open[0],
            _ => open[random.below(values) as usize],
        })
    });
    Cell::of(places.collect(), random.draw() >> 32)
}

/// [`drawn`], and other places for those with which the cell does not run: of those that are refused one in 32 stays, and any where nothing else was
/// found, and of those that make no sense one where all do.
fn draw(given: &[Option<usize>], open: &[Vec<usize>], random: &mut Random, device: Device) -> Cell {
    let (mut refused, mut senseless) = (None, None);
    let picked = DIMENSIONS.iter().zip(given).all(|(dimension, given)| dimension.how != How::Every || given.is_some());
    for _ in 0..TRIES {
        let cell = drawn(given, open, random);
        if picked && sense::is_of_picks(&cell, device) {
            return cell;
        }
        if matches!(sense::of(&cell, device), Sense::Refused(_)) && random.below(32) == 0 {
            return cell;
        }
        let cell = changed(cell, given, open, random, device);
        match sense::of(&cell, device) {
            Sense::Runs => return cell,
            Sense::Refused(_) => refused = Some(cell),
            Sense::Senseless(_) => senseless = Some(cell),
        }
    }
    refused.or(senseless).expect("a try is one of the three")
}

/// The cell, with as few other values as it takes to run, if it can: one after another, with each of which it keeps more rules.
fn changed(mut cell: Cell, given: &[Option<usize>], open: &[Vec<usize>], random: &mut Random, device: Device) -> Cell {
    let free: Vec<_> = (0..DIMENSIONS.len()).filter(|dimension| given[*dimension].is_none()).collect();
    let mut in_vain = 0;
    while in_vain < IN_VAIN && sense::of(&cell, device) != Sense::Runs {
        let kept = sense::kept(&cell, device);
        let first = random.below(free.len().max(1) as u32) as usize;
        let mut others = free.iter().cycle().skip(first).take(free.len()).map(|dimension| {
            let mut places = cell.places().to_vec();
            places[*dimension] = open[*dimension][random.below(open[*dimension].len() as u32) as usize];
            Cell::of(places, cell.data)
        });
        match others.find(|cell| sense::kept(cell, device) > kept) {
            Some(other) => (cell, in_vain) = (other, 0),
            None => in_vain += 1,
        }
    }
    cell
}

/// Random cells, whatever becomes of them.
pub fn any(seed: u64, filter: &Filter) -> impl Iterator<Item = Cell> {
    let mut random = Random::new(Random::new(seed).draw());
    let open: Vec<_> = (0..DIMENSIONS.len()).map(|dimension| filter.places(dimension)).collect();
    std::iter::repeat_with(move || drawn(&vec![None; DIMENSIONS.len()], &open, &mut random))
}

/// Random cells that run, or are refused; no more where hundreds in a row make no sense.
pub fn sample(seed: u64, device: Device, filter: &Filter) -> impl Iterator<Item = Cell> {
    // Seeds may be a step of the generator apart.
    let mut random = Random::new(Random::new(seed).draw());
    let open: Vec<_> = (0..DIMENSIONS.len()).map(|dimension| filter.places(dimension)).collect();
    let given = vec![None; DIMENSIONS.len()];
    std::iter::repeat_with(move || {
        let mut cells = (0..16).map(|_| draw(&given, &open, &mut random, device));
        cells.find(|cell| !matches!(sense::of(cell, device), Sense::Senseless(_)))
    })
    .map_while(|cell| cell)
}

/// Which part of the whole: a number from 1 on, and of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub number: u64,
    pub of: u64,
}

impl Part {
    /// The one part that is all of it.
    pub const WHOLE: Self = Self { number: 1, of: 1 };

    /// What the environment says.
    pub fn from_env() -> Self {
        let text = std::env::var("EPOXIDE_MATRIX_PART").unwrap_or_default();
        if text.is_empty() { Self::WHOLE } else { Self::parse(&text) }
    }

    /// As in `3/8`.
    pub fn parse(text: &str) -> Self {
        let numbers = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((number, of)) if (1..=of).contains(&number) => Self { number, of },
            _ => panic!("part {text}: a part is a number from 1 on, and of how many, as in 3/8"),
        }
    }

    /// Whether a combination is in it. Parts have a mixture each, and so take about as long as each other.
    fn has(self, combination: u64) -> bool {
        (combination.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % self.of + 1 == self.number
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

/// Every combination of the dimensions that the whole has whole, each with values of the others that follow from the seed and from it.
pub struct Whole {
    seed: u64,
    device: Device,
    part: Part,
    open: Vec<Vec<usize>>,
    next: u64,
    len: u64,
}

impl Whole {
    pub fn new(seed: u64, device: Device, part: Part, filter: &Filter) -> Self {
        let open: Vec<_> = (0..DIMENSIONS.len()).map(|dimension| filter.places(dimension)).collect();
        let whole = DIMENSIONS.iter().zip(&open).filter(|(dimension, _)| dimension.how == How::Every);
        let len = whole.map(|(_, open)| open.len() as u64).product();
        Self { seed, device, part, open, next: 0, len }
    }

    /// How many are left.
    pub fn cells(&self) -> u64 {
        (self.next..self.len).filter(|combination| self.part.has(*combination)).count() as u64
    }

    /// A combination's cell.
    fn cell(&self, combination: u64) -> Cell {
        let mut left = combination;
        let given: Vec<_> = DIMENSIONS
            .iter()
            .zip(&self.open)
            .map(|(dimension, open)| {
                (dimension.how == How::Every).then(|| {
                    let values = open.len() as u64;
                    let place = open[(left % values) as usize];
                    left /= values;
                    place
                })
            })
            .collect();
        // From the cell itself, so that it draws the same whatever else a filter lets through.
        let own =
            given.iter().flatten().fold(self.seed, |hash, place| (hash ^ *place as u64).wrapping_mul(0x100_0000_01b3));
        draw(&given, &self.open, &mut Random::new(own), self.device)
    }
}

impl Iterator for Whole {
    type Item = Cell;

    fn next(&mut self) -> Option<Cell> {
        while self.next < self.len {
            self.next += 1;
            if self.part.has(self.next - 1) {
                return Some(self.cell(self.next - 1));
            }
        }
        None
    }
}
