//! Which kernels go into which PTX text.
//!
//! A driver compiles a text as a whole, so a program that uses three kernels of seven waits for seven. A crate may say
//! that its kernels are *families*, each of which becomes a text of its own: in code, or in a small committed file with a
//! line `<family> <kernel> <kernel> ...` for each, and `#` comments.

use crate::{BuildError, Ptx};

/// The families of a kernel crate: every kernel is in exactly one.
///
/// ```
/// use epoxide_ptx_build::Families;
///
/// let families = Families::parse("rows scale_rows shift_rows\nsums sum # of the rows")?;
/// assert_eq!(families.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["rows", "sums"]);
/// # Ok::<(), epoxide_ptx_build::BuildError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Families(Vec<(String, Vec<String>)>);

/// The PTX of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Family {
    /// Its name.
    pub name: String,
    /// Its text, which stands alone.
    pub ptx: Ptx,
}

impl Family {
    /// Names a family and its text.
    pub fn new(name: impl Into<String>, ptx: Ptx) -> Self {
        Self { name: name.into(), ptx }
    }
}

impl Families {
    /// Adds a family of these kernels.
    ///
    /// # Errors
    ///
    /// [`BuildError::Family`] if it has no kernel, if its name cannot be that of a file and of a constant (letters, digits and
    /// `_`, a letter first), or if the name or a kernel was named before.
    pub fn add<E: Into<String>>(
        &mut self,
        name: impl Into<String>,
        entries: impl IntoIterator<Item = E>,
    ) -> Result<(), BuildError> {
        let (name, entries) = (name.into(), entries.into_iter().map(E::into).collect::<Vec<String>>());
        let broken = |rule| Err(BuildError::Family { family: name.clone(), rule });
        let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(letters) {
            return broken("its name must be letters, digits and `_`, a letter first".to_owned());
        }
        if self.0.iter().any(|(other, _)| *other == name) {
            return broken("it is named a second time".to_owned());
        }
        if entries.is_empty() {
            return broken("it has no kernel".to_owned());
        }
        for (at, entry) in entries.iter().enumerate() {
            if let Some(other) = self.of_entry(entry) {
                return broken(format!("its kernel `{entry}` is in `{other}` too"));
            }
            if entries[..at].contains(entry) {
                return broken(format!("its kernel `{entry}` is named twice"));
            }
        }
        self.0.push((name, entries));
        Ok(())
    }

    /// Reads a committed file of families.
    ///
    /// # Errors
    ///
    /// Those of [`Families::add`], for the first line that breaks a rule.
    pub fn parse(text: &str) -> Result<Self, BuildError> {
        let mut families = Self::default();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or("").split_whitespace();
            if let Some(name) = words.next() {
                families.add(name, words)?;
            }
        }
        Ok(families)
    }

    /// The families in their order: name and kernels.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.0.iter().map(|(name, entries)| (name.as_str(), entries.as_slice()))
    }

    /// Tells whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The family of a kernel.
    pub fn of_entry(&self, entry: &str) -> Option<&str> {
        self.iter().find(|(_, entries)| entries.iter().any(|other| other == entry)).map(|(name, _)| name)
    }

    /// Checks that every kernel of a module is in a family, and that no family names another.
    ///
    /// # Errors
    ///
    /// [`BuildError::NoFamily`], [`BuildError::Family`].
    pub fn check(&self, ptx: &Ptx) -> Result<(), BuildError> {
        if let Some(entry) = ptx.entries.iter().find(|entry| self.of_entry(&entry.name).is_none()) {
            return Err(BuildError::NoFamily { entry: entry.name.clone() });
        }
        for (family, entries) in self.iter() {
            if let Some(gone) = entries.iter().find(|name| ptx.entries.iter().all(|entry| entry.name != **name)) {
                let rule = format!("there is no kernel `{gone}`");
                return Err(BuildError::Family { family: family.to_owned(), rule });
            }
        }
        Ok(())
    }

    /// What the source hash covers of it.
    pub(crate) fn settings(&self) -> impl Iterator<Item = String> {
        self.iter().map(|(name, entries)| format!("family {name} {}", entries.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_families_reads_back_in_its_order() {
        let families = Families::parse("# comment\nsend  dispatch  lend # both\n\nrest copy\n").expect("good");
        let read: Vec<_> = families.iter().map(|(name, entries)| (name, entries.join(" "))).collect();
        assert_eq!(read, [("send", "dispatch lend".to_owned()), ("rest", "copy".to_owned())]);
        assert_eq!((families.of_entry("lend"), families.of_entry("send")), (Some("send"), None));
    }

    #[test]
    fn a_broken_rule_names_the_family() {
        for (bad, rule) in [
            ("a", "the family `a`: it has no kernel"),
            ("a x\na y", "the family `a`: it is named a second time"),
            ("a x\nb y x", "the family `b`: its kernel `x` is in `a` too"),
            ("a x x", "the family `a`: its kernel `x` is named twice"),
            ("a/b x", "the family `a/b`: its name must be letters"),
            ("1 x", "the family `1`: its name must be letters"),
        ] {
            let error = Families::parse(bad).expect_err(bad).to_string();
            assert!(error.starts_with(rule), "{error}");
        }
    }
}
