//! How numbers are written for people.

/// A number as errors and reports have it: as short as it reads back the same, and with an exponent where its digits would be many.
///
/// ```
/// use epoxide_plan::number;
/// assert_eq!([1.5, 150754820096.0, 1e308, 5e-324].map(number), ["1.5", "150754820096", "1e308", "5e-324"]);
/// ```
pub fn number(value: f64) -> String {
    let digits_are_few = value == 0.0 || !value.is_finite() || (1e-5..1e15).contains(&value.abs());
    if digits_are_few { value.to_string() } else { format!("{value:e}") }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn a_number_reads_back_and_none_is_long() {
        for value in [0.0, -0.0, 0.1, 1.0 / 3.0, -1e-5, 9.9e-6, 123456789012345.0, 1e15, -1e300, f64::MAX, 5e-324] {
            let text = number(value);
            assert_eq!(text.parse::<f64>().map(f64::to_bits), Ok(value.to_bits()), "{text}");
            assert!(text.len() <= 24, "{text}");
        }
        assert_eq!([f64::NAN, f64::INFINITY].map(number), ["NaN", "inf"]);
        assert_eq!([1e-5, 9e-6, 999999999999999.0, 1e15].map(number), ["0.00001", "9e-6", "999999999999999", "1e15"]);
    }
}
