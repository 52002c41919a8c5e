//! What `--sweep` takes: what varies, and its values.
use std::str::FromStr;

use crate::option_values::no_value_twice;

/// Most values of a sweep.
const MOST_VALUES: usize = 256;

/// What varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Ranks,
    Tokens,
    Hidden,
    TopK,
}

impl Over {
    const ALL: [Self; 4] = [Self::Ranks, Self::Tokens, Self::Hidden, Self::TopK];

    /// Its name, as its option has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ranks => "ranks",
            Self::Tokens => "tokens",
            Self::Hidden => "hidden",
            Self::TopK => "top-k",
        }
    }

    /// What its axis says.
    pub fn title(self) -> &'static str {
        match self {
            Self::Ranks => "ranks",
            Self::Tokens => "tokens a rank",
            Self::Hidden => "elements of a row",
            Self::TopK => "experts of a token",
        }
    }
}

/// `ranks=8..2048`, `tokens=128,1000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sweep {
    pub over: Over,
    /// In the order in which they were given; none twice.
    pub values: Vec<u32>,
    /// The ends of a range that are none of its values.
    left_out: Vec<u32>,
}

impl Sweep {
    /// What a reader must know who may have meant other values.
    pub fn note(&self) -> Option<String> {
        let name = self.over.name();
        let ends: Vec<String> = self.left_out.iter().map(u32::to_string).collect();
        let are = if ends.len() == 1 { "is none" } else { "are none" };
        (!ends.is_empty())
            .then(|| format!("--sweep {name}: a range is its powers of two, and {} {are}", ends.join(" and ")))
    }
}

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Over::ALL.map(Over::name).join(", ");
        let form = || format!("a sweep is NAME=FIRST..LAST or NAME=A,B,C, with NAME one of {}", known());
        let (name, values) = text.split_once('=').ok_or_else(form)?;
        let name = name.trim().replace('_', "-");
        let over = Over::ALL.into_iter().find(|over| over.name() == name);
        let over = over.ok_or_else(|| format!("nothing to sweep is called `{name}`; known are {}", known()))?;
        let number = |text: &str| {
            let rule = |e| format!("{name}: `{}`: {e}", text.trim());
            text.trim().parse::<u32>().map_err(rule)
        };
        let (values, left_out) = match values.split_once("..") {
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last.trim_start_matches('='))?);
                if first == 0 {
                    return Err(format!("{name}: a range begins with 1 at least, since its values are powers of two"));
                }
                let powers: Vec<u32> = (0..u32::BITS).map(|i| 1 << i).filter(|v| (first..=last).contains(v)).collect();
                if powers.is_empty() {
                    return Err(format!("{name}: no power of two lies in {first}..{last}; name values as A,B,C"));
                }
                (powers, [first, last].into_iter().filter(|end| !end.is_power_of_two()).collect())
            }
            None => (values.split(',').map(number).collect::<Result<Vec<u32>, _>>()?, Vec::new()),
        };
        if values.len() > MOST_VALUES {
            return Err(format!("{name}: {} values; a sweep has at most {MOST_VALUES}", values.len()));
        }
        no_value_twice(&values).map_err(|error| format!("{name}: {error}"))?;
        Ok(Self { over, values, left_out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_its_powers_of_two_and_a_list_is_itself() {
        let sweep = |text: &str| text.parse::<Sweep>();
        let of = |text: &str| sweep(text).map(|sweep| (sweep.over, sweep.values));
        assert_eq!(of("ranks=8..64"), Ok((Over::Ranks, vec![8, 16, 32, 64])));
        assert_eq!(of("tokens=100..300"), Ok((Over::Tokens, vec![128, 256])));
        assert_eq!(of("top_k=8,1,6"), Ok((Over::TopK, vec![8, 1, 6])));
        for (text, wanted) in [
            ("ranks", "NAME=FIRST..LAST"),
            ("nodes=1..2", "known are ranks, tokens, hidden, top-k"),
            ("ranks=9..15", "no power of two lies in 9..15"),
            ("ranks=64..8", "no power of two"),
            ("ranks=0..8", "ranks: a range begins with 1"),
            ("ranks=8..99999999999", "99999999999"),
            ("ranks=8,,16", "``"),
            ("ranks=-8", "`-8`"),
            ("ranks=8,16,8", "ranks: 8 is there twice"),
        ] {
            let error = sweep(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    #[test]
    fn an_end_of_a_range_that_is_none_of_its_values_is_said() {
        let note = |text: &str| text.parse::<Sweep>().expect("a good sweep").note();
        assert_eq!(note("ranks=8..64"), None);
        assert_eq!(note("ranks=8,9"), None);
        assert_eq!(
            note("tokens=128..300").as_deref(),
            Some("--sweep tokens: a range is its powers of two, and 300 is none")
        );
        assert_eq!(
            note("tokens=100..300").as_deref(),
            Some("--sweep tokens: a range is its powers of two, and 100 and 300 are none")
        );
    }
}
