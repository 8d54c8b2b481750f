//! What is left out of a snapshot: `.ashignore`, written as `.gitignore` is, and what holds without one. Pure.
//!
//! The last rule that matches decides. What is in a folder that is left out is left out, whatever later rules say.

/// The file of the workspace that says what is left out.
pub(super) const FILE: &str = ".ashignore";

/// Bytes of it that are read.
pub(super) const MAX_BYTES: u64 = 64 << 10;

/// Rules of it that count; further ones do not.
const MAX_RULES: usize = 1_000;

/// What holds before the file: what programs make again by themselves, and this bridge's own unfinished files.
const DEFAULTS: &str = "\
__pycache__/
.pytest_cache/
.mypy_cache/
.ruff_cache/
node_modules/.cache/
.DS_Store
lost+found/
.ash-*.new
";

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// What it matches is kept, although an earlier one leaves it out.
    keeps: bool,
    /// It is about folders only.
    folders_only: bool,
    /// The names of the path, `**` for any number of them.
    names: Vec<Vec<u8>>,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules(Vec<Rule>);

impl Rules {
    /// The rules that hold without a file, and then those of the file.
    pub(super) fn new(file: &[u8]) -> Self {
        let lines = |text: &[u8]| text.split(|byte| *byte == b'\n').filter_map(rule).collect::<Vec<_>>();
        let mut rules = lines(DEFAULTS.as_bytes());
        let mut own = lines(file);
        own.truncate(MAX_RULES);
        rules.append(&mut own);
        Self(rules)
    }

    /// Whether a path is left out, given that the folder that it is in is not.
    pub(super) fn leave_out(&self, path: &[u8], is_folder: bool) -> bool {
        let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let deciding =
            self.0.iter().rev().find(|rule| (is_folder || !rule.folders_only) && matches(&rule.names, &names));
        deciding.is_some_and(|rule| !rule.keeps)
    }
}

fn rule(line: &[u8]) -> Option<Rule> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.starts_with(b"#") {
        return None;
    }
    let (keeps, line) = line.strip_prefix(b"!").map_or((false, line), |rest| (true, rest));
    let line = trimmed(line);
    let (folders_only, line) = line.strip_suffix(b"/").map_or((false, line), |rest| (true, rest));
    // With a slash before its end it is about one place, else about the name wherever that is.
    let is_anchored = line.contains(&b'/');
    let line = line.strip_prefix(b"/").unwrap_or(line);
    if line.is_empty() {
        return None;
    }
    let mut names: Vec<Vec<u8>> = line.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
    if !is_anchored {
        names.insert(0, b"**".to_vec());
    }
    Some(Rule { keeps, folders_only, names })
}

/// Without the spaces at the end, unless the last one is escaped.
fn trimmed(mut line: &[u8]) -> &[u8] {
    while let Some(rest) = line.strip_suffix(b" ") {
        if rest.ends_with(b"\\") {
            break;
        }
        line = rest;
    }
    line
}

/// Whether a path matches, name by name. `**` at the end stands for at least one name.
fn matches(pattern: &[Vec<u8>], path: &[&[u8]]) -> bool {
    if let [before @ .., last] = pattern
        && last == b"**"
    {
        return (0..path.len()).any(|end| matches(before, &path[..end])) || before.is_empty();
    }
    wild(pattern, path, |one| one == b"**", |one, name| name_matches(one, name))
}

/// Matching with wildcards that stand for any number of things, without going back further than to the last of them.
fn wild<P, T: Copy>(pattern: &[P], text: &[T], is_any: impl Fn(&P) -> bool, same: impl Fn(&P, T) -> bool) -> bool {
    let (mut at, mut next) = (0, 0);
    let mut last_any = None;
    while next < text.len() {
        match pattern.get(at) {
            Some(one) if is_any(one) => {
                last_any = Some((at, next));
                at += 1;
            }
            Some(one) if same(one, text[next]) => {
                at += 1;
                next += 1;
            }
            _ => {
                let Some((any, taken)) = last_any else { return false };
                last_any = Some((any, taken + 1));
                at = any + 1;
                next = taken + 1;
            }
        }
    }
    pattern[at..].iter().all(is_any)
}

/// A part of a name's pattern.
enum Part {
    Any,
    One,
    Byte(u8),
    Set { is_not: bool, ranges: Vec<(u8, u8)> },
}

fn name_matches(pattern: &[u8], name: &[u8]) -> bool {
    wild(
        &parts(pattern),
        name,
        |part| matches!(part, Part::Any),
        |part, byte| match part {
            Part::Any | Part::One => true,
            Part::Byte(wanted) => *wanted == byte,
            Part::Set { is_not, ranges } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&byte)) != *is_not
            }
        },
    )
}

fn parts(pattern: &[u8]) -> Vec<Part> {
    let mut parts = Vec::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        parts.push(match byte {
            b'*' => Part::Any,
            b'?' => Part::One,
            b'\\' => match rest.split_first() {
                Some((escaped, behind)) => {
                    rest = behind;
                    Part::Byte(*escaped)
                }
                None => Part::Byte(b'\\'),
            },
            b'[' => match set(rest) {
                Some((set, behind)) => {
                    rest = behind;
                    set
                }
                None => Part::Byte(b'['),
            },
            byte => Part::Byte(*byte),
        });
    }
    parts
}

/// A set behind its `[`, and what is behind its `]`.
fn set(pattern: &[u8]) -> Option<(Part, &[u8])> {
    let (is_not, mut rest) = match pattern.split_first() {
        Some((b'!' | b'^', rest)) => (true, rest),
        _ => (false, pattern),
    };
    let mut ranges = Vec::new();
    loop {
        let (first, behind) = rest.split_first()?;
        rest = behind;
        if *first == b']' && !ranges.is_empty() {
            return Some((Part::Set { is_not, ranges }, rest));
        }
        match rest {
            [b'-', last, behind @ ..] if *last != b']' => {
                ranges.push((*first, *last));
                rest = behind;
            }
            _ => ranges.push((*first, *first)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Rules;

    #[test]
    fn rules_are_those_of_gitignore() {
        for (file, path, is_folder, left_out) in [
            ("*.log", "a.log", false, true),
            ("*.log", "deep/in/a.log", false, true),
            ("*.log", "a.log.txt", false, false),
            ("/*.log", "deep/a.log", false, false),
            ("/*.log", "a.log", false, true),
            ("target/", "target", true, true),
            ("target/", "target", false, false),
            ("target/", "crate/target", true, true),
            ("/target/", "crate/target", true, false),
            ("a/b", "a/b", false, true),
            ("a/b", "c/a/b", false, false),
            ("a/*", "a/b", false, true),
            ("a/*", "a/b/c", false, false),
            ("a/**", "a", true, false),
            ("a/**", "a/b/c", false, true),
            ("**/b", "b", false, true),
            ("**/b", "x/y/b", false, true),
            ("a/**/b", "a/b", false, true),
            ("a/**/b", "a/x/y/b", false, true),
            ("a/**/b", "a/x/y/c", false, false),
            ("*.log\n!keep.log", "keep.log", false, false),
            ("*.log\n!keep.log", "other.log", false, true),
            ("!keep.log\n*.log", "keep.log", false, true),
            ("# a comment", "# a comment", false, false),
            ("\\#hash", "#hash", false, true),
            ("\\!bang", "!bang", false, true),
            ("space ", "space", false, true),
            ("space\\ ", "space ", false, true),
            ("windows\r", "windows", false, true),
            ("?at", "cat", false, true),
            ("[cb]at", "bat", false, true),
            ("[!cb]at", "bat", false, false),
            ("[a-c]at", "bat", false, true),
            ("[a-", "[a-", false, true),
            ("[]x]", "]", false, true),
            ("", "anything", false, false),
            ("/", "anything", true, false),
            // What holds without a file.
            ("", "pkg/__pycache__", true, true),
            ("", ".ash-0123.new", false, true),
            ("", "node_modules", true, false),
            ("!__pycache__/", "pkg/__pycache__", true, false),
        ] {
            let rules = Rules::new(file.as_bytes());
            assert_eq!(rules.leave_out(path.as_bytes(), is_folder), left_out, "{file:?} {path:?}");
        }
    }

    proptest! {
        #[test]
        fn no_file_takes_long_or_panics(
            file in prop::collection::vec(prop_oneof![Just(b'*'), Just(b'/'), Just(b'['), Just(b'a'), any::<u8>()], 0..300),
            path in "[a*/\\[]{1,300}",
        ) {
            let _ = Rules::new(&file).leave_out(path.as_bytes(), true);
        }
    }
}
