//! The files that are made from this crate: `crds/`, the chart's copy of it, and `docs/conditions.md`.

use std::{fmt::Write as _, fs, io, path::Path};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use crate::{
    condition::ConditionType,
    definitions,
    reason::{Kind, Reason},
};

/// What every generated YAML file begins with.
const HEADER: &str = "# Made from operator/crd by `make generate`; edit that, not this.\n";

/// Why the files cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A definition cannot be written as YAML: a mistake in this crate.
    #[error("a definition cannot be written as YAML, correct its schema: {0}")]
    Yaml(#[from] serde_yaml::Error),
    /// A file cannot be written.
    #[error("cannot write {path}, check that the folder is the repository: {source}")]
    Write {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Every generated file: its path in the repository and its content.
pub fn files() -> Result<Vec<(String, String)>, GenerateError> {
    let mut files = Vec::new();
    let mut names = Vec::new();
    for definition in definitions() {
        let name = format!("{}_{}.yaml", definition.spec.group, definition.spec.names.plural);
        let text = yaml(&definition)?;
        // The chart can read no file outside of its folder.
        files.push((format!("charts/ash/files/crds/{name}"), text.clone()));
        files.push((format!("crds/{name}"), text));
        names.push(name);
    }
    let resources: String = names.iter().map(|name| format!("  - {name}\n")).collect();
    let kustomization =
        format!("{HEADER}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n{resources}");
    files.push(("crds/kustomization.yaml".to_owned(), kustomization));
    files.push(("docs/conditions.md".to_owned(), conditions()));
    Ok(files)
}

/// The generated files of the repository at `top` that are not as they should be.
pub fn stale(top: &Path) -> Result<Vec<String>, GenerateError> {
    let fresh =
        |(path, content): &(String, String)| fs::read_to_string(top.join(path)).is_ok_and(|old| old == *content);
    Ok(files()?.into_iter().filter(|file| !fresh(file)).map(|(path, _)| path).collect())
}

/// Writes every generated file into the repository at `top`.
pub fn write(top: &Path) -> Result<(), GenerateError> {
    for (path, content) in files()? {
        let full = top.join(&path);
        let folder = full.parent().map_or(Ok(()), fs::create_dir_all);
        folder.and_then(|()| fs::write(&full, content)).map_err(|source| GenerateError::Write { path, source })?;
    }
    Ok(())
}

/// The one place of this crate that knows `serde_yaml`; see `docs/decisions/0006-serde-yaml-behind-one-function.md`.
fn yaml(definition: &CustomResourceDefinition) -> Result<String, GenerateError> {
    Ok(format!("{HEADER}---\n{}", serde_yaml::to_string(definition)?))
}

fn conditions() -> String {
    let mut page = String::from(
        "# Conditions and their reasons\n\n\
         <!-- Made from operator/crd/src/reason.rs by `make generate`; edit that, not this. -->\n\n\
         What `kubectl describe agent` and `kubectl describe session` say, what it means and what to do. Events, log lines\n\
         and metrics use the same words. A reason never changes its meaning.\n\n\
         The conditions follow [kstatus](https://github.com/kubernetes-sigs/cli-utils/tree/master/pkg/kstatus): `kubectl wait\n\
         --for=condition=Ready`, Argo CD and Flux understand them with no plug-in. `Ready` means that the resource is as its\n\
         spec asks: a session that sleeps, is suspended or has ended because it was told to, is `Ready`, with that reason.\n\
         `observedGeneration` says which `metadata.generation` a condition is about; while it is older than the\n\
         resource's own, the operator has not got there yet (or is away, and its successor will).\n\n\
         | condition | what it says |\n|---|---|\n",
    );
    // Writing into a String cannot fail.
    for (kind, about) in ConditionType::ALL {
        let _ = writeln!(page, "| `{}` | {about} |", kind.as_str());
    }
    page.push_str(
        "\nThe column *sets* says which of `Ready`, `Reconciling` and `Stalled` a reason makes true. *Reconciling* goes on by\n\
         itself; *Stalled* waits for a person. A reason with a dash stands in `PoolReady`, in `MessageTaken` or in an Event only.\n",
    );
    for (kind, title) in [(Kind::Agent, "Agents"), (Kind::Session, "Sessions")] {
        let _ = write!(page, "\n## {title}\n\n| reason | sets | what it means | what to do |\n|---|---|---|---|\n");
        for reason in Reason::ALL.iter().filter(|reason| reason.kinds().contains(&kind)) {
            let (name, sets) = (reason.as_str(), reason.outcome().name());
            let _ = writeln!(page, "| `{name}` | {sets} | {} | {} |", reason.meaning(), reason.action());
        }
    }
    page
}
