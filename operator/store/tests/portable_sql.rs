//! SQL stays within what Postgres and CockroachDB both run, and migrations within what the release before them survives.

#![allow(clippy::unwrap_used)]
#![allow(clippy::doc_markdown, reason = "CockroachDB is a name, not code")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Words that no statement may have, and why.
const FORBIDDEN: &[(&str, &str)] = &[
    ("listen", "CockroachDB has no LISTEN"),
    ("unlisten", "CockroachDB has no LISTEN"),
    ("notify", "CockroachDB has no NOTIFY"),
    ("pg_notify", "CockroachDB has no NOTIFY"),
    ("pg_advisory_lock", "CockroachDB has no advisory locks"),
    ("pg_advisory_xact_lock", "CockroachDB has no advisory locks"),
    ("pg_try_advisory_lock", "CockroachDB has no advisory locks"),
    ("pg_try_advisory_xact_lock", "CockroachDB has no advisory locks"),
    ("serial", "numbers from a sequence are a hot spot: ids are UUIDs"),
    ("bigserial", "numbers from a sequence are a hot spot: ids are UUIDs"),
    ("nextval", "numbers from a sequence are a hot spot: ids are UUIDs"),
    ("create sequence", "numbers from a sequence are a hot spot: ids are UUIDs"),
    ("generated", "identity columns are sequences"),
    ("autoincrement", "numbers from a sequence are a hot spot: ids are UUIDs"),
    ("lock table", "CockroachDB has no locks of tables"),
    ("create trigger", "what is written has to stand in the statement that writes it"),
    ("create function", "what is done has to stand in the statement that does it"),
    ("create extension", "CockroachDB has no extensions"),
    ("create domain", "CockroachDB has no domains"),
    ("deferrable", "CockroachDB checks constraints at once"),
    ("exclude using", "CockroachDB has no exclusion constraints"),
    ("unlogged", "CockroachDB has no unlogged tables"),
    ("inherits", "CockroachDB has no inheritance"),
    ("merge into", "CockroachDB has no MERGE"),
    ("ctid", "CockroachDB has no places of rows"),
    ("xmin", "CockroachDB has no transaction ids in rows"),
    ("declare cursor", "a cursor holds a transaction open"),
    ("jsonb_path_query", "not in CockroachDB"),
    ("copy from", "not within a transaction of CockroachDB"),
];

/// Tables of what serves every tenant.
const FLEET: &[&str] = &["runners", "coordinators", "installation"];

/// What a migration may not do while the release before it runs, and why.
const FORBIDDEN_IN_MIGRATIONS: &[(&str, &str)] = &[
    ("drop table", "the release before still uses it"),
    ("drop column", "the release before still uses it"),
    ("rename", "the release before knows the old name"),
    ("alter column", "the release before knows the old type; add a column"),
    ("truncate", "history is never dropped"),
    ("begin", "a migration is one transaction by itself"),
    ("commit", "a migration is one transaction by itself"),
];

fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|own| own == extension) {
            found.push(path);
        }
    }
}

/// The words of a text in lower case, without comments, with one space between.
fn words(text: &str, comment: &str) -> String {
    let code = text.lines().map(|line| line.split(comment).next().unwrap_or_default());
    let code = code.collect::<Vec<_>>().join(" ").to_lowercase();
    let words = code.split(|character: char| !(character.is_alphanumeric() || character == '_'));
    format!(" {} ", words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "))
}

/// What stands between quotation marks in a source: statements do.
fn literals(source: &str) -> String {
    let (mut inside, mut escaped, mut found) = (false, false, String::new());
    for character in source.chars() {
        match character {
            '"' if !escaped => {
                inside = !inside;
                found.push('\n');
            }
            _ if inside => found.push(if character == '\\' { ' ' } else { character }),
            _ => {}
        }
        escaped = inside && character == '\\' && !escaped;
    }
    found
}

fn check(path: &Path, words: &str, rules: &[(&str, &str)]) {
    for (word, why) in rules {
        assert!(!words.contains(&format!(" {word} ")), "{}: {word:?} is forbidden: {why}", path.display());
    }
}

#[test]
fn no_statement_uses_what_cockroachdb_lacks() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut sources, mut migrations) = (Vec::new(), Vec::new());
    files(&top.join("src"), "rs", &mut sources);
    files(&top.join("migrations"), "sql", &mut migrations);
    assert!(sources.len() > 20 && !migrations.is_empty());
    let mut all = String::new();
    for path in &sources {
        let words = words(&literals(&fs::read_to_string(path).unwrap()), "//");
        check(path, &words, FORBIDDEN);
        all += &words;
    }
    for statement in ["insert into log_chunks", "insert into turns", "update sessions set", "where id 1 for update"] {
        assert!(all.contains(statement), "the statements are not seen: {statement:?} is not there");
    }
    for path in &migrations {
        let words = words(&fs::read_to_string(path).unwrap(), "--");
        check(path, &words, FORBIDDEN);
        check(path, &words, FORBIDDEN_IN_MIGRATIONS);
    }
}

#[test]
fn every_table_names_its_tenant() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut migrations = Vec::new();
    files(&top.join("migrations"), "sql", &mut migrations);
    for path in migrations {
        for table in words(&fs::read_to_string(&path).unwrap(), "--").split(" create table ").skip(1) {
            let name = table.split(' ').next().unwrap();
            if FLEET.contains(&name) {
                continue;
            }
            let columns = table.split(" create ").next().unwrap();
            assert!(columns.contains(" tenant text not null "), "{}: {columns}", path.display());
        }
    }
}

#[test]
fn what_is_forbidden_is_found() {
    let statement = "SELECT pg_advisory_lock($1); -- NOTIFY\nCREATE\n  SEQUENCE x";
    let found: Vec<&str> = FORBIDDEN
        .iter()
        .map(|(word, _)| *word)
        .filter(|word| words(statement, "--").contains(&format!(" {word} ")))
        .collect();
    assert_eq!(found, ["pg_advisory_lock", "create sequence"]);
    let source = "notify.listen(\"SELECT 1 \\\n FROM a\", \"b \\\" c\")";
    assert_eq!(words(&literals(source), "//"), " select 1 from a b c ");
}
