//! Dependencies point one way: this test reads the manifests and fails when one does not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// What each crate of the workspace may depend on, of the workspace. Development dependencies are not looked at.
const MAY_USE: &[(&str, &[&str])] = &[
    ("ash-protocol", &[]),
    ("ash-core", &["ash-protocol"]),
    ("ash-bundle", &[]),
    ("ash-crd", &["ash-core", "ash-protocol"]),
    ("ash-store", &["ash-core", "ash-protocol"]),
    ("ash-snapshot", &["ash-protocol"]),
    ("ash-sandbox", &["ash-core", "ash-protocol"]),
    ("ash-gateway", &["ash-core", "ash-protocol"]),
    ("ash-link", &["ash-protocol"]),
    ("ash-controllers", &["ash-bundle", "ash-core", "ash-crd", "ash-pods", "ash-protocol"]),
    ("ash-coordinator", &["ash-core", "ash-link", "ash-protocol"]),
    ("ash-api", &["ash-bundle", "ash-core", "ash-protocol"]),
    ("ash-runner", &["ash-core", "ash-gateway", "ash-link", "ash-protocol", "ash-sandbox", "ash-snapshot"]),
    ("ash-client", &["ash-bundle", "ash-core", "ash-protocol"]),
    ("ash-pods", &["ash-core", "ash-crd"]),
    (
        "ash",
        &[
            "ash-api",
            "ash-bundle",
            "ash-client",
            "ash-controllers",
            "ash-coordinator",
            "ash-core",
            "ash-gateway",
            "ash-link",
            "ash-pods",
            "ash-protocol",
            "ash-runner",
            "ash-sandbox",
            "ash-snapshot",
            "ash-store",
        ],
    ),
    ("ash-bridge", &["ash-protocol"]),
    (
        "ash-e2e",
        &["ash-client", "ash-core", "ash-gateway", "ash-protocol", "ash-runner", "ash-store", "ash-test-postgres"],
    ),
];

/// Who knows Kubernetes; the others reach it through ports. The benchmarks use a client of it, as the other side of what they
/// measure.
const KUBERNETES: &[&str] = &["ash-client", "ash-controllers", "ash-crd", "ash-e2e", "ash-pods", "ash-sandbox"];

/// Who alone may use a crate from outside.
const ONLY: &[(&str, &[&str])] = &[
    ("sqlx", &["ash-store"]),
    ("object_store", &["ash-snapshot"]),
    ("axum", &["ash", "ash-api", "ash-coordinator", "ash-gateway", "ash-runner"]),
    ("kube", KUBERNETES),
    ("k8s-openapi", KUBERNETES),
    ("schemars", &["ash-crd"]),
    ("serde_yaml", &["ash", "ash-crd"]),
    ("anyhow", &["ash", "ash-e2e"]),
    ("seccompiler", &["ash-sandbox"]),
    ("reqwest", &["ash-client", "ash-gateway", "ash-snapshot"]),
];

fn manifests() -> BTreeMap<String, BTreeSet<String>> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let operator = fs::read_dir(top.join("operator")).expect("operator/").flatten().map(|entry| entry.path());
    let folders = operator.chain([top.join("bridge-image"), top.join("e2e")]);
    let read = |folder: std::path::PathBuf| {
        let text = fs::read_to_string(folder.join("Cargo.toml")).ok()?;
        let mut section = "";
        let (mut name, mut dependencies) = (String::new(), BTreeSet::new());
        for line in text.lines() {
            if let Some(header) = line.strip_prefix('[') {
                section = header.trim_end_matches(']');
            } else if let Some((key, value)) = line.split_once('=') {
                let key = key.trim();
                if section == "package" && key == "name" {
                    value.trim().trim_matches('"').clone_into(&mut name);
                }
                if section == "dependencies" {
                    dependencies.insert(key.split('.').next().unwrap_or(key).to_owned());
                }
            }
        }
        Some((name, dependencies))
    };
    folders.filter_map(read).collect()
}

#[test]
fn dependencies_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    for (name, dependencies) in manifests() {
        let may = allowed.get(name.as_str()).unwrap_or_else(|| panic!("{name} is new: say what it may use"));
        for dependency in dependencies.iter().filter(|dependency| allowed.contains_key(dependency.as_str())) {
            assert!(may.contains(&dependency.as_str()), "{name} may not depend on {dependency}");
        }
    }
}

#[test]
fn only_their_owners_know_outside_crates() {
    for (name, dependencies) in manifests() {
        for (outside, owners) in ONLY {
            let knows = dependencies.contains(*outside);
            assert!(!knows || owners.contains(&name.as_str()), "{name} may not know {outside}");
        }
    }
}

#[test]
fn the_product_needs_nothing_of_its_tests() {
    for (name, dependencies) in manifests() {
        assert!(!dependencies.contains("ash-e2e"), "{name} depends on the tests");
    }
}
