//! Cells: how they are drawn, printed, named, and all of them gone through.
use std::fmt;

use super::dimensions::{Cell, DIMENSIONS};
use super::sense::{self, Sense};
use super::support::Device;
use super::support::routing::Random;

/// One dimension.
pub struct Dimension {
    pub name: &'static str,
    /// Whether the whole has each of its values with each of the others', or one that is drawn.
    pub whole: bool,
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
const TRIES: u32 = 64;

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

/// Draws a place for each dimension that has none, until the cell makes sense or there were enough tries; what came last.
fn draw(given: &[Option<usize>], open: &[Vec<usize>], random: &mut Random, device: Device) -> Cell {
    let mut tries = 0..TRIES;
    loop {
        let places = given
            .iter()
            .zip(open)
            .map(|(given, open)| given.unwrap_or_else(|| open[random.below(open.len() as u32) as usize]));
        let cell = Cell::of(places.collect(), random.draw() >> 32);
        if tries.next().is_none() || !matches!(sense::of(&cell, device), Sense::Senseless(_)) {
            return cell;
        }
    }
}

/// Random cells that run, or are refused; no more where hundreds in a row make no sense.
pub fn sample(seed: u64, device: Device, filter: &Filter) -> impl Iterator<Item = Cell> {
    let mut random = Random::new(seed);
    let open: Vec<_> = (0..DIMENSIONS.len()).map(|dimension| filter.places(dimension)).collect();
    let given = vec![None; DIMENSIONS.len()];
    std::iter::repeat_with(move || {
        let mut cells = (0..16).map(|_| draw(&given, &open, &mut random, device));
        cells.find(|cell| !matches!(sense::of(cell, device), Sense::Senseless(_)))
    })
    .map_while(|cell| cell)
}

/// Every combination of the dimensions that the whole has whole, each with values of the others that follow from the seed and from it.
pub struct Whole {
    seed: u64,
    device: Device,
    open: Vec<Vec<usize>>,
    next: u64,
    len: u64,
}

impl Whole {
    pub fn new(seed: u64, device: Device, filter: &Filter) -> Self {
        let open: Vec<_> = (0..DIMENSIONS.len()).map(|dimension| filter.places(dimension)).collect();
        let whole = DIMENSIONS.iter().zip(&open).filter(|(dimension, _)| dimension.whole);
        let len = whole.map(|(_, open)| open.len() as u64).product();
        Self { seed, device, open, next: 0, len }
    }

    /// How many.
    pub fn cells(&self) -> u64 {
        self.len
    }
}

impl Iterator for Whole {
    type Item = Cell;

    fn next(&mut self) -> Option<Cell> {
        if self.next == self.len {
            return None;
        }
        let mut left = self.next;
        self.next += 1;
        let given: Vec<_> = DIMENSIONS
            .iter()
            .zip(&self.open)
            .map(|(dimension, open)| {
                dimension.whole.then(|| {
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
        Some(draw(&given, &self.open, &mut Random::new(own), self.device))
    }
}
