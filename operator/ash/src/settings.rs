//! Settings from beneath the command line: a YAML file, and variables with other names.
//!
//! clap itself puts a flag over its `ASH_...` variable and that over its default. What comes from here takes the place of the
//! default, so that the whole order is: flag, `ASH_...` variable, other variable, file, default. It is generic: whatever
//! argument a command has can be set.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use anyhow::Context;
use clap::{Arg, ArgAction, Command};
use serde_yaml::{Mapping, Value};

/// The longest config file: 1 MiB. A longer one is refused.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Values by the ids of their arguments.
pub(crate) type Layer = BTreeMap<String, Vec<String>>;

/// Why a config file is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidSettings {
    /// It is no YAML, or no mapping.
    #[error("it has to be YAML with keys and values, such as `listen: 127.0.0.1:4100`: {0}")]
    Syntax(String),
    /// A key that no argument has.
    #[error("`{key}` is no setting; there are: {known}")]
    Unknown { key: String, known: String },
    /// Two spellings of one key.
    #[error("`{0}` is given twice, once in another spelling: keep one of them")]
    Twice(String),
    /// A value that cannot be one.
    #[error("the value of `{0}` has to be a text, a number, or true or false{1}")]
    Value(String, &'static str),
}

/// Reads a config file for a command.
pub(crate) fn read_file(path: &Path, command: &Command) -> anyhow::Result<Layer> {
    let context = || format!("cannot use the config file {}", path.display());
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)).with_context(context)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        anyhow::bail!("{}: it is longer than {MAX_FILE_BYTES} bytes", context());
    }
    read(&text, command).with_context(context)
}

/// Reads settings: the keys are the names of the command's flags, in camelCase or with dashes.
fn read(text: &str, command: &Command) -> Result<Layer, InvalidSettings> {
    let mapping: Option<Mapping> =
        serde_yaml::from_str(text).map_err(|error| InvalidSettings::Syntax(error.to_string()))?;
    let mut layer = Layer::new();
    for (key, value) in mapping.unwrap_or_default() {
        let key = key.as_str().map_or_else(|| format!("{key:?}"), ToOwned::to_owned);
        let argument = settable(command)
            .find(|argument| argument.get_long().is_some_and(|long| key == long || key == camel_case(long)));
        let Some(argument) = argument else {
            let known: Vec<String> = settable(command).filter_map(Arg::get_long).map(camel_case).collect();
            return Err(InvalidSettings::Unknown { key, known: known.join(", ") });
        };
        let values = match value {
            Value::Sequence(values) if matches!(argument.get_action(), ArgAction::Append) => values
                .iter()
                .map(|value| scalar(value).ok_or_else(|| InvalidSettings::Value(key.clone(), ", or a list of them")))
                .collect::<Result<_, _>>()?,
            value => vec![scalar(&value).ok_or_else(|| InvalidSettings::Value(key.clone(), ""))?],
        };
        if layer.insert(argument.get_id().to_string(), values).is_some() {
            return Err(InvalidSettings::Twice(key));
        }
    }
    Ok(layer)
}

/// The arguments that a file may set: all with a name but the file's own and those that only print something.
fn settable(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|argument| {
        argument.get_id() != crate::serve::CONFIG
            && matches!(argument.get_action(), ArgAction::Set | ArgAction::Append | ArgAction::SetTrue)
    })
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

/// Variables that set an argument beside its own: pairs of its id and the variable's name, the stronger ones last. An empty
/// variable counts as none.
pub(crate) fn from_variables(names: &[(&str, &str)], variable: impl Fn(&str) -> Option<String>) -> Layer {
    let values = names.iter().filter_map(|(id, name)| {
        let value = variable(name).filter(|value| !value.is_empty())?;
        Some(((*id).to_owned(), vec![value]))
    });
    values.collect()
}

/// The command with the layers' values in the place of its defaults; later layers stand over earlier ones.
pub(crate) fn beneath(command: Command, layers: &[Layer]) -> Command {
    let mut merged = Layer::new();
    for layer in layers {
        merged.extend(layer.clone());
    }
    merged.into_iter().fold(command, |command, (id, values)| {
        command.mut_arg(id, |argument| argument.default_values(values).hide_default_value(true))
    })
}

/// What clap says about a value that came from here: its first line, without the usage of flags.
pub(crate) fn refused(error: &clap::Error) -> anyhow::Error {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    anyhow::anyhow!("a setting of the config file or the environment is refused: {line}")
}

/// `data-dir` as `dataDir`.
fn camel_case(name: &str) -> String {
    let mut parts = name.split('-');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut name, part| {
        let mut characters = part.chars();
        name.extend(characters.next().map(|first| first.to_ascii_uppercase()));
        name.push_str(characters.as_str());
        name
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::{Arg, ArgMatches, Command};

    use super::{Layer, beneath, camel_case, from_variables, read};

    /// A variable that cargo sets for tests, to `ash`.
    const VARIABLE: &str = "CARGO_PKG_NAME";

    fn command() -> Command {
        Command::new("test")
            .arg(Arg::new("one").long("one-thing").env(VARIABLE).default_value("default"))
            .arg(Arg::new("two").long("two-things").env("NOT_THERE").default_value("default"))
            .arg(Arg::new("many").long("many").action(clap::ArgAction::Append))
    }

    fn parse(arguments: &[&str], layers: &[Layer]) -> ArgMatches {
        beneath(command(), layers).try_get_matches_from(std::iter::once(&"test").chain(arguments)).unwrap()
    }

    fn value(matches: &ArgMatches, id: &str) -> String {
        matches.get_one::<String>(id).unwrap().clone()
    }

    #[test]
    fn flag_over_variable_over_other_variable_over_file_over_default() {
        let file = read("oneThing: file\ntwo-things: 2\nmany: [a, b]", &command()).unwrap();
        let other = from_variables(&[("two", "OTHER"), ("many", "EMPTY")], |name| {
            Some(if name == "OTHER" { "other".to_owned() } else { String::new() })
        });
        assert_eq!(value(&parse(&[], &[]), "two"), "default");
        assert_eq!(value(&parse(&[], std::slice::from_ref(&file)), "two"), "2");
        let layers = [file, other];
        let matches = parse(&[], &layers);
        assert_eq!(value(&matches, "two"), "other");
        assert_eq!(value(&matches, "one"), "ash");
        assert_eq!(matches.get_many::<String>("many").unwrap().collect::<Vec<_>>(), ["a", "b"]);
        let matches = parse(&["--one-thing", "flag", "--many", "c"], &layers);
        assert_eq!(value(&matches, "one"), "flag");
        assert_eq!(matches.get_many::<String>("many").unwrap().collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn an_empty_file_sets_nothing() {
        assert_eq!(read("", &command()).unwrap(), Layer::new());
        assert_eq!(read("# nothing\n", &command()).unwrap(), Layer::new());
    }

    #[test]
    fn names() {
        assert_eq!(camel_case("data-dir"), "dataDir");
        assert_eq!(camel_case("upstream-ca-file"), "upstreamCaFile");
        assert_eq!(camel_case("warm"), "warm");
    }
}
