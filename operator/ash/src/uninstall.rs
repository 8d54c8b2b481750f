//! `ash uninstall`: what has to happen in a cluster before a release is taken out of it.

use std::process::ExitCode;

use anyhow::bail;
use clap::{ArgAction, Args};
use serde_json::json;

use crate::{arguments::Global, output::Output};

/// Arguments of an uninstall.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Namespaces that the release serves, with commas between
    #[arg(long, env = "ASH_NAMESPACES", action = ArgAction::Append, value_delimiter = ',', value_name = "NAMES")]
    namespaces: Vec<String>,
}

/// Removes all pods of Ash from the served namespaces, and lets go of their Agents and Sessions, which stay.
pub(crate) async fn run(arguments: Arguments, global: &Global, output: Output) -> anyhow::Result<ExitCode> {
    let namespaces: Vec<String> = arguments.namespaces.into_iter().filter(|name| !name.is_empty()).collect();
    if namespaces.is_empty() {
        bail!("an uninstall begins with the namespaces that the release serves: name them with --namespaces");
    }
    let client = ash_controllers::connect_to(global.context.as_deref()).await?;
    let released = ash_controllers::uninstall(&client, &namespaces, &global.release_namespace).await?;
    let (pods, resources) = (released.pods, released.resources);
    output.result(&json!({ "pods": pods, "resources": resources }), || {
        format!(
            "Removed {pods} pods, and let go of {resources} Agents and Sessions, in {}. Now take the release out: within five \
             minutes, or its operators begin again.",
            namespaces.join(", ")
        )
    })?;
    Ok(ExitCode::SUCCESS)
}
