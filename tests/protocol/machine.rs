//! How agents' steps interleave: which can be taken, and what comes of them.
use super::state::{Piece, State, Store, Target, Wrong, can_arrive};
use super::step::{Await, DeviceId, LabelId, Order, PieceId, Step, Value, WordId};

/// Which stores travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Words: they arrive later than they were posted, in any order among those that one step posts, else one after another. What is written
    /// beside them is there at once.
    Words,
    /// All: they arrive in any order, but that of releases, and of one place.
    All,
}

/// An operation of all ranks: where each enters it, and where each has completed it.
#[derive(Clone, Debug)]
pub struct Together {
    pub entered: Vec<LabelId>,
    pub completed: Vec<LabelId>,
}

/// A step that looks at a word: for this stamp, or whatever it holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    agent: u8,
    at: u16,
    /// Its agent does not come there before it has waited for the word, in this step.
    behind: Option<u16>,
    stamp: Option<u8>,
}

/// What the ranks have, by index.
#[derive(Default)]
pub struct Ranks {
    /// Whose agents, words, pieces and device words are.
    pub of_agent: Vec<u8>,
    pub of_word: Vec<u8>,
    pub of_piece: Vec<u8>,
    pub of_device: Vec<u8>,
}

/// What things are called, by index.
#[derive(Default)]
pub struct Names {
    pub words: Vec<String>,
    pub pieces: Vec<String>,
}

/// Programs of agents.
pub struct Programs {
    pub memory: Memory,
    /// Whether arrivals that nobody can miss are taken at once, and nothing else in that state.
    pub prompt: bool,
    pub steps: Vec<Vec<Step>>,
    pub ranks: Ranks,
    pub names: Names,
    /// Where each label is: agent, step.
    pub labels: Vec<(u8, u16)>,
    pub first_words: Vec<Value>,
    pub first_device: u8,
    pub together: Vec<Together>,
    /// A rank that may die at any step.
    pub mortal: Option<u8>,
    /// By word.
    pub(super) looks: Vec<Vec<Look>>,
    /// By word: the agents that add to it, a bit for each.
    pub(super) adders: Vec<u64>,
}

impl Programs {
    pub fn new(steps: Vec<Vec<Step>>, ranks: Ranks, names: Names, first_words: Vec<Value>) -> Self {
        let (mut looks, mut adders) = (vec![Vec::new(); first_words.len()], vec![0; first_words.len()]);
        for (agent, program) in (0u8..).zip(&steps) {
            for (at, step) in (0u16..).zip(program) {
                if let Step::Add { words, .. } = step {
                    words.iter().for_each(|&word| adders[usize::from(word)] |= 1 << agent);
                }
                for (word, stamp) in looked_at(step, &ranks) {
                    let waits = |before: &Step| matches!(before, Step::Await(wait) if wait.needs(word));
                    let behind = program[..usize::from(at)].iter().rposition(waits).map(|before| before as u16);
                    looks[usize::from(word)].push(Look { agent, at, behind, stamp });
                }
            }
        }
        Self {
            memory: Memory::Words,
            prompt: true,
            steps,
            ranks,
            names,
            labels: Vec::new(),
            first_words,
            first_device: 0,
            together: Vec::new(),
            mortal: None,
            looks,
            adders,
        }
    }

    pub fn first(&self) -> State {
        State {
            at: vec![0; self.steps.len()],
            words: self.first_words.iter().map(|word| word.to_bits()).collect(),
            pieces: vec![0; self.ranks.of_piece.len()],
            devices: vec![self.first_device; self.ranks.of_device.len()],
            travelling: vec![Vec::new(); self.steps.len()],
            dead: 0,
            wrong: None,
        }
    }

    pub fn is_reached(&self, state: &State, label: LabelId) -> bool {
        let (agent, step) = self.labels[usize::from(label)];
        state.at[usize::from(agent)] >= step
    }

    /// An agent's next step, if it has one and lives.
    pub fn next(&self, state: &State, agent: usize) -> Option<&Step> {
        if state.dead >> self.ranks.of_agent[agent] & 1 != 0 {
            return None;
        }
        self.steps[agent].get(usize::from(state.at[agent]))
    }

    /// Whether an agent does nothing any more, and nothing of it is on its way.
    pub fn has_ended(&self, state: &State, agent: usize) -> bool {
        self.next(state, agent).is_none() && state.travelling[agent].is_empty()
    }

    /// Whether all that is waited for is there, or nothing need be.
    fn has_come(&self, state: &State, wait: &Await) -> bool {
        let there = |&&word: &&WordId| state.word(word).stamp == wait.stamp;
        is_set(state, wait.unless) || wait.words.iter().filter(there).count() >= wait.need
    }

    pub fn can_step(&self, state: &State, agent: usize) -> bool {
        match self.next(state, agent) {
            None => false,
            Some(Step::Await(wait)) => self.has_come(state, wait) || will_not_come(state, wait).is_some(),
            Some(Step::Reached(labels)) => labels.iter().all(|&label| self.is_reached(state, label)),
            Some(Step::Drain) => state.travelling[agent].is_empty(),
            Some(&Step::Gone { rank }) => {
                let mut agents = (0..self.steps.len()).filter(|&agent| self.ranks.of_agent[agent] == rank);
                agents.all(|agent| self.has_ended(state, agent))
            }
            Some(_) => true,
        }
    }

    /// Whether an agent's wait may end without what it waits for: its deadline passes, or it has seen the abort word.
    pub fn can_give_up(&self, state: &State, agent: usize) -> bool {
        matches!(self.next(state, agent), Some(Step::Await(wait)) if wait.gives_up.is_some() && !self.has_come(state, wait))
    }

    pub fn give_up(&self, state: &mut State, agent: usize) {
        if let Some(Step::Await(Await { gives_up: Some((_, target)), .. })) = self.next(state, agent) {
            state.at[agent] = self.labels[usize::from(*target)].1;
        }
    }

    /// A store of an agent's that nobody can tell from one that arrives later, but that who waits for it then waits longer: what looks at the
    /// word from here on cannot come to look before it has arrived. So no step that is taken before is another for it, and states in which anything
    /// else is taken first need not be looked at (the arrival alone is an *ample set*).
    pub fn prompt_arrival(&self, state: &State, agent: usize) -> Option<usize> {
        let travelling = &state.travelling[agent];
        (0..travelling.len()).find(|&which| {
            let word = match travelling[which].to {
                Target::Word(word, _) => word,
                // Of several agents' parts each order makes other sums on the way.
                Target::Added(word, _) if self.adders[usize::from(word)].count_ones() == 1 => word,
                Target::Added(..) | Target::Piece(..) => return false,
            };
            let now = state.word(word).stamp;
            let unseen = |look: &Look| {
                let at = state.at[usize::from(look.agent)];
                let is_over = at > look.at;
                let comes_later = look.behind.is_some_and(|behind| at <= behind);
                is_over || comes_later || look.stamp.is_some_and(|stamp| stamp != now)
            };
            can_arrive(travelling, which) && self.looks[usize::from(word)].iter().all(unseen)
        })
    }

    /// Takes an agent's next step, which it can, and those behind it that nobody else sees, or that write on.
    pub fn step(&self, state: &mut State, agent: usize) {
        loop {
            let writes = matches!(self.next(state, agent), Some(Step::Write { .. }));
            self.one_step(state, agent);
            let goes_on = match self.next(state, agent) {
                Some(Step::Write { .. }) => writes,
                Some(step) => step.is_unseen(),
                None => false,
            };
            if !goes_on || state.wrong.is_some() {
                return;
            }
        }
    }

    fn one_step(&self, state: &mut State, agent: usize) {
        let at = state.at[agent];
        let rank = self.ranks.of_agent[agent];
        let target = |label: LabelId| self.labels[usize::from(label)].1;
        let mut next = at + 1;
        match &self.steps[agent][usize::from(at)] {
            Step::Post { words, value, order, unless } => {
                let skips = is_set(state, *unless);
                for &word in words.iter().filter(|_| !skips) {
                    let released = *order == Order::Release || self.memory == Memory::Words;
                    let store = Store { to: Target::Word(word, value.to_bits()), step: at, released };
                    // What only the agent itself looks at.
                    if self.ranks.of_word[usize::from(word)] == rank && self.is_alone(agent) {
                        state.arrive(store);
                    } else {
                        state.travelling[agent].push(store);
                    }
                }
            }
            Step::Add { words, amount, order } => {
                for &word in words {
                    let released = *order == Order::Release || self.memory == Memory::Words;
                    state.travelling[agent].push(Store { to: Target::Added(word, *amount), step: at, released });
                }
            }
            Step::Await(wait) => {
                if let Some(elsewhere) = will_not_come(state, wait).filter(|_| !self.has_come(state, wait)) {
                    next = target(elsewhere);
                } else if let Some((expected, elsewhere)) = wait.says.filter(|_| !is_set(state, wait.unless)) {
                    let says_other = |&word: &WordId| {
                        let seen = state.word(word);
                        seen.stamp == wait.stamp && seen.payload != expected
                    };
                    if wait.words.iter().any(says_other) {
                        next = target(elsewhere);
                    }
                }
            }
            Step::Look { words, proofs, value, target: elsewhere } => {
                if proofs.iter().all(|&word| state.word(word).stamp == value.stamp) {
                    let other = words.iter().find(|&&word| state.word(word) != *value);
                    state.wrong = other.map(|&word| Wrong::Changed { word });
                } else {
                    next = target(*elsewhere);
                }
            }
            Step::Recheck { words, value } => {
                let gone = words.iter().find(|&&word| state.word(word) != *value);
                state.wrong = gone.map(|&word| Wrong::Changed { word });
            }
            Step::Write { pieces, op, readers } => {
                for &piece in pieces {
                    let to = Target::Piece(piece, Piece { op: *op, readers: *readers });
                    let store = Store { to, step: at, released: false };
                    if self.memory == Memory::Words { state.arrive(store) } else { state.travelling[agent].push(store) }
                }
            }
            Step::Read { pieces, op } => {
                for &piece in pieces {
                    self.read(state, rank, piece, *op);
                }
            }
            Step::Set { device, value } => state.devices[usize::from(*device)] = *value,
            Step::JumpIfSet { word, target: elsewhere } => {
                if state.word(*word) != self.first_words[usize::from(*word)] {
                    next = target(*elsewhere);
                }
            }
            Step::Jump { target: elsewhere } => next = target(*elsewhere),
            Step::Fill { rank } => self.fill(state, *rank),
            Step::Never => state.wrong = Some(Wrong::Completed),
            Step::Reached(_) | Step::Drain | Step::Gone { .. } => {}
        }
        state.at[agent] = next;
    }

    /// Reads a piece for `op`. What its own rank has stored there a reader sees before it has arrived.
    fn read(&self, state: &mut State, rank: u8, piece: PieceId, op: u8) {
        let take = |now: Piece| Piece { readers: now.readers.saturating_sub(1), ..now };
        let own = state.travelling.iter_mut().zip(&self.ranks.of_agent).filter(|&(_, &of)| of == rank);
        let mut stores = own.flat_map(|(stores, _)| stores.iter_mut().rev()).filter_map(|store| match &mut store.to {
            Target::Piece(at, value) if *at == piece => Some(value),
            _ => None,
        });
        let found = match stores.next() {
            Some(value) => std::mem::replace(value, take(*value)),
            None => {
                let now = Piece::from_bits(state.pieces[usize::from(piece)]);
                state.pieces[usize::from(piece)] = take(now).to_bits();
                now
            }
        };
        if found.op != op {
            state.wrong = Some(Wrong::Foreign { piece, op, found: found.op });
        }
    }

    fn fill(&self, state: &mut State, rank: u8) {
        let of = |ranks: &[u8]| -> Vec<usize> { (0..ranks.len()).filter(|&id| ranks[id] == rank).collect() };
        of(&self.ranks.of_word).into_iter().for_each(|word| state.words[word] = self.first_words[word].to_bits());
        of(&self.ranks.of_piece).into_iter().for_each(|piece| state.pieces[piece] = 0);
        of(&self.ranks.of_device).into_iter().for_each(|device| state.devices[device] = self.first_device);
    }

    /// Whether the agent is the only one of its rank.
    fn is_alone(&self, agent: usize) -> bool {
        self.ranks.of_agent.iter().filter(|&&rank| rank == self.ranks.of_agent[agent]).count() == 1
    }
}

/// Where a wait goes on whose words will not come.
fn will_not_come(state: &State, wait: &Await) -> Option<LabelId> {
    let (words, value, elsewhere) = wait.never.as_ref()?;
    let says_other = |&&word: &&WordId| {
        let seen = state.word(word);
        seen.stamp == value.stamp && seen.payload != value.payload
    };
    words.iter().find(says_other).map(|_| *elsewhere)
}

/// Which words a step looks at, and for which stamp, if it cannot be taken with another.
fn looked_at(step: &Step, ranks: &Ranks) -> Vec<(WordId, Option<u8>)> {
    match step {
        // Who may give up does that where the stamp is another.
        Step::Await(Await { gives_up: Some((abort, _)), words, .. }) => {
            words.iter().chain([abort]).map(|&word| (word, None)).collect()
        }
        Step::Await(wait) => {
            let never =
                wait.never.iter().flat_map(|(words, value, _)| words.iter().map(|&word| (word, Some(value.stamp))));
            wait.words.iter().map(|&word| (word, Some(wait.stamp))).chain(never).collect()
        }
        Step::Look { words, .. } | Step::Recheck { words, .. } => words.iter().map(|&word| (word, None)).collect(),
        Step::JumpIfSet { word, .. } => vec![(*word, None)],
        Step::Fill { rank } => {
            let all = (0u16..).zip(&ranks.of_word);
            all.filter(|&(_, of)| of == rank).map(|(word, _)| (word, None)).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether there is such a device word, and it has the value.
fn is_set(state: &State, device: Option<(DeviceId, u8)>) -> bool {
    device.is_some_and(|(device, value)| state.devices[usize::from(device)] == value)
}
