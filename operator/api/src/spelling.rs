//! Names of fields that only a slip of spelling keeps from being known. Unknown fields are ignored, for the sake of clients of
//! other releases; a slip must not lose what was asked for, so it is refused by name.

/// What a client sees that misspelt a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given} is not a field: did you mean {meant}?")]
pub(crate) struct Misspelt {
    given: String,
    meant: String,
}

/// Refuses the first name, in their alphabetical order, that is no known one but differs from one in nothing but upper and
/// lower case, `_`, `-` or an `s` at its end. `within` goes before both names: empty, or the outer field's with its dot.
pub(crate) fn check<'n>(given: impl Iterator<Item = &'n str>, known: &[&str], within: &str) -> Result<(), Misspelt> {
    let misspelt = given.filter_map(|name| Some((name, meant(name, known)?))).min();
    match misspelt {
        Some((name, meant)) => Err(Misspelt { given: format!("{within}{name}"), meant: format!("{within}{meant}") }),
        None => Ok(()),
    }
}

fn meant<'k>(given: &str, known: &[&'k str]) -> Option<&'k str> {
    if known.contains(&given) {
        return None;
    }
    known.iter().copied().find(|known| letters(known).eq(letters(given)))
}

/// What of a name counts.
fn letters(name: &str) -> impl Iterator<Item = u8> {
    let bytes = name.strip_suffix(['s', 'S']).unwrap_or(name).bytes();
    bytes.filter(|byte| !matches!(byte, b'_' | b'-')).map(|byte| byte.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::check;

    const KNOWN: [&str; 4] = ["permissionMode", "disallowedTools", "model", "betas"];

    #[test]
    fn slips_are_refused_by_name() {
        for (given, meant) in [
            ("permission_mode", "permissionMode"),
            ("permission-mode", "permissionMode"),
            ("PermissionMode", "permissionMode"),
            ("permissionModes", "permissionMode"),
            ("disallowedTool", "disallowedTools"),
            ("DISALLOWED_TOOL", "disallowedTools"),
            ("Model", "model"),
            ("beta", "betas"),
        ] {
            let said = check([given].into_iter(), &KNOWN, "").map_err(|error| error.to_string());
            assert_eq!(said, Err(format!("{given} is not a field: did you mean {meant}?")));
        }
        let said = check(["models", "beta"].into_iter(), &KNOWN, "outer.").map_err(|error| error.to_string());
        assert_eq!(said, Err("outer.beta is not a field: did you mean outer.betas?".to_owned()));
    }

    #[test]
    fn known_and_unknown_names_pass() {
        let names =
            ["permissionMode", "betas", "somethingNew", "mode", "allowedTools", "", "s", "_", "modèle", "modelss"];
        assert_eq!(check(names.into_iter(), &KNOWN, ""), Ok(()));
    }
}
