//! Explores a model whole, or until it breaks the law that it is to break.
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use super::laws;
use super::machine::Programs;

/// Explores all states: no law is broken in any, and some path completes. Returns how many there are.
#[track_caller]
pub fn holds(name: &str, programs: Programs) -> usize {
    let begun = Instant::now();
    // Depth first, which keeps few states at a time; of all it keeps the fingerprints.
    let checker = programs.checker().spawn_dfs().join();
    let states = checker.unique_state_count();
    for law in laws::ALL {
        if let Some(path) = checker.discovery(law) {
            let last = checker.model().describe(path.last_state());
            panic!("{name}: not '{law}' after {} steps: {last}", path.into_actions().len());
        }
    }
    assert!(checker.discovery(laws::COMPLETES).is_some(), "{name}: no path completes");
    println!("{name}: holds in {states} states, {} ms", begun.elapsed().as_millis());
    states
}

/// Explores until the law is broken, which it must be.
#[track_caller]
pub fn breaks(name: &str, programs: Programs, law: &'static str) {
    let begun = Instant::now();
    let checker = programs.checker().finish_when(HasDiscoveries::AnyOf([law].into())).spawn_bfs().join();
    let states = checker.unique_state_count();
    let Some(path) = checker.discovery(law) else {
        let others: Vec<_> = laws::ALL.into_iter().filter(|&law| checker.discovery(law).is_some()).collect();
        panic!("{name}: none of {states} states breaks '{law}', but {others:?}");
    };
    let last = checker.model().describe(path.last_state());
    let (steps, ms) = (path.into_actions().len(), begun.elapsed().as_millis());
    println!("{name}: after {steps} steps, {states} states, {ms} ms: not '{law}': {last}");
}
