//! The programs as a model, and what is right in every state of it.
use stateright::{Model, Property};

use super::machine::Programs;
use super::state::{State, Wrong, can_arrive};
use super::step::{LabelId, Step};

/// No rank writes over what an operation before has left for a reader that has not read it yet.
pub const NOT_OVERWRITTEN: &str = "nothing is written over what is still to be read";
/// A reader finds what its own operation has brought, and a word that has come is still there.
pub const OWN: &str = "who reads finds what its own operation has brought";
/// Every path ends with all programs at their ends.
pub const ENDS: &str = "every path ends";
/// Who has completed an operation knows that all ranks have entered it.
pub const TOGETHER: &str = "who has completed an operation knows that all have entered it";
/// Ranks that are in different operations complete neither.
pub const IN_STEP: &str = "no rank completes an operation in which ranks differ";
/// All of them.
pub const ALL: [&str; 5] = [NOT_OVERWRITTEN, OWN, ENDS, TOGETHER, IN_STEP];

/// Not a law: that some path comes to its end.
pub const COMPLETES: &str = "a path completes";

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// An agent takes its next step.
    Step { agent: usize },
    /// A store of an agent's arrives.
    Arrive { agent: usize, which: usize },
    /// An agent's wait ends without what it waits for.
    GiveUp { agent: usize },
    /// A rank's process ends.
    Die { rank: u8 },
}

impl Model for Programs {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.first()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.wrong.is_some() {
            return;
        }
        let agents = 0..self.steps.len();
        if self.prompt {
            let prompt = |agent| Some(Action::Arrive { agent, which: self.prompt_arrival(state, agent)? });
            if let Some(arrival) = agents.clone().find_map(prompt) {
                actions.push(arrival);
                return;
            }
        }
        for agent in agents {
            let travelling = &state.travelling[agent];
            let arrivals = (0..travelling.len()).filter(|&which| can_arrive(travelling, which));
            actions.extend(arrivals.map(|which| Action::Arrive { agent, which }));
            if self.can_step(state, agent) {
                actions.push(Action::Step { agent });
            }
            if self.can_give_up(state, agent) {
                actions.push(Action::GiveUp { agent });
            }
        }
        let lives = |&rank: &u8| state.dead >> rank & 1 == 0;
        actions.extend(self.mortal.filter(lives).map(|rank| Action::Die { rank }));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Step { agent } => self.step(&mut state, agent),
            Action::Arrive { agent, which } => {
                let store = state.travelling[agent].remove(which);
                state.arrive(store);
            }
            Action::GiveUp { agent } => self.give_up(&mut state, agent),
            Action::Die { rank } => state.dead |= 1 << rank,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOT_OVERWRITTEN, |_, state: &State| {
                !matches!(state.wrong, Some(Wrong::Overwritten { .. }))
            }),
            Property::always(OWN, |_, state: &State| {
                !matches!(state.wrong, Some(Wrong::Foreign { .. } | Wrong::Changed { .. }))
            }),
            // Programs have no way back, so a path ends where nothing can be done.
            Property::always(ENDS, |model: &Self, state: &State| {
                state.wrong.is_some() || model.goes_on(state) || model.is_over(state)
            }),
            Property::always(TOGETHER, |model: &Self, state: &State| {
                let reached = |&label: &LabelId| model.is_reached(state, label);
                model.together.iter().all(|op| !op.completed.iter().any(reached) || op.entered.iter().all(reached))
            }),
            Property::always(IN_STEP, |_, state: &State| state.wrong != Some(Wrong::Completed)),
            Property::sometimes(COMPLETES, |model: &Self, state: &State| state.wrong.is_none() && model.is_over(state)),
        ]
    }
}

impl Programs {
    fn is_over(&self, state: &State) -> bool {
        (0..self.steps.len()).all(|agent| self.has_ended(state, agent))
    }

    fn goes_on(&self, state: &State) -> bool {
        let may_die = self.mortal.is_some_and(|rank| state.dead >> rank & 1 == 0);
        may_die
            || (0..self.steps.len()).any(|agent| {
                let arrives = !state.travelling[agent].is_empty();
                arrives || self.can_step(state, agent) || self.can_give_up(state, agent)
            })
    }

    /// What is wrong in a state, or where its agents stand.
    pub fn describe(&self, state: &State) -> String {
        let piece = |id: u16| &self.names.pieces[usize::from(id)];
        match state.wrong {
            Some(Wrong::Overwritten { piece: id, op, by }) => {
                format!("operation {by} overwrites operation {op} in {}", piece(id))
            }
            Some(Wrong::Foreign { piece: id, op, found }) => {
                format!("operation {op} reads operation {found} in {}", piece(id))
            }
            Some(Wrong::Changed { word }) => format!("{} holds something else", self.names.words[usize::from(word)]),
            Some(Wrong::Completed) => "it is completed".into(),
            None => {
                let stands = |agent: usize| {
                    let step = self.describe_step(self.next(state, agent)?);
                    Some(format!("rank {} {step}", self.ranks.of_agent[agent]))
                };
                (0..self.steps.len()).filter_map(stands).collect::<Vec<_>>().join("; ")
            }
        }
    }

    fn describe_step(&self, step: &Step) -> String {
        match step {
            Step::Await(wait) => {
                let words: Vec<_> = wait.words.iter().map(|&id| self.names.words[usize::from(id)].as_str()).collect();
                format!("waits for {} in {}", wait.stamp, words.join(", "))
            }
            other => format!("is at {other:?}"),
        }
    }
}
