//! Numbers as people read them.
use epoxide::plan::number;

/// Seconds as "12.3 us" or "4.56 ms".
pub(crate) fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "us"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    format!("{} {unit}", digits(value))
}

/// Bytes in powers of two: "1.23 GiB".
pub(crate) fn memory(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog2() / 10).min(UNITS.len() as u32);
    format!("{} {}", digits(bytes as f64 / (1u64 << (10 * power)) as f64), UNITS[power as usize - 1])
}

/// Bytes in powers of ten, as rates count them: "12.3 MB".
pub(crate) fn traffic(bytes: f64) -> String {
    decimal(bytes, "B")
}

/// Bytes per second: "45.6 GB/s".
pub(crate) fn rate(bytes_per_second: f64) -> String {
    decimal(bytes_per_second, "B/s")
}

/// A number with a power of ten as a prefix of its unit.
pub(crate) fn decimal(value: f64, unit: &str) -> String {
    let (scaled, prefix) = match value {
        v if v < 1e3 => (v, ""),
        v if v < 1e6 => (v / 1e3, "k"),
        v if v < 1e9 => (v / 1e6, "M"),
        v if v < 1e12 => (v / 1e9, "G"),
        v => (v / 1e12, "T"),
    };
    format!("{} {prefix}{unit}", digits(scaled)).trim_end().to_owned()
}

/// Three digits, more before the point where they are few.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        v if v < 9.995 => format!("{value:.2}"),
        v if v < 99.95 => format!("{value:.1}"),
        v if v < 1e9 => format!("{value:.0}"),
        _ => number(format!("{value:.2e}").parse().unwrap_or(value)),
    }
}

/// An integer with its thousands apart.
pub(crate) fn thousands(value: u64) -> String {
    let text = value.to_string();
    let mut out = String::with_capacity(text.len() * 4 / 3);
    for (i, digit) in text.chars().enumerate() {
        if i > 0 && (text.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        assert_eq!(time(0.0), "0 us");
        assert_eq!(time(4.2e-6), "4.20 us");
        assert_eq!(time(0.012_34), "12.3 ms");
        assert_eq!(memory(1000), "1000 B");
        assert_eq!(memory(1 << 20), "1.00 MiB");
        assert_eq!(memory(u64::MAX), "16.0 EiB");
        assert_eq!(traffic(225_100_000.0), "225 MB");
        assert_eq!(rate(49.96e9), "50.0 GB/s");
        assert_eq!(decimal(330e6, ""), "330 M");
        assert_eq!(digits(9.996), "10.0");
        assert_eq!(time(1e300), "1e300 s");
        assert_eq!(rate(1.234_56e308), "1.23e296 TB/s");
        assert_eq!(thousands(1_234_567), "1 234 567");
        assert_eq!(thousands(12), "12");
    }
}
