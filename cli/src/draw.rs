//! What `--simulate` and `--straggler` take.
use std::str::FromStr;

use epoxide::plan::simulate::Draw;

/// Exponent of `zipf` without one: a badly balanced gate.
const USUAL_EXPONENT: f64 = 1.0;

/// `gate`, `uniform`, `zipf[:EXPONENT]` or `one-hot[:EXPERT]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DrawArg(pub Draw);

impl FromStr for DrawArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').map_or((text, None), |(name, value)| (name, Some(value)));
        let draw = match (name, value) {
            ("gate", None) => Draw::Gate,
            ("uniform", None) => Draw::Uniform,
            ("zipf", None) => Draw::Zipf { exponent: USUAL_EXPONENT },
            ("zipf", Some(value)) => {
                Draw::Zipf { exponent: value.parse().map_err(|_| format!("`{value}` is not a number"))? }
            }
            ("one-hot", None) => Draw::OneHot { expert: 0 },
            ("one-hot", Some(value)) => {
                Draw::OneHot { expert: value.parse().map_err(|_| format!("`{value}` is no expert"))? }
            }
            _ => return Err("known are gate, uniform, zipf[:EXPONENT], one-hot[:EXPERT]".into()),
        };
        Ok(Self(draw))
    }
}

/// `RANK:FACTOR`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Straggler {
    pub rank: u32,
    pub factor: f64,
}

impl FromStr for Straggler {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once(':').and_then(|(rank, factor)| Some((rank.parse().ok()?, factor.parse().ok()?)));
        parsed.map(|(rank, factor)| Self { rank, factor }).ok_or("a straggler is RANK:FACTOR, such as 3:1.5")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_and_stragglers_are_read_and_bad_ones_refused() {
        assert_eq!("zipf:0.8".parse(), Ok(DrawArg(Draw::Zipf { exponent: 0.8 })));
        assert_eq!("one-hot:9".parse(), Ok(DrawArg(Draw::OneHot { expert: 9 })));
        assert!("zip".parse::<DrawArg>().unwrap_err().contains("one-hot"));
        assert!("uniform:3".parse::<DrawArg>().is_err());
        assert_eq!("3:1.5".parse(), Ok(Straggler { rank: 3, factor: 1.5 }));
        assert!("3".parse::<Straggler>().is_err());
    }
}
