//! Steps that a machine leaves out on purpose, so that a test can see that it would notice.

use std::panic::Location;
use std::path::Path;

/// A step of a kernel, by the line that asks for it: a wait for words or for bulk copies to land, or a releasing store. A machine that has one
/// ([`MachineConfig::with_mutation`](crate::MachineConfig::with_mutation)) runs every kernel as if the line were not there, so no kernel needs
/// a switch for it. (Of a fence nothing shows here yet, left out or not.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// The end of the path of the source file.
    pub file: &'static str,
    /// The line, from 1.
    pub line: u32,
}

impl Mutation {
    /// The step that the first line of `source`, the text of `file`, that contains `text` asks for.
    ///
    /// ```
    /// use epoxide_sim::Mutation;
    /// let source = "fn kernel() {\n    wait();\n}\n";
    /// assert_eq!(Mutation::of("src/kernel.rs", source, "wait()"), Some(Mutation { file: "src/kernel.rs", line: 2 }));
    /// ```
    #[must_use]
    pub fn of(file: &'static str, source: &str, text: &str) -> Option<Self> {
        let line = source.lines().position(|line| line.contains(text))?;
        Some(Self { file, line: u32::try_from(line + 1).ok()? })
    }

    /// Whether it names this place.
    pub(crate) fn names(&self, place: &Location<'_>) -> bool {
        place.line() == self.line && Path::new(place.file()).ends_with(self.file)
    }
}
