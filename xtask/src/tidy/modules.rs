//! The order of modules: one uses only those declared after it, at every level of the tree.
//!
//! A path `crate::a::b` in the module `c::d` is followed to where the two part (`a` and `c`): these are siblings, and
//! `a` must be declared after `c`. What a module has from its ancestors or descendants is its own affair. A name that the
//! crate's root re-exports stands for the module it comes from.

use std::collections::BTreeMap;

use super::source::{Source, Violation, find_word, line_of};

/// The modules of one crate.
struct Tree<'a> {
    /// For each module (the root is the empty path) its children in the order of their declarations.
    children: BTreeMap<Vec<String>, Vec<String>>,
    /// Names at the root that come from a module.
    reexports: BTreeMap<String, Vec<String>>,
    /// Every module that has a file.
    files: Vec<(Vec<String>, &'a Source)>,
}

/// What is used before it is declared.
pub fn check(sources: &[Source]) -> Vec<Violation> {
    let mut crates: BTreeMap<&str, Vec<&Source>> = BTreeMap::new();
    for source in sources.iter().filter(|source| source.is_rust() && source.in_src().is_some()) {
        crates.entry(source.crate_name()).or_default().push(source);
    }
    let mut violations: Vec<_> = crates.values().flat_map(|files| tree(files).violations()).collect();
    violations.dedup();
    violations
}

fn tree<'a>(sources: &[&'a Source]) -> Tree<'a> {
    let mut tree = Tree { children: BTreeMap::new(), reexports: BTreeMap::new(), files: Vec::new() };
    let has_lib = sources.iter().any(|source| source.in_src() == Some("lib.rs"));
    for source in sources {
        let path = module_path(source.in_src().unwrap_or_default());
        // A binary beside a library declares few modules or none: they follow the library's.
        let declared = declared_modules(&source.shipped);
        let is_binary = has_lib && source.in_src() == Some("main.rs");
        let known = tree.children.entry(path.clone()).or_default();
        if is_binary {
            known.extend(declared);
        } else {
            known.splice(0..0, declared);
        }
        if path.is_empty() {
            tree.reexports.extend(reexports(&source.shipped));
        }
        tree.files.push((path, source));
    }
    tree
}

impl Tree<'_> {
    fn violations(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        for (own, source) in self.files.iter().filter(|(own, _)| !own.is_empty()) {
            if !self.is_declared(own) {
                continue; // under `cfg(test)`, or not part of the crate
            }
            for (at, target) in self.used(own, &source.shipped) {
                if let Some((user, used)) = self.wrong_order(own, &target) {
                    let message =
                        format!("`{user}` uses `{used}`, which is declared before it: move the code or the `mod` line");
                    violations.push(source.violation(line_of(&source.shipped, at), message));
                }
            }
        }
        violations
    }

    fn is_declared(&self, path: &[String]) -> bool {
        path.split_last().is_none_or(|(name, parent)| {
            let children = self.children.get(parent);
            children.is_some_and(|children| children.contains(name)) && self.is_declared(parent)
        })
    }

    /// Where the two part: the sibling that uses and the one that is used, if they are in the wrong order.
    fn wrong_order(&self, own: &[String], target: &[String]) -> Option<(String, String)> {
        let depth = own.iter().zip(target).take_while(|(own, target)| own == target).count();
        let (user, used) = (own.get(depth)?, target.get(depth)?);
        let siblings = self.children.get(&own[..depth])?;
        let place = |name: &String| siblings.iter().position(|sibling| sibling == name);
        (place(used)? < place(user)?).then(|| (user.clone(), used.clone()))
    }

    /// Modules that a file names by `crate::` and `super::`, each with the offset.
    fn used(&self, own: &[String], code: &str) -> Vec<(usize, Vec<String>)> {
        let mut used = Vec::new();
        for at in find_word(code, "crate::") {
            if code[..at].ends_with('$') || code[..at].ends_with("::") {
                continue;
            }
            for (offset, names) in paths(code, at + "crate::".len()) {
                let target = match names.first().and_then(|name| self.reexports.get(name)) {
                    Some(module) if !self.is_module(&names[..1]) => module.clone(),
                    _ => names,
                };
                used.push((offset, self.module_part(target)));
            }
        }
        for at in find_word(code, "super::") {
            if code[..at].ends_with("::") {
                continue; // counted with the first of them
            }
            let (mut base, mut start) = (own.to_vec(), at);
            while code[start..].starts_with("super::") {
                base.pop();
                start += "super::".len();
            }
            for (offset, names) in paths(code, start) {
                used.push((offset, self.module_part([base.clone(), names].concat())));
            }
        }
        used
    }

    fn is_module(&self, path: &[String]) -> bool {
        self.is_declared(path)
    }

    /// The leading part of a path that names modules.
    fn module_part(&self, mut path: Vec<String>) -> Vec<String> {
        while !self.is_module(&path) {
            path.pop();
        }
        path
    }
}

/// `a/b.rs` and `a/b/mod.rs` are `[a, b]`; the roots are empty.
fn module_path(file: &str) -> Vec<String> {
    let file = file.strip_suffix(".rs").unwrap_or(file);
    let mut path: Vec<String> = file.split('/').map(str::to_owned).collect();
    let is_root = path.len() == 1 && (path[0] == "lib" || path[0] == "main");
    if is_root || path.last().is_some_and(|name| name == "mod") {
        path.pop();
    }
    path
}

/// The names of `mod x;` lines in their order.
fn declared_modules(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for at in find_word(code, "mod") {
        let name = identifier(code[at + 3..].trim_start());
        let after = code[at + 3..].trim_start()[name.len()..].trim_start();
        if !name.is_empty() && after.starts_with(';') && !modules.contains(&name) {
            modules.push(name);
        }
    }
    modules
}

/// From `pub use a::{B, c::D};` the names B and D with their modules.
fn reexports(code: &str) -> BTreeMap<String, Vec<String>> {
    let mut names = BTreeMap::new();
    for at in find_word(code, "pub use") {
        let mut start = at + "pub use".len();
        start += code[start..].len() - code[start..].trim_start().len();
        for prefix in ["crate::", "self::"] {
            start += if code[start..].starts_with(prefix) { prefix.len() } else { 0 };
        }
        for (_, mut path) in paths(code, start) {
            if let Some(name) = path.pop() {
                names.insert(name, path);
            }
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The paths of a use tree that starts here (`a::B`, `{a::B, c}`), each with the offset of its last name.
fn paths(code: &str, start: usize) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    branch(code, start, &[], &mut found);
    found
}

/// Answers the offset behind the branch.
fn branch(code: &str, start: usize, prefix: &[String], found: &mut Vec<(usize, Vec<String>)>) -> usize {
    let skip = |at: usize| at + (code[at..].len() - code[at..].trim_start().len());
    let mut at = skip(start);
    if code[at..].starts_with('{') {
        at = skip(at + 1);
        while at < code.len() && !code[at..].starts_with('}') {
            let before = at;
            at = skip(branch(code, at, prefix, found));
            while at < code.len() && !code[at..].starts_with([',', '}']) {
                at += code[at..].chars().next().map_or(1, char::len_utf8); // `as name`
            }
            at = skip(if code[at..].starts_with(',') { at + 1 } else { at });
            if at == before {
                break;
            }
        }
        return (at + 1).min(code.len());
    }
    let name = identifier(&code[at..]);
    let end = at + name.len();
    let mut path = prefix.to_vec();
    if !name.is_empty() && name != "self" {
        path.push(name);
    }
    if code[end..].starts_with("::") && !code[end..].starts_with("::<") {
        return branch(code, end + 2, &path, found);
    }
    found.push((at.min(code.len().saturating_sub(1)), path));
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIB: &str = "//! A.\nmod first;\npub mod second;\nmod third;\n#[cfg(test)]\nmod tests;\n\
                       pub use second::{One, deep::Two};\n";

    /// Violations in a crate whose module `path` holds `code`.
    fn found(path: &str, code: &str) -> Vec<String> {
        let mut sources =
            vec![Source::new("a/src/lib.rs", LIB), Source::new("a/src/second.rs", "//! S.\nmod inner;\nmod deep;\n")];
        sources.retain(|source| source.path != path);
        sources.push(Source::new(path, &format!("//! X.\n{code}\n")));
        check(&sources).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_module_uses_only_what_is_declared_after_it() {
        // (file, code, what is found; empty: nothing)
        let rows = [
            ("first.rs", "use crate::second::X;", ""),
            ("first.rs", "use crate::{second::X, third};", ""),
            ("third.rs", "use crate::third::X;", ""),
            ("third.rs", "\nuse crate::second::X;", "3: `third` uses `second`"),
            ("third.rs", "use crate::{\n    third::X,\n    first::{Y, Z as W},\n};", "4: `third` uses `first`"),
            ("third.rs", "fn a() -> crate::first::X {}", "2: `third` uses `first`"),
            ("third.rs", "use crate::One;", "2: `third` uses `second`"),
            ("third.rs", "use crate::Two as One;", "2: `third` uses `second`"),
            ("first.rs", "use crate::One;", ""),
            ("third.rs", "use super::first::X;", "2: `third` uses `first`"),
            ("third.rs", "// use crate::first;\nconst A: &str = \"crate::first\";", ""),
            ("third.rs", "#[cfg(test)]\nmod tests {\n    use crate::first::X;\n}", ""),
            ("third.rs", "macro_rules! a { () => { $crate::first::X } }", ""),
            ("third.rs", "use other_crate::first::X;", ""),
            ("tests.rs", "use crate::first::X;", ""),
            ("second/deep.rs", "use super::inner::X;", "2: `deep` uses `inner`"),
            ("second/deep.rs", "use crate::second::inner::X;", "2: `deep` uses `inner`"),
            ("second/deep.rs", "use super::X;", ""),
            ("second/deep.rs", "use super::super::first;", "2: `second` uses `first`"),
            ("second/deep.rs", "use crate::{first, third};", "2: `second` uses `first`"),
            ("second/inner.rs", "use super::deep::X;", ""),
            ("second.rs", "mod inner;\nmod deep;\nuse self::inner::X;\nuse crate::second::deep;", ""),
        ];
        for (file, code, expected) in rows {
            let found = found(&format!("a/src/{file}"), code);
            match expected {
                "" => assert!(found.is_empty(), "{file} {code:?}: {found:?}"),
                _ => {
                    assert_eq!(found.len(), 1, "{file} {code:?}: {found:?}");
                    let start = format!("a/src/{file}:{expected}");
                    assert!(found[0].starts_with(&start), "{file} {code:?}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn a_binary_alone_has_an_order_too() {
        let main = Source::new("b/src/main.rs", "//! B.\nmod one;\nmod two;\n");
        let two = Source::new("b/src/two.rs", "//! Two.\nuse crate::one::X;\n");
        assert_eq!(check(&[main, two]).len(), 1);
    }
}
