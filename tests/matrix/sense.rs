//! Which combinations are none, and which the library refuses: with the reason.
use super::dimensions::{Cell, Form, Lie, Outputs, Room, Scales, Schedule, Stream};
use super::support::Device;
use super::worlds;

/// Whether a cell is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sense {
    Runs,
    /// A call of it is refused, with an error that says so.
    Refused(&'static str),
    /// There is no such thing, or not here.
    Senseless(&'static str),
}

/// What makes no sense.
pub struct Rule {
    pub why: &'static str,
    /// Whether the dimensions of which the whole has every combination decide it: else another draw may do.
    pub of_picks: bool,
    broken: fn(&Cell, Device) -> bool,
}

/// What makes no sense, and why.
pub const RULES: &[Rule] = &[
    Rule {
        why: "slabs are not aligned",
        of_picks: true,
        broken: |cell, _| cell.layout == Lie::Slab && cell.alignment > 1,
    },
    Rule {
        why: "compact rows have no padding",
        of_picks: true,
        broken: |cell, _| cell.layout == Lie::Compact && cell.padding,
    },
    Rule {
        why: "rows in fixed places have no padding",
        of_picks: true,
        broken: |cell, _| cell.layout == Lie::RankMajor && cell.padding,
    },
    Rule {
        why: "rows in fixed places have room for all that could come",
        of_picks: false,
        broken: |cell, _| cell.layout == Lie::RankMajor && matches!(cell.room, Room::Exact | Room::TooFew),
    },
    Rule {
        why: "rows that are not FP8 have no scales to choose",
        of_picks: false,
        broken: |cell, _| cell.scales != Scales::F32 && matches!(cell.rows, Form::Bf16 | Form::Opaque),
    },
    Rule {
        why: "more ranks than the device has room for",
        of_picks: false,
        broken: |cell, device| cell.ranks > device.max_ranks(),
    },
    Rule {
        why: "a GPU has a schedule of its own",
        of_picks: false,
        broken: |cell, device| device == Device::Cuda && cell.schedule == Schedule::Seeded,
    },
    Rule {
        why: "64 ranks are run with rows that are short",
        of_picks: false,
        broken: |cell, _| cell.ranks == 64 && cell.row_bytes > 1008,
    },
    Rule {
        why: "64 ranks are run with one SM each",
        of_picks: false,
        broken: |cell, _| cell.ranks == 64 && cell.num_sms > 1,
    },
    Rule {
        why: "64 ranks are run with few calls",
        of_picks: false,
        broken: |cell, _| cell.ranks == 64 && cell.calls > 2,
    },
    Rule {
        why: "a GPU has streams for so many ranks, and each has two",
        of_picks: false,
        broken: |cell, device| {
            device == Device::Cuda && cell.stream != Stream::Own && 2 * cell.ranks > device.max_ranks()
        },
    },
    Rule { why: "more bytes than a cell may have", of_picks: false, broken: |cell, _| bytes(cell) > MOST_BYTES },
];

/// What a call refuses.
pub struct Refusal {
    /// What the error says.
    pub why: &'static str,
    refused: fn(&Cell) -> bool,
}

/// What the library refuses, with what its error says; of a cell that breaks several rules the first.
pub const REFUSALS: &[Refusal] = &[
    Refusal {
        why: "overflow = Drop: selections are dropped for an expert whose slab is full",
        refused: |cell| cell.room == Room::Dropping && cell.layout != Lie::Slab,
    },
    Refusal {
        why: "not where rows have fixed places",
        refused: |cell| cell.layout == Lie::RankMajor && (cell.told || cell.statistics || cell.columns),
    },
    Refusal {
        why: "fp8_combine = true: not where rows have fixed places",
        refused: |cell| cell.over_fp8 && cell.layout == Lie::RankMajor,
    },
    Refusal {
        why: "a row slot is a routing slot too",
        refused: |cell| cell.layout == Lie::RankMajor && cell.routings > cell.row_slots,
    },
    Refusal {
        why: "have no scales that could lie so",
        refused: |cell| cell.columns && worlds::format(cell).scale_words(worlds::hidden(cell)) == 0,
    },
    Refusal {
        why: "in Layout::RankMajor no word says that a combine's rows were read",
        refused: |cell| cell.layout == Lie::RankMajor && cell.outputs == Outputs::Lent,
    },
    Refusal {
        why: "gate_weighted = true: where rows lie by expert",
        refused: |cell| cell.gated && !is_by_expert(cell),
    },
    Refusal {
        why: "rows of a gate-weighted combine lie by expert",
        refused: |cell| cell.gradient && !is_by_expert(cell),
    },
    Refusal {
        why: "gradients that are weighed where they arrive travel in BF16",
        refused: |cell| cell.gradient && cell.rows != Form::Bf16,
    },
    Refusal {
        why: "zero_padding = true: a replay writes no padding",
        refused: |cell| is_by_expert(cell) && cell.padding && (cell.again || cell.gradient),
    },
];

fn is_by_expert(cell: &Cell) -> bool {
    matches!(cell.layout, Lie::ByExpert | Lie::Slab)
}

/// The most bytes that all ranks may receive in one operation, so that a cell takes a part of a second.
const MOST_BYTES: u64 = 6 << 20;

/// At most so many bytes are received by all ranks.
fn bytes(cell: &Cell) -> u64 {
    let (ranks, experts) = (u64::from(cell.ranks), u64::from(worlds::experts(cell)));
    let tokens = ranks * u64::from(worlds::most_tokens(cell));
    let rows = match cell.layout {
        Lie::Compact => tokens * u64::from(cell.top_k).min(ranks),
        Lie::ByExpert => tokens * u64::from(cell.top_k) + experts * u64::from(cell.alignment - 1),
        Lie::Slab => experts * tokens,
        Lie::RankMajor => tokens * ranks,
    };
    rows * u64::from(cell.row_bytes.max(2 * worlds::hidden(cell)))
}

/// How many rules a cell keeps before the first that it breaks.
pub fn kept(cell: &Cell, device: Device) -> usize {
    let rules = RULES.iter().map(|rule| (rule.broken)(cell, device));
    rules.chain(REFUSALS.iter().map(|refusal| (refusal.refused)(cell))).take_while(|broken| !broken).count()
}

/// Whether the dimensions of which the whole has every combination make it senseless, whatever the others have.
pub fn is_of_picks(cell: &Cell, device: Device) -> bool {
    RULES.iter().any(|rule| rule.of_picks && (rule.broken)(cell, device))
}

/// Whether a cell is run, and why not.
pub fn of(cell: &Cell, device: Device) -> Sense {
    if let Some(rule) = RULES.iter().find(|rule| (rule.broken)(cell, device)) {
        return Sense::Senseless(rule.why);
    }
    match REFUSALS.iter().find(|refusal| (refusal.refused)(cell)) {
        Some(refusal) => Sense::Refused(refusal.why),
        None => Sense::Runs,
    }
}
