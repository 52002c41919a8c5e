//! Building programs: words, pieces of memory and device words by their names, and steps behind one another.
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use super::machine::{Memory, Names, Programs, Ranks, Together};
use super::step::{Await, DeviceId, LabelId, Order, PieceId, Step, Value, WordId};

/// What words say. The names are those of the window's regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Says {
    /// `who` gave up.
    Abort,
    /// `who` is in this operation.
    Entry,
    /// The rows of `who` are there.
    Landed,
    /// The same of one of its blocks: a part of a counter, which is whole when all blocks have said it.
    Landing,
    /// A block of `who` has read the expert outputs: a part of a counter.
    Done,
    /// The counts of `who`.
    Counts,
    /// The rows, or the sums, of a block of `who` are there.
    Block,
    /// Where a block of `who` has put its first rows, and how many tokens it dispatches, in halves; where rows lie by expert.
    Place,
    /// The sums that `who` brings back are there, or may be pulled; in low latency.
    Combined,
    /// How many tokens `who` dispatches; where rows have fixed places.
    Tokens,
    /// What a token of `who` selects; where rows have fixed places.
    Selection,
    /// So much of the rows of `who` is there: a counter; where rows have fixed places.
    Landings,
}

impl Says {
    /// Those that the window has.
    pub const OF_THE_WINDOW: [Self; 7] =
        [Self::Abort, Self::Entry, Self::Landed, Self::Landing, Self::Done, Self::Counts, Self::Block];

    /// Those that a window has besides where rows have fixed places.
    pub const OF_FIXED_PLACES: [Self; 3] = [Self::Tokens, Self::Selection, Self::Landings];

    /// Those that a window has besides where rows lie by expert.
    pub const OF_ROWS_BY_EXPERT: [Self; 1] = [Self::Place];

    /// As the window's layout names the region.
    pub const fn region(self) -> &'static str {
        match self {
            Self::Abort => "abort word",
            Self::Entry => "entry words",
            Self::Landed => "landed words",
            Self::Landing => "landing counters",
            Self::Done => "done words",
            Self::Counts => "count matrix",
            Self::Block => "block words",
            Self::Place => "place words",
            Self::Combined => "combined words",
            Self::Tokens => "token words",
            Self::Selection => "selection words",
            Self::Landings => "landing counters",
        }
    }
}

/// A word at rank `at`, posted by `by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Word {
    pub says: Says,
    /// The row slot.
    pub slot: u8,
    /// Which of its alternating places.
    pub place: u8,
    pub at: u8,
    pub by: u8,
    /// Which block's.
    pub block: u8,
}

/// A piece of memory: what, in which slot, at whom, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    pub what: &'static str,
    pub slot: u8,
    pub at: u8,
    pub of: u8,
    pub block: u8,
}

/// A rank's own device word of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    pub what: &'static str,
    pub rank: u8,
    pub slot: u8,
}

/// What has an index, in the order of its first use.
struct Index<K> {
    of: HashMap<K, u16>,
    keys: Vec<K>,
}

impl<K: Copy + Eq + Hash> Index<K> {
    fn new() -> Self {
        Self { of: HashMap::new(), keys: Vec::new() }
    }

    fn of(&mut self, key: K) -> u16 {
        *self.of.entry(key).or_insert_with(|| {
            self.keys.push(key);
            self.keys.len() as u16 - 1
        })
    }
}

/// What words carry, what memory does, and what is left out.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub memory: Memory,
    /// Whether what a kernel of experts stored has arrived when it ends.
    pub ends_settled: bool,
    /// Whether arrivals that nobody can miss are taken at once.
    pub prompt: bool,
    /// Waits of these names are left out.
    pub without: &'static [&'static str],
    /// Words that carry half of a number, which comes again.
    pub halves: &'static [Says],
    /// After so many: their stamps are remainders. 0 is never.
    pub modulus: u16,
    /// Whether such words of even numbers hold the stamp of an odd one before their first use.
    pub fills_even: bool,
    /// How many operations and dispatches were before the first, as numbers have it.
    pub numbers: u16,
}

impl Setup {
    /// As it is in the window, of a length at which no number comes again.
    pub const WINDOW: Self = Self {
        memory: Memory::Words,
        ends_settled: true,
        prompt: true,
        without: &[],
        halves: &[Says::Entry, Says::Counts],
        modulus: 0,
        fills_even: true,
        numbers: 0,
    };
}

/// Programs in the making.
pub struct World {
    pub ranks: u8,
    /// Blocks of a rank, which are its agents.
    pub blocks: u8,
    pub setup: Setup,
    /// A rank that may die at any step.
    pub mortal: Option<u8>,
    /// What device words hold at first.
    pub first_device: u8,
    words: Index<Word>,
    pieces: Index<Piece>,
    devices: Index<Device>,
    /// Where agents go on that give up, if they may.
    gives_up: Vec<Option<LabelId>>,
    labels: Vec<Option<(u8, u16)>>,
    steps: Vec<Vec<Step>>,
    together: Vec<Together>,
    left_out: BTreeSet<&'static str>,
}

impl World {
    pub fn new(ranks: u8, blocks: u8, setup: Setup) -> Self {
        let agents = usize::from(ranks) * usize::from(blocks);
        Self {
            ranks,
            blocks,
            setup,
            mortal: None,
            first_device: 0,
            words: Index::new(),
            pieces: Index::new(),
            devices: Index::new(),
            gives_up: vec![None; agents],
            labels: Vec::new(),
            steps: vec![Vec::new(); agents],
            together: Vec::new(),
            left_out: BTreeSet::new(),
        }
    }

    /// The agent of a rank's block.
    pub fn agent(&self, rank: u8, block: u8) -> usize {
        usize::from(rank) * usize::from(self.blocks) + usize::from(block)
    }

    pub fn word(&mut self, word: Word) -> WordId {
        self.words.of(word)
    }

    pub fn piece(&mut self, piece: Piece) -> PieceId {
        self.pieces.of(piece)
    }

    pub fn device(&mut self, what: &'static str, rank: u8, slot: u8) -> DeviceId {
        self.devices.of(Device { what, rank, slot })
    }

    /// What a word of this number carries.
    pub fn value(&self, says: Says, payload: u8, number: u16) -> Value {
        let comes_again = self.setup.modulus != 0 && self.setup.halves.contains(&says);
        let stamp = if comes_again { number % self.setup.modulus } else { number };
        Value { payload, stamp: u8::try_from(stamp).expect("few operations") }
    }

    pub fn push(&mut self, agent: usize, step: Step) {
        self.steps[agent].push(step);
    }

    /// A label, to be placed.
    pub fn label(&mut self) -> LabelId {
        self.labels.push(None);
        self.labels.len() as LabelId - 1
    }

    /// Places a label at the agent's next step.
    pub fn place(&mut self, agent: usize, label: LabelId) {
        self.labels[usize::from(label)] = Some((agent as u8, self.steps[agent].len() as u16));
    }

    /// A label at the agent's next step.
    pub fn here(&mut self, agent: usize) -> LabelId {
        let label = self.label();
        self.place(agent, label);
        label
    }

    /// Posts the same at each of these words' places.
    pub fn post(
        &mut self,
        agent: usize,
        words: &[Word],
        payload: u8,
        number: u16,
        order: Order,
        unless: Option<(DeviceId, u8)>,
    ) {
        let Some(first) = words.first() else { return };
        let value = self.value(first.says, payload, number);
        let words = words.iter().map(|&word| self.word(word)).collect();
        self.push(agent, Step::Post { words, value, order, unless });
    }

    /// Adds to each of these words.
    pub fn add(&mut self, agent: usize, words: &[Word], amount: u8, order: Order) {
        let words = words.iter().map(|&word| self.word(word)).collect();
        self.push(agent, Step::Add { words, amount, order });
    }

    /// Waits for words of this number, unless waits of this name are left out; `more` says what else there is to the wait.
    pub fn wait(&mut self, agent: usize, name: &'static str, words: &[Word], number: u16, more: Await) {
        if self.setup.without.contains(&name) {
            self.left_out.insert(name);
            return;
        }
        let Some(first) = words.first() else { return };
        let stamp = self.value(first.says, 0, number).stamp;
        let words: Vec<WordId> = words.iter().map(|&word| self.word(word)).collect();
        let gives_up = self.gives_up[agent].map(|target| (self.abort_word(agent as u8 / self.blocks), target));
        let need = if more.need == 0 { words.len() } else { more.need };
        self.push(agent, Step::Await(Await { words, stamp, need, gives_up, ..more }));
    }

    /// A rank's abort word.
    fn abort_word(&mut self, rank: u8) -> WordId {
        self.word(Word { says: Says::Abort, slot: 0, place: 0, at: rank, by: 0, block: 0 })
    }

    /// From here on deadlines of the agent's waits may pass, it looks at the abort word where it is told to, and who gives up goes on at the label; or
    /// none of it.
    pub fn may_give_up(&mut self, agent: usize, target: Option<LabelId>) {
        self.gives_up[agent] = target;
    }

    /// A look at the abort word.
    pub fn look(&mut self, agent: usize) {
        if let Some(target) = self.gives_up[agent] {
            let word = self.abort_word(agent as u8 / self.blocks);
            self.push(agent, Step::JumpIfSet { word, target });
        }
    }

    /// Sets the abort words of these ranks.
    pub fn abort(&mut self, agent: usize, ranks: &[u8]) {
        let words = ranks.iter().map(|&rank| self.abort_word(rank)).collect();
        let value = Value { payload: 1, stamp: 0 };
        self.push(agent, Step::Post { words, value, order: Order::Release, unless: None });
    }

    /// A kernel of experts ends, whose agent this is.
    pub fn end_kernel(&mut self, agent: usize) {
        if self.setup.memory == Memory::All && self.setup.ends_settled {
            self.push(agent, Step::Drain);
        }
    }

    /// Agents wait for each other.
    pub fn meet(&mut self, agents: &[usize]) {
        if agents.len() < 2 {
            return;
        }
        let labels: Vec<LabelId> = agents.iter().map(|&agent| self.here(agent)).collect();
        for &agent in agents {
            self.push(agent, Step::Reached(labels.clone()));
        }
    }

    /// Operations of all ranks, from where each rank enters and has completed them, in the same order.
    pub fn all_together(&mut self, by_rank: &[Vec<[LabelId; 2]>]) {
        for op in 0..by_rank[0].len() {
            let [entered, completed] = [0, 1].map(|end| by_rank.iter().map(|of_rank| of_rank[op][end]).collect());
            self.together.push(Together { entered, completed });
        }
    }

    /// What a word holds before its first use.
    fn first_word(&self, word: Word) -> Value {
        // Token words do not alternate: the first number has none of their kind before it.
        let alternates = self.setup.halves.contains(&word.says) && word.says != Says::Tokens;
        let even = alternates && word.place == 0 && self.setup.fills_even;
        Value { payload: 0, stamp: u8::from(even) }
    }

    /// The programs.
    ///
    /// # Panics
    ///
    /// If a wait that was to be left out is not there.
    pub fn finish(self) -> Programs {
        assert_eq!(
            self.left_out.len(),
            self.setup.without.len(),
            "there are not all waits of {:?}",
            self.setup.without
        );
        let first_words = self.words.keys.iter().map(|&word| self.first_word(word)).collect();
        let word_name = |word: &Word| {
            let Word { says, slot, place, at, by, block } = *word;
            format!("{} [slot {slot}][place {place}] at {at} by {by} block {block}", says.region())
        };
        let piece_name = |piece: &Piece| {
            let Piece { what, slot, at, of, block } = *piece;
            format!("{what} [slot {slot}] at {at} of {of} block {block}")
        };
        let ranks = Ranks {
            of_agent: (0..self.ranks).flat_map(|rank| (0..self.blocks).map(move |_| rank)).collect(),
            of_word: self.words.keys.iter().map(|word| word.at).collect(),
            of_piece: self.pieces.keys.iter().map(|piece| piece.at).collect(),
            of_device: self.devices.keys.iter().map(|device| device.rank).collect(),
        };
        let names = Names {
            words: self.words.keys.iter().map(word_name).collect(),
            pieces: self.pieces.keys.iter().map(piece_name).collect(),
        };
        let labels = self.labels.into_iter().map(|label| label.expect("every label is placed")).collect();
        Programs {
            memory: self.setup.memory,
            prompt: self.setup.prompt,
            labels,
            first_device: self.first_device,
            together: self.together,
            mortal: self.mortal,
            ..Programs::new(self.steps, ranks, names, first_words)
        }
    }
}
