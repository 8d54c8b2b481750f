//! The programs that the chart is tried with, and what they say.

use std::{
    env,
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde::Deserialize as _;
use serde_json::Value;

/// The versions that `scripts/install-chart-tools.sh` builds.
const VERSIONS: &str = include_str!("../../chart/tools.versions");
/// The version that `e2e/cluster/build.sh` builds.
const KUBERNETES: &str = include_str!("../../cluster/kubernetes.version");
/// Set to anything, as CI does: a test fails where the programs are missing, instead of saying that it is skipped.
const REQUIRED: &str = "ASH_TEST_REQUIRE_KUBERNETES";
/// The namespace that the chart is installed into.
pub(crate) const NAMESPACE: &str = "ash-system";

/// Where the programs are.
#[derive(Debug)]
pub(crate) struct Tools {
    /// Helm.
    pub(crate) helm: PathBuf,
    /// kubectl, for `kubectl kustomize`.
    pub(crate) kubectl: PathBuf,
    /// kubeconform.
    pub(crate) kubeconform: PathBuf,
    /// What schemas are made from.
    pub(crate) schemas: PathBuf,
}

impl Tools {
    /// Finds them; `None`, said on the terminal, where one is not there and need not be.
    pub(crate) fn find() -> Option<Self> {
        let cache = PathBuf::from(env::var_os("HOME").expect("HOME")).join(".cache/ash");
        let kubernetes = cache.join(format!("k8s-{}", KUBERNETES.trim()));
        let kubeconform = cache.join(format!("kubeconform-{}", version("KUBECONFORM")));
        let names = [KUBERNETES.trim(), version("GATEWAY_API"), version("PROMETHEUS_OPERATOR")];
        let tools = Self {
            helm: kubernetes.join("helm"),
            kubectl: kubernetes.join("kubectl"),
            schemas: kubeconform.join(format!("schemas-{}", names.join("-"))),
            kubeconform: kubeconform.join("kubeconform"),
        };
        let all = [&tools.helm, &tools.kubectl, &tools.kubeconform, &tools.schemas];
        let Some(missing) = all.into_iter().find(|path| !path.exists()) else { return Some(tools) };
        let text = format!("{} is missing: run `make test-tools` (it needs Go)", missing.display());
        assert!(env::var_os(REQUIRED).is_none(), "{text}");
        // Past the capture of the test runner: a skip has to be seen.
        io::stderr().write_all(format!("\nSKIPPED: the chart was not tried. {text}\n\n").as_bytes()).unwrap();
        None
    }

    /// Helm, with a home of its own.
    pub(crate) fn helm(&self, arguments: &[&str]) -> Output {
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new(&self.helm);
        command.env_clear().env("HOME", home.path()).args(arguments);
        command.output().unwrap()
    }

    /// What the chart renders with `arguments`, of a release named `ash`.
    pub(crate) fn rendered(&self, arguments: &[&str]) -> String {
        let output = self.render(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Helm's answer where it is asked to render the chart.
    pub(crate) fn render(&self, arguments: &[&str]) -> Output {
        let chart = chart();
        let mut all = vec!["template", "ash", chart.to_str().unwrap(), "--namespace", NAMESPACE];
        all.extend(arguments);
        self.helm(&all)
    }

    /// What kustomize makes of a folder.
    pub(crate) fn kustomized(&self, folder: &str) -> String {
        let folder = top().join(folder);
        let output = Command::new(&self.kubectl).arg("kustomize").arg(&folder).output().unwrap();
        assert!(output.status.success(), "{}: {}", folder.display(), String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Has kubeconform check manifests against the schemas in a folder; what it has against them.
    pub(crate) fn conforms(&self, schemas: &Path, manifests: &str) -> Result<(), String> {
        let location =
            format!("{}/{{{{.ResourceKind}}}}_{{{{.Group}}}}_{{{{.ResourceAPIVersion}}}}.json", schemas.display());
        let mut child = Command::new(&self.kubeconform)
            .args(["-strict", "-verbose", "-schema-location", &location])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(manifests.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            return Ok(());
        }
        let mut text = String::new();
        for line in String::from_utf8_lossy(&output.stdout).lines().filter(|line| !line.ends_with("is valid")) {
            let _ = writeln!(text, "{line}");
        }
        Err(text + &String::from_utf8_lossy(&output.stderr))
    }
}

fn version(name: &str) -> &'static str {
    let found = VERSIONS.lines().find_map(|line| line.split_once('=').filter(|(key, _)| *key == name));
    found.unwrap_or_else(|| panic!("{name} has no version")).1
}

/// The repository.
pub(crate) fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The chart.
pub(crate) fn chart() -> PathBuf {
    top().join("charts/ash")
}

/// The arguments of each rendering that is looked at: the defaults, and each values file of `ci/`.
pub(crate) fn renderings() -> Vec<Vec<String>> {
    let mut files: Vec<_> = chart().join("ci").read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let given = files.into_iter().map(|path| vec!["--values".to_owned(), path.to_str().unwrap().to_owned()]);
    std::iter::once(Vec::new()).chain(given).collect()
}

/// The objects of a text in YAML.
pub(crate) fn objects(text: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(text).map(|document| Value::deserialize(document).unwrap());
    documents.filter(|object| !object.is_null()).collect()
}

/// A list of texts inside an object; empty where there is none.
pub(crate) fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
