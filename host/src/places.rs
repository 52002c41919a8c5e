//! Rows in fixed places, of which some hold one.

/// Which places hold a row: those of which a selection is an expert of this rank's.
pub(crate) fn places(topk: &[i32], stride: usize) -> Vec<usize> {
    let rows = topk.chunks_exact(stride).enumerate();
    rows.filter(|(_, selections)| selections.iter().any(|local| *local >= 0)).map(|(place, _)| place).collect()
}

/// Keeps the rows in some of `all` places.
pub(crate) fn keep<T: Copy>(values: &mut Vec<T>, places: &[usize], all: usize) {
    let width = values.len() / all.max(1);
    for (to, from) in places.iter().enumerate() {
        values.copy_within(from * width..(from + 1) * width, to * width);
    }
    values.truncate(places.len() * width);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_with_a_local_expert_hold_a_row() {
        assert_eq!(places(&[-1, -1, 0, -1, -1, 7, -1, -1], 2), [1, 2]);
        let mut values = vec![10, 11, 20, 21, 30, 31, 40, 41];
        keep(&mut values, &[1, 2], 4);
        assert_eq!(values, [20, 21, 30, 31]);
    }
}
