//! Parts of what errors say.

/// How much is missing. A limit is one of several regions, of which the first that lies beyond it is named; a tensor is one, and has no
/// others to be counted from.
pub(super) fn too_small(argument: &str, region: &str, needed: u64, total: u64, given: u64) -> String {
    match argument {
        "max_window_bytes" => format!("region {region} ends at byte {needed} of {total}, given {given}"),
        _ => format!("its {region} take {needed} bytes, given {given}"),
    }
}

/// Whose an operation is.
pub(super) fn of(buffer: u64, row_slot: Option<u32>) -> String {
    row_slot.map_or(String::new(), |slot| format!("row slot {slot} of ")) + &format!("buffer {buffer}")
}

/// Where a rank is that did not come.
pub(super) fn elsewhere(rank: u32, row_slot: Option<u32>) -> String {
    let told = |slot| format!("; rank {rank} is in row slot {slot}: operations take the same one on every rank");
    row_slot.map_or(String::new(), told)
}

/// What two ranks are at that differ, each by its routing slot and dispatch.
pub(super) fn handles(ranks: [u32; 2], slots: [u32; 2], dispatches: [u32; 2]) -> String {
    let one = |i: usize| match dispatches[i] {
        0 => format!("rank {} is in routing slot {}", ranks[i], slots[i]),
        dispatch => format!("rank {} works by that of dispatch {dispatch} in routing slot {}", ranks[i], slots[i]),
    };
    format!("{}, {}", one(0), one(1))
}

#[cfg(test)]
mod tests {
    use crate::error::Error;

    #[test]
    fn a_limit_names_the_first_region_beyond_it_and_a_tensor_what_it_holds() {
        let error = |argument, region, needed, total| {
            Error::BufferTooSmall { argument, region, needed, total, given: 2048 }.to_string()
        };
        assert_eq!(error("x", "input rows", 2176, 2176), "x is too small: its input rows take 2176 bytes, given 2048");
        // Also where that region is the last.
        assert_eq!(
            error("max_window_bytes", "expert outputs", 4096, 4096),
            "max_window_bytes is too small: region expert outputs ends at byte 4096 of 4096, given 2048"
        );
    }
}
