//! The files of a crate as its modules, and which uses which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::graph::Uses;
use super::source::{Import, Names, Source};
use crate::kernels::relative;

/// The modules of a crate that have a file, by path from its root.
pub struct Modules(BTreeMap<Names, Module>);

struct Module {
    file: String,
    source: Source,
}

impl Modules {
    /// Reads a crate, from its library's root, or its program's.
    pub fn read(crate_dir: &Path) -> Result<Self> {
        let roots = ["src/lib.rs", "src/main.rs"].map(|file| crate_dir.join(file));
        let Some(file) = roots.into_iter().find(|file| file.is_file()) else {
            bail!("{} has neither src/lib.rs nor src/main.rs", crate_dir.display());
        };
        let mut modules = Self(BTreeMap::new());
        modules.add(Names::new(), &file)?;
        Ok(modules)
    }

    fn add(&mut self, path: Names, file: &Path) -> Result<()> {
        let text = fs::read_to_string(file).with_context(|| name_of(file))?;
        let source = Source::parse(&text).with_context(|| name_of(file))?;
        let beside = file.parent().unwrap_or(Path::new("")).to_owned();
        let is_folder = path.is_empty() || file.file_name().is_some_and(|name| name == "mod.rs");
        let below = if is_folder { beside.clone() } else { file.with_extension("") };
        for (name, named) in &source.children {
            let candidates = match named {
                Some(named) => vec![beside.join(named)],
                None => vec![below.join(format!("{name}.rs")), below.join(name).join("mod.rs")],
            };
            let file: Option<PathBuf> = candidates.into_iter().find(|file| file.is_file());
            let file = file.with_context(|| format!("{}: no file of `mod {name};`", name_of(&beside)))?;
            self.add([path.clone(), vec![name.clone()]].concat(), &file)?;
        }
        self.0.insert(path, Module { file: name_of(file), source });
        Ok(())
    }

    /// Which file uses which.
    pub fn uses(&self) -> Uses {
        let mut uses = Uses::new();
        for (path, module) in &self.0 {
            for named in self.named_by(path, &module.source) {
                let Some(target) = self.defines(&named, &mut BTreeSet::new()) else { continue };
                let target = &self.0[&target];
                if target.file != module.file && target.source.has_code && module.source.has_code {
                    let name = if named.is_empty() { "crate".to_owned() } else { named.join("::") };
                    uses.entry((module.file.clone(), target.file.clone())).or_default().insert(name);
                }
            }
        }
        uses
    }

    /// The paths, from the root, that the code of a module names.
    fn named_by(&self, path: &[String], source: &Source) -> Vec<Names> {
        let mut named: Vec<Names> = source.paths.iter().filter_map(|names| self.rooted(path, source, names)).collect();
        for import in &source.imports {
            let Some(target) = self.rooted(path, source, &import.path) else { continue };
            match &import.name {
                // A re-export uses nothing; the code below it may.
                Some(name) if import.public && !source.words.contains(name) => {}
                Some(_) => named.push(target),
                None if import.public => {}
                // Everything of a module: what it defines, and what it passes on.
                None => match self.0.get(&target) {
                    Some(module) => {
                        let passed = module.source.imports.iter().filter_map(|import| import.name.as_ref());
                        let all =
                            module.source.defined.iter().chain(passed).filter(|name| source.words.contains(*name));
                        named.extend(all.map(|name| [target.clone(), vec![name.clone()]].concat()));
                    }
                    None => named.push(target),
                },
            }
        }
        named
    }

    /// A path that a module names, from the root; nothing if it is of another crate or of something in a scope.
    fn rooted(&self, path: &[String], source: &Source, names: &[String]) -> Option<Names> {
        let (first, rest) = names.split_first()?;
        let mut base = path.to_vec();
        match first.as_str() {
            "crate" => base.clear(),
            "self" => {}
            "super" => {
                base.pop()?;
            }
            child if source.children.iter().any(|(name, _)| name == child) => base.push(child.to_owned()),
            name => {
                let imported = |import: &&Import| import.name.as_deref() == Some(name) && import.path != names;
                let import = source.imports.iter().find(imported)?;
                // An import of that very name from elsewhere, `use cuda::cuda`, ends here.
                if import.path.first().is_some_and(|first| first == name) {
                    return None;
                }
                base = self.rooted(path, source, &import.path)?;
            }
        }
        let mut rest = rest.iter().peekable();
        while rest.next_if(|name| *name == "super").is_some() {
            base.pop()?;
        }
        base.extend(rest.filter(|name| *name != "self").cloned());
        Some(base)
    }

    /// The module whose file defines what a path from the root names.
    fn defines(&self, path: &[String], seen: &mut BTreeSet<Names>) -> Option<Names> {
        if !seen.insert(path.to_vec()) {
            return None;
        }
        let known = (0..=path.len()).rev().find(|length| self.0.contains_key(&path[..*length]))?;
        let (module, rest) = path.split_at(known);
        let source = &self.0[module].source;
        let Some(name) = rest.first() else { return Some(module.to_vec()) };
        if source.defined.contains(name) {
            return Some(module.to_vec());
        }
        for import in &source.imports {
            let Some(target) = self.rooted(module, source, &import.path) else { continue };
            let through = match &import.name {
                Some(known) if known == name => [target, rest[1..].to_vec()].concat(),
                None => [target, rest.to_vec()].concat(),
                Some(_) => continue,
            };
            let Some(found) = self.defines(&through, seen) else { continue };
            // A `*` passes on only what is there.
            if import.name.is_some() || self.0[&found].source.defined.contains(name) {
                return Some(found);
            }
        }
        Some(module.to_vec())
    }
}

/// A path for a reader at the root of the workspace, with `/` everywhere.
fn name_of(file: &Path) -> String {
    relative(file).replace('\\', "/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circles::graph::circles;

    /// A crate of these files.
    fn crate_of(files: &[(&str, &str)]) -> Modules {
        let modules = files.iter().map(|(path, text)| {
            let names = path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect();
            let file = if path.is_empty() { "root".to_owned() } else { (*path).to_owned() };
            (names, Module { file, source: Source::parse(text).expect("tokens") })
        });
        Modules(modules.collect())
    }

    fn of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        circles(&crate_of(files).uses()).into_iter().map(|circle| circle.into_iter().collect()).collect()
    }

    const NONE: Vec<Vec<String>> = Vec::new();

    #[test]
    fn siblings_that_import_each_other_are_a_circle() {
        let a = ("a", "use crate::b::B; pub struct A(B);");
        assert_eq!(
            of(&[("", "mod a; mod b;"), a, ("b", "pub struct B; fn f() -> crate::a::A { todo!() }")]),
            [["a", "b"]]
        );
        assert_eq!(of(&[("", "mod a; mod b;"), a, ("b", "pub struct B;")]), NONE);
    }

    #[test]
    fn names_are_followed_through_a_parent_that_re_exports() {
        let root = ("", "mod a; mod b; pub use a::A; pub use b::*;");
        let circle = [
            root,
            ("a", "use crate::B; pub struct A(B);"),
            ("b", "pub struct B; use crate::A; impl B { fn a(_: A) {} }"),
        ];
        assert_eq!(of(&circle), [["a", "b"]]);
        let line = [root, ("a", "pub struct A;"), ("b", "use crate::A; pub struct B(A);")];
        assert_eq!(of(&line), NONE);
    }

    #[test]
    fn a_parent_with_code_is_a_file_like_any_other() {
        let child = ("a::x", "use super::Shared; pub struct X(Shared);");
        let files = |parent| [("", "mod a;"), ("a", parent), child];
        assert_eq!(of(&files("mod x; pub use x::X; pub struct Shared;")), NONE, "re-exports alone use nothing");
        assert_eq!(of(&files("mod x; use x::X; pub struct Shared; fn f(_: X) {}")), [["a", "a::x"]]);
        assert_eq!(of(&files("mod x; pub use x::X; pub struct Shared; fn f(_: X) {}")), [["a", "a::x"]]);
        assert_eq!(of(&files("mod x; pub struct Shared; fn f(_: x::X) {}")), [["a", "a::x"]]);
    }

    #[test]
    fn an_imported_module_is_followed_to_what_is_named_in_it() {
        let files = |b| {
            [
                ("", "mod a; mod b; mod c;"),
                ("a", "use crate::b; fn f() { b::deep::g() }"),
                ("b", "pub mod deep;"),
                ("b::deep", b),
                ("c", "pub fn h() {}"),
            ]
        };
        assert_eq!(of(&files("pub fn g() { crate::a::f() }")), [["a", "b::deep"]]);
        assert_eq!(of(&files("pub fn g() { crate::c::h() }")), NONE);
    }

    #[test]
    fn a_star_counts_for_the_names_that_are_used() {
        let files = |a| [("", "mod a; mod b;"), ("a", a), ("b", "use crate::a::A; pub struct B(A); pub struct C;")];
        assert_eq!(of(&files("use crate::b::*; pub struct A; fn f(_: C) {}")), [["a", "b"]]);
        assert_eq!(of(&files("use crate::b::*; pub struct A;")), NONE);
    }

    #[test]
    fn names_of_other_crates_are_not_ours() {
        let a = ("a", "use b::Thing; use std::b::c; pub fn f(_: Thing) { std::mem::swap(); other::b::g() }");
        assert_eq!(of(&[("", "mod a; mod b;"), a, ("b", "pub fn h() { crate::a::f() }")]), NONE);
    }
}
