//! What ranks agree on when they meet: which collective call they are in, and that they were given the same numbers.
use std::os::fd::BorrowedFd;

use super::{Gathered, Turn};
use crate::error::{Error, Result};

/// Gives `payload` to every rank in the same call and returns everyone's, in rank order.
///
/// # Errors
///
/// Those of [`Turn::all_gather`]; [`Error::Bootstrap`] on every rank when one is in another call.
pub(crate) fn meet(turn: &Turn<'_>, call: &'static str, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
    let all = turn.all_gather(&tagged(call, payload))?;
    all.iter().enumerate().map(|(rank, payload)| untagged(call, rank, payload).map(<[u8]>::to_vec)).collect()
}

/// [`meet`] with file descriptors beside the bytes, which only ranks that are processes give.
///
/// # Errors
///
/// Those of [`meet`].
pub(crate) fn meet_with(
    turn: &Turn<'_>,
    call: &'static str,
    payload: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<Vec<Gathered>> {
    let all = turn.all_gather_fds(&tagged(call, payload), fds)?;
    let bare = |(rank, Gathered { payload, fds }): (usize, Gathered)| {
        Ok(Gathered { payload: untagged(call, rank, &payload)?.to_vec(), fds })
    };
    all.into_iter().enumerate().map(bare).collect()
}

/// Checks that all ranks have the same values in these fields, each a name and its value on this rank.
///
/// # Errors
///
/// [`Error::ConfigMismatch`] on every rank, with the first field that differs; those of [`meet`].
pub(crate) fn agree(turn: &Turn<'_>, fields: &[(&'static str, String)]) -> Result<()> {
    let payload = fields.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join("\n");
    let all = meet(turn, "configuration", payload.as_bytes())?;
    let lines = |payload: &Vec<u8>| String::from_utf8_lossy(payload).split('\n').map(str::to_owned).collect();
    let ranks: Vec<Vec<String>> = all.iter().map(lines).collect();
    for (i, (field, _)) in fields.iter().enumerate() {
        let values: Vec<&str> = ranks.iter().map(|r| r.get(i).map_or("?", String::as_str)).collect();
        if values.iter().any(|v| *v != values[0]) {
            return Err(Error::ConfigMismatch { field, values: by_value(&values) });
        }
    }
    Ok(())
}

/// A payload that says which collective call it is for, so that ranks in different ones find out.
fn tagged(call: &str, payload: &[u8]) -> Vec<u8> {
    [call.as_bytes(), b"\0", payload].concat()
}

/// The payload behind the name of this call.
fn untagged<'a>(call: &'static str, rank: usize, payload: &'a [u8]) -> Result<&'a [u8]> {
    payload.strip_prefix(call.as_bytes()).and_then(|rest| rest.strip_prefix(b"\0")).ok_or_else(|| {
        let other = payload.split(|b| *b == 0).next().unwrap_or_default();
        let other = String::from_utf8_lossy(other);
        Error::Bootstrap {
            message: format!("ranks are in different collective calls: here \"{call}\", rank {rank} \"{other}\""),
        }
    })
}

/// Such as `8 on ranks [0, 1], 4 on ranks [2]`.
fn by_value(values: &[&str]) -> String {
    let mut groups: Vec<(&str, Vec<usize>)> = Vec::new();
    for (rank, value) in values.iter().enumerate() {
        match groups.iter_mut().find(|(v, _)| v == value) {
            Some((_, ranks)) => ranks.push(rank),
            None => groups.push((value, vec![rank])),
        }
    }
    groups.iter().map(|(value, ranks)| format!("{value} on ranks {ranks:?}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendezvous::each_rank;

    #[test]
    fn ranks_in_different_calls_all_find_out() {
        let said = each_rank(3, |rank, turn| {
            let call = if rank == 1 { "close" } else { "window" };
            meet(turn, call, b"x").unwrap_err().to_string()
        });
        let here = |call, rank, other| {
            format!("bootstrap: ranks are in different collective calls: here \"{call}\", rank {rank} \"{other}\"")
        };
        assert_eq!(said, [here("window", 1, "close"), here("close", 0, "window"), here("window", 1, "close")]);
    }

    #[test]
    fn the_first_field_that_differs_is_named_with_every_ranks_value() {
        let said = each_rank(3, |rank, turn| {
            let experts = if rank == 2 { 4 } else { 8 };
            agree(turn, &[("hidden", "64".to_owned()), ("experts", experts.to_string()), ("top_k", rank.to_string())])
        });
        for result in said {
            let Err(Error::ConfigMismatch { field, values }) = result else { panic!("{result:?}") };
            assert_eq!((field, values.as_str()), ("experts", "8 on ranks [0, 1], 4 on ranks [2]"));
        }
    }

    #[test]
    fn ranks_with_the_same_values_agree() {
        let met = each_rank(2, |_, turn| agree(turn, &[("hidden", "64".to_owned())]));
        assert!(met.iter().all(Result::is_ok), "{met:?}");
    }
}
