//! The files of an agent, read from where its spec says that they are.

use std::collections::BTreeMap;

use ash_bundle::{Bundle, BundleBuilder, BundleError};
use ash_crd::{ConfigMapSource, InlineSource, Reason, Source};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::ConfigMap;

use super::git;
use crate::{error::StepError, namespace::Namespace};

/// Files that were read.
pub(super) struct Files {
    /// The files.
    pub(super) bundle: Bundle,
    /// The commit that they are of.
    pub(super) commit: Option<String>,
}

/// What is wrong with a source, for its condition.
pub(super) type Wrong = (Reason, String);

/// Reads the files.
pub(super) async fn read(
    namespace: &Namespace,
    agent: &ash_crd::Agent,
    source: &Source,
) -> Result<Result<Files, Wrong>, StepError> {
    let bundle = if let Some(inline) = &source.inline {
        of_inline(inline)
    } else if let Some(config_map) = &source.config_map {
        match namespace.api::<ConfigMap>().get_opt(&config_map.name).await? {
            Some(found) => of_config_map(config_map, &found),
            None => {
                Err((Reason::SourceNotFound, format!("there is no ConfigMap {:?} in this namespace", config_map.name)))
            }
        }
    } else if let Some(uploaded) = &source.bundle {
        match namespace.ports.store.bundle(&namespace.tenant(), &uploaded.digest).await? {
            None => Err((Reason::BundleNotFound, format!("no bundle {} was uploaded", uploaded.digest))),
            Some(archive) => {
                let unpacked = tokio::task::spawn_blocking(move || Bundle::from_tar_zstd(&archive)).await;
                let unpacked =
                    unpacked.map_err(|_| StepError::Internal("a bundle could not be unpacked".to_owned()))?;
                unpacked.map_err(|error| wrong(&error))
            }
        }
    } else if let Some(git) = &source.git {
        return git::read(namespace, agent, git).await;
    } else {
        Err((Reason::BundleInvalid, "the source has none of inline, configMap, git and bundle".to_owned()))
    };
    Ok(bundle.map(|bundle| Files { bundle, commit: None }))
}

fn of_inline(source: &InlineSource) -> Result<Bundle, Wrong> {
    let mut builder = BundleBuilder::new();
    for file in &source.files {
        let bytes = match (&file.text, &file.base64) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(text)) => {
                let plain: String = text.split_ascii_whitespace().collect();
                STANDARD.decode(plain).map_err(|error| {
                    (Reason::BundleInvalid, format!("the content of {:?} is not base64: {error}", file.path))
                })?
            }
            (None, None) => Vec::new(),
        };
        builder.add(&file.path, file.executable.then_some(true), bytes).map_err(|error| wrong(&error))?;
    }
    builder.finish().map_err(|error| wrong(&error))
}

fn of_config_map(source: &ConfigMapSource, map: &ConfigMap) -> Result<Bundle, Wrong> {
    let text = map.data.iter().flatten().map(|(key, text)| (key.as_str(), text.as_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, bytes)| (key.as_str(), bytes.0.as_slice()));
    let entries: BTreeMap<&str, &[u8]> = text.chain(binary).collect();
    let mut builder = BundleBuilder::new();
    if source.items.is_empty() {
        for (key, bytes) in &entries {
            builder.add(key, None, bytes.to_vec()).map_err(|error| wrong(&error))?;
        }
    }
    for item in &source.items {
        let bytes = entries.get(item.key.as_str()).ok_or_else(|| {
            (Reason::SourceNotFound, format!("the ConfigMap {:?} has no key {:?}", source.name, item.key))
        })?;
        builder.add(&item.path, item.executable.then_some(true), bytes.to_vec()).map_err(|error| wrong(&error))?;
    }
    builder.finish().map_err(|error| wrong(&error))
}

/// What a bundle's error is called in a condition.
pub(super) fn wrong(error: &BundleError) -> Wrong {
    let reason = match error {
        BundleError::NoClaudeMd => Reason::ClaudeMdMissing,
        _ => Reason::BundleInvalid,
    };
    (reason, error.to_string())
}
