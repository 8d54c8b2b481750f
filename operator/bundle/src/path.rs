//! Paths of files in a bundle: relative, plain, inside.

/// The longest path: 1,024 bytes.
pub const MAX_PATH_BYTES: usize = 1024;

/// The deepest path: 64 parts.
pub const MAX_PATH_PARTS: usize = 64;

/// The longest name of one file or folder that Linux file systems take.
const MAX_PART_BYTES: usize = 255;

/// Why a text is no path of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{path:?} is no path for a file of an agent: {reason}; use a relative path without '..', such as .claude/settings.json"
)]
pub struct InvalidPath {
    /// The first 200 characters of it.
    pub path: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// A path in its one form: parts joined by `/`, a leading `./` removed.
///
/// Refused: absolute paths, `..`, empty parts, `.` in the middle, backslashes (which another system would read as `/`), control
/// characters and anything beyond [`MAX_PATH_BYTES`] and [`MAX_PATH_PARTS`].
pub fn normalise(path: &str) -> Result<&str, InvalidPath> {
    let refuse = |reason| Err(InvalidPath { path: path.chars().take(200).collect(), reason });
    if path.starts_with('/') {
        return refuse("it is absolute");
    }
    let mut rest = path;
    while let Some(stripped) = rest.strip_prefix("./") {
        rest = stripped;
    }
    if rest.is_empty() {
        return refuse("it is empty");
    }
    if rest.len() > MAX_PATH_BYTES || rest.split('/').count() > MAX_PATH_PARTS {
        return refuse("it is too long");
    }
    if rest.contains('\\') {
        return refuse("it has a backslash");
    }
    if rest.chars().any(char::is_control) {
        return refuse("it has a control character");
    }
    for part in rest.split('/') {
        match part {
            "" => return refuse("a part of it is empty"),
            "." | ".." => return refuse("a part of it is '.' or '..'"),
            part if part.len() > MAX_PART_BYTES => return refuse("a part of it is longer than 255 bytes"),
            _ => {}
        }
    }
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::normalise;

    #[test]
    fn plain_paths_pass() {
        for (path, normal) in
            [("CLAUDE.md", "CLAUDE.md"), ("./a/b.c", "a/b.c"), (".claude/..x", ".claude/..x"), ("ä b", "ä b")]
        {
            assert_eq!(normalise(path), Ok(normal));
        }
    }

    #[test]
    fn others_are_refused() {
        let long = "a/".repeat(600) + "a";
        let part = "a".repeat(256);
        for path in [
            "",
            "/",
            "/etc/passwd",
            ".",
            "..",
            "../a",
            "a/../b",
            "a/..",
            "a//b",
            "a/",
            "a/./b",
            "a\\..\\b",
            "C:\\x",
            "a\0b",
            "a\nb",
            ".//etc",
            &long,
            &part,
        ] {
            assert!(normalise(path).is_err(), "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn what_passes_stays_inside(path in "[./\\\\a\0]{0,12}") {
            if let Ok(normal) = normalise(&path) {
                prop_assert!(!normal.starts_with('/'));
                prop_assert!(normal.split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
                prop_assert_eq!(normalise(normal), Ok(normal));
            }
        }
    }
}
