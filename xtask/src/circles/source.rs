//! One file as its words: what it declares, defines and imports, and the paths that it names.
//!
//! Words come from the tokeniser that procedural macros use, so comments, texts and documentation are no words. What is for
//! tests alone is left out.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A path, from `crate`, `self`, `super`, or a name that is in scope.
pub type Names = Vec<String>;

/// What one file says.
#[derive(Debug, Default)]
pub struct Source {
    /// `mod name;`, with the file that a `#[path]` names.
    pub children: Vec<(String, Option<String>)>,
    /// Names of items at the top of the file.
    pub defined: BTreeSet<String>,
    pub imports: Vec<Import>,
    /// Paths of two names and more in the code, not in imports; inside of modules in the file, as from its top.
    pub paths: BTreeSet<Names>,
    /// Every name in the code, outside of imports.
    pub words: BTreeSet<String>,
    /// Whether there is anything but declarations of modules and imports.
    pub has_code: bool,
}

/// A name that a `use` brings into scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    pub path: Names,
    /// The name, or nothing for `*`.
    pub name: Option<String>,
    pub public: bool,
}

impl Source {
    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<Self> {
        let tokens: TokenStream = text.parse().map_err(|error| anyhow!("{error}"))?;
        let mut source = Self::default();
        source.items(tokens, 0);
        Ok(source)
    }

    /// Reads items, of the file or of a module `depth` deep in it.
    fn items(&mut self, tokens: TokenStream, depth: usize) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            let mut attributes = Vec::new();
            while let Some(next) = attribute(&tokens, at, &mut attributes) {
                at = next;
            }
            if at >= tokens.len() {
                break;
            }
            let end = item_end(&tokens, at);
            if !attributes.iter().any(is_for_tests) {
                self.item(&tokens[at..end], &attributes, depth);
            }
            at = end;
        }
    }

    /// Reads one item, without its attributes.
    fn item(&mut self, item: &[TokenTree], attributes: &[Group], depth: usize) {
        let public = word(item, 0).is_some_and(|w| w == "pub");
        let after_visibility = match item.get(1) {
            Some(TokenTree::Group(group)) if public && group.delimiter() == Delimiter::Parenthesis => 2,
            _ => usize::from(public),
        };
        let item = &item[after_visibility..];
        match (word(item, 0).as_deref(), word(item, 1), item.get(2)) {
            (Some("use"), _, _) => {
                let mut imports = Vec::new();
                tree(&item[1..], &depth_names(depth), public, &mut imports);
                if depth == 0 {
                    self.imports.extend(imports);
                } else {
                    // What a module in the file imports, the file uses.
                    self.paths.extend(imports.into_iter().map(|import| import.path));
                }
            }
            (Some("mod"), Some(name), Some(TokenTree::Group(body))) => {
                self.has_code = true;
                self.defined.insert(name);
                self.items(body.stream(), depth + 1);
            }
            (Some("mod"), Some(name), _) => self.children.push((name, attributes.iter().find_map(path_attribute))),
            _ => {
                self.has_code = true;
                if depth == 0 {
                    self.defined.extend(defined(item));
                }
                self.code(item, depth);
            }
        }
    }

    /// Collects the paths and words of code.
    fn code(&mut self, tokens: &[TokenTree], depth: usize) {
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => {
                    let inner: Vec<_> = group.stream().into_iter().collect();
                    self.code(&inner, depth);
                    at += 1;
                }
                // A `use` inside of a function, and in what a macro writes.
                TokenTree::Ident(ident) if ident == "use" => {
                    let end = item_end(tokens, at);
                    let mut imports = Vec::new();
                    tree(&tokens[at + 1..end], &depth_names(depth), false, &mut imports);
                    self.paths.extend(imports.into_iter().map(|import| import.path));
                    at = end;
                }
                // `pub(in crate::x)` names nothing that it uses.
                TokenTree::Ident(ident) if ident == "pub" => {
                    let restricted = matches!(tokens.get(at + 1), Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Parenthesis);
                    at += 1 + usize::from(restricted);
                }
                TokenTree::Ident(_) => {
                    let (path, end) = path(tokens, at);
                    self.words.extend(path.iter().cloned());
                    if path.len() > 1 {
                        self.paths.insert(from_top(path, depth));
                    }
                    at = end;
                }
                // After a `.` or `::` comes the name of something that is found without the path.
                TokenTree::Punct(punct) if matches!(punct.as_char(), '.' | ':') => {
                    let follows = matches!(tokens.get(at + 1), Some(TokenTree::Ident(_)));
                    let is_type =
                        punct.as_char() == ':' && punct.spacing() == proc_macro2::Spacing::Alone && !double(tokens, at);
                    at += if follows && !is_type { 2 } else { 1 };
                }
                _ => at += 1,
            }
        }
    }
}

/// Whether a `:` is the second of a `::`.
fn double(tokens: &[TokenTree], at: usize) -> bool {
    at > 0
        && matches!(&tokens[at - 1], TokenTree::Punct(p) if p.as_char() == ':' && p.spacing() == proc_macro2::Spacing::Joint)
}

/// The steps from a module in the file to the file's own, as a path that ends there.
fn depth_names(depth: usize) -> Names {
    vec!["self".to_owned(); usize::from(depth > 0)]
}

/// A path that code in a module of the file names, as the file itself would: one `super` less for each module.
fn from_top(mut path: Names, depth: usize) -> Names {
    if depth > 0 && path[0] == "super" {
        path.remove(0);
        let more = path.iter().take_while(|name| *name == "super").count();
        if more < depth {
            path.drain(..more);
            path.insert(0, "self".to_owned());
        } else {
            path.drain(..depth - 1);
        }
    }
    path
}

/// Reads a path that begins at a word: its names, and where it ends.
fn path(tokens: &[TokenTree], mut at: usize) -> (Names, usize) {
    let mut names = Names::new();
    while let Some(name) = word(tokens, at) {
        names.push(name);
        at += 1;
        if !is_colons(tokens, at) || word(tokens, at + 2).is_none() {
            break;
        }
        at += 2;
    }
    (names, at)
}

/// Reads the tree of a `use`, behind a prefix.
fn tree(tokens: &[TokenTree], prefix: &[String], public: bool, imports: &mut Vec<Import>) {
    let (names, mut at) = path(tokens, usize::from(is_colons(tokens, 0)) * 2);
    let mut whole = prefix.to_vec();
    // From within a module in the file, `super` is the file, and `self` is too, as far as files go.
    match (prefix.first().map(String::as_str), names.first().map(String::as_str)) {
        (Some("self"), Some("crate")) if prefix.len() == 1 => whole = names.clone(),
        (Some("self"), Some("super" | "self")) if prefix.len() == 1 => whole.extend(names[1..].iter().cloned()),
        _ => whole.extend(names.clone()),
    }
    if is_colons(tokens, at) {
        at += 2;
    }
    match tokens.get(at) {
        Some(TokenTree::Group(group)) => {
            let inner: Vec<_> = group.stream().into_iter().collect();
            for branch in inner.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ',')) {
                if !branch.is_empty() {
                    tree(branch, &whole, public, imports);
                }
            }
        }
        Some(TokenTree::Punct(punct)) if punct.as_char() == '*' => {
            imports.push(Import { path: whole, name: None, public })
        }
        _ => {
            // `a::{self}` is `a`.
            if whole.len() > 1 && whole.last().is_some_and(|last| last == "self") {
                whole.pop();
            }
            let renamed = word(tokens, at).filter(|w| w == "as").and_then(|_| word(tokens, at + 1));
            let name = renamed.or_else(|| whole.last().cloned());
            imports.push(Import { path: whole, name, public });
        }
    }
}

/// The names that an item defines.
fn defined(item: &[TokenTree]) -> Option<String> {
    const KINDS: [&str; 9] = ["fn", "struct", "enum", "trait", "type", "const", "static", "union", "macro_rules"];
    let kind = item.iter().position(|t| matches!(t, TokenTree::Ident(i) if KINDS.contains(&i.to_string().as_str())))?;
    // `const fn`, `static mut`, `macro_rules!`: the next word that is no keyword.
    let mut names = item[kind + 1..].iter().filter_map(|token| match token {
        TokenTree::Ident(ident) => Some(ident.to_string()),
        _ => None,
    });
    names.find(|name| !matches!(name.as_str(), "fn" | "unsafe" | "extern" | "mut" | "async"))
}

/// Where an item ends that begins at a place: behind its `;` or its braces.
fn item_end(tokens: &[TokenTree], from: usize) -> usize {
    let is_use = (from..tokens.len()).take(3).any(|at| word(tokens, at).is_some_and(|w| w == "use"));
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == ';' => return at + 1,
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace && !is_use => {
                // A `const X: T = T { .. };` goes on to its `;`.
                let goes_on =
                    matches!(tokens.get(at + 1), Some(TokenTree::Punct(p)) if matches!(p.as_char(), ';' | '.' | '?'));
                if !goes_on {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

/// Reads an attribute, of an item or of the file, and says where it ends.
fn attribute(tokens: &[TokenTree], at: usize, attributes: &mut Vec<Group>) -> Option<usize> {
    let is = |at: usize, c: char| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == c);
    if !is(at, '#') {
        return None;
    }
    let inner = is(at + 1, '!');
    match tokens.get(at + 1 + usize::from(inner)) {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => {
            if !inner {
                attributes.push(group.clone());
            }
            Some(at + 2 + usize::from(inner))
        }
        _ => None,
    }
}

/// `#[cfg(test)]`, `#[cfg(all(test, ..))]`, `#[test]`.
fn is_for_tests(attribute: &Group) -> bool {
    let text: String = attribute.stream().to_string().split_whitespace().collect();
    text == "test" || text.starts_with("cfg(test") || text.starts_with("cfg(all(test")
}

/// The file in `#[path = "file.rs"]`.
fn path_attribute(attribute: &Group) -> Option<String> {
    let text = attribute.stream().to_string();
    let value = text.strip_prefix("path")?.trim_start().strip_prefix('=')?.trim();
    Some(value.trim_matches('"').to_owned())
}

fn word(tokens: &[TokenTree], at: usize) -> Option<String> {
    match tokens.get(at) {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    }
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    let colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == ':');
    colon(at) && colon(at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(text: &str) -> Vec<String> {
        let source = Source::parse(text).expect("tokens");
        let show = |i: &Import| {
            format!("{}{}", i.path.join("::"), i.name.as_deref().map_or("::*".into(), |n| format!(" as {n}")))
        };
        source.imports.iter().map(show).collect()
    }

    fn paths(text: &str) -> Vec<String> {
        Source::parse(text).expect("tokens").paths.iter().map(|path| path.join("::")).collect()
    }

    #[test]
    fn trees_of_imports_are_taken_apart() {
        assert_eq!(
            imports("use crate::a::{self, b::C as D, e::*};\npub use super::x;"),
            ["crate::a as a", "crate::a::b::C as D", "crate::a::e::*", "super::x as x"]
        );
        let source = Source::parse("pub(crate) use a::B; use c::D;").expect("tokens");
        assert_eq!(source.imports.iter().map(|import| import.public).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn paths_in_code_count_and_those_in_comments_texts_and_visibilities_do_not() {
        let text = r#"
            //! crate::doc::A
            /// [`crate::doc::B`]
            pub(in crate::visible) fn f(x: &super::Arg) -> crate::ret::R { // crate::comment::C
                let text = "crate::text::T"; x.field.crate_like(); local::call(); Vec::<u8>::new()
            }
            macro_rules! m { () => { $crate::in_macro::M } }
        "#;
        assert_eq!(paths(text), ["crate::in_macro::M", "crate::ret::R", "local::call", "super::Arg"]);
    }

    #[test]
    fn what_is_for_tests_alone_is_left_out() {
        let text = "#[cfg(test)] mod tests { use crate::a::A; }\n#[cfg(test)]\nuse crate::b::B;\n#[cfg(test)] #[path = \"t.rs\"] mod t;\nmod real;\n#[test] fn f() { crate::c::d() }";
        let source = Source::parse(text).expect("tokens");
        assert_eq!(source.children, [("real".to_owned(), None)]);
        assert!(source.imports.is_empty() && source.paths.is_empty() && !source.has_code, "{source:?}");
    }

    #[test]
    fn a_file_that_declares_and_re_exports_has_no_code() {
        let has_code = |text: &str| Source::parse(text).expect("tokens").has_code;
        assert!(!has_code(
            "#![deny(missing_docs)]\n//! Doc.\nmod a;\n#[cfg(unix)]\npub mod b;\npub use a::{X, Y};\nuse b::*;"
        ));
        for code in ["mod a;\nfn f() {}", "pub const X: u32 = 1;", "pub trait T {}", "mod inline { pub fn f() {} }"] {
            assert!(has_code(code), "{code}");
        }
    }

    #[test]
    fn names_of_items_are_known() {
        let text = "pub const fn f() {} struct S<T>(T); impl S<u8> { fn method() {} } pub static mut G: u8 = 0; macro_rules! m { () => {} } pub unsafe extern \"C\" fn g() {} const E: S<u8> = S { 0: 1 }; enum V { A }";
        let source = Source::parse(text).expect("tokens");
        for name in ["f", "S", "G", "m", "g", "E", "V"] {
            assert!(source.defined.contains(name), "{name}: {:?}", source.defined);
        }
    }

    #[test]
    fn a_module_in_the_file_is_the_file() {
        let text = "mod inner { use super::super::up::A; use super::own::B; fn f() { super::here::c(); super::super::above::d(); } }";
        assert_eq!(paths(text), ["self::here::c", "self::own::B", "self::super::up::A", "super::above::d"]);
    }
}
