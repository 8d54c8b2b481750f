//! Agents: deploy, list, get, delete.

use std::{borrow::Cow, collections::BTreeMap, path::PathBuf};

use ash_bundle::{Bundle, BundleBuilder, BundleError, REQUIRED_FILE};
use ash_core::{
    agent::AgentSettings,
    environment,
    name::AgentName,
    ports::{AgentRequest, DeployAgent},
};
use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use crate::{
    auth::Caller,
    body::{BoundedBody, MAX_DEPLOYMENT_BYTES},
    error::ApiError,
    fields::{Fields, Path, invalid},
    model_options, network,
    state::{ApiState, to_the_end},
    views::{AgentView, BACKEND},
};

/// The longest system prompt: 1 MiB.
pub(crate) const MAX_SYSTEM_PROMPT_BYTES: usize = 1 << 20;

/// The longest name of a model.
pub(crate) const MAX_MODEL_BYTES: usize = 256;

/// The longest description.
const MAX_DESCRIPTION_BYTES: usize = 4096;

/// What a deployment can have.
const FIELDS: [&str; 11] =
    ["name", "path", "files", "systemPrompt", "env", "slug", "description", "model", "backend", "config", "network"];

/// The longest `config`, as JSON.
const MAX_CONFIG_BYTES: usize = 256 << 10;

/// Base64 with or without its `=`.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// `POST /api/agents`: a new version of an agent, from its files in the request, a folder on the server's machine, or just a
/// system prompt.
pub(crate) async fn deploy(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    body: BoundedBody<MAX_DEPLOYMENT_BYTES>,
) -> Result<Response, ApiError> {
    let allow_path = state.config.allow_path;
    to_the_end(async move {
        state.metrics.deployments_waiting.inc();
        let place = state.deployments.acquire().await;
        state.metrics.deployments_waiting.dec();
        let Ok(_place) = place else { return Err(ApiError::internal()) };
        let deployment = tokio::task::spawn_blocking(move || {
            // The body and its share of the room for large ones live until the files are packed.
            let deployment = read(&body.bytes, allow_path);
            drop(body);
            deployment
        });
        let Deployment { name, slug, description, settings, digest, bundle } =
            deployment.await.map_err(|_| ApiError::internal())??;
        let mut deploy = DeployAgent { tenant, name, slug, description, settings, digest, bundle: bundle.into() };
        let agent = match &state.optional.resources {
            None => state.store.deploy_agent(deploy).await?,
            Some(resources) => {
                let request = request(&deploy);
                // Nothing is stored for an agent that the cluster would not take. A session that begins between the version and
                // the resource has what others have set on the agent all the same: its sandbox, its key, its bounds.
                deploy.settings = resources.check_agent(&request).await?;
                // The bundle is there before the resource names it.
                let agent = state.store.deploy_agent(deploy).await?;
                resources.apply_agent(request).await?;
                agent
            }
        };
        tracing::info!(agent = %agent.name, version = agent.version.number, "deployed");
        state.runner.prepare(agent.version.clone());
        Ok((StatusCode::CREATED, Json(json!({ "agent": AgentView::single(&agent) }))).into_response())
    })
    .await?
}

/// What the cluster is asked for.
fn request(deploy: &DeployAgent) -> AgentRequest {
    AgentRequest {
        tenant: deploy.tenant.clone(),
        name: deploy.name.clone(),
        slug: deploy.slug.clone(),
        description: deploy.description.clone(),
        settings: deploy.settings.clone(),
        digest: deploy.digest.clone(),
    }
}

struct Deployment {
    name: AgentName,
    slug: Option<String>,
    description: Option<String>,
    settings: AgentSettings,
    digest: String,
    bundle: Vec<u8>,
}

fn read(body: &[u8], allow_path: bool) -> Result<Deployment, ApiError> {
    let fields = Fields::parse(body)?;
    fields.check_spelling(&FIELDS)?;
    fields.check_spelling_in("network", &["mode", "hosts"])?;
    let name: String = fields.required("name")?;
    let name: AgentName = name.parse().map_err(|error| ApiError::bad_request(format!("{error}")))?;
    let slug = fields.get::<String>("slug")?.map(|slug| {
        slug.parse::<AgentName>().map(String::from).map_err(|_| {
            invalid("slug", "use 1 to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit")
        })
    });
    let description = fields.get::<String>("description")?;
    if description.as_ref().is_some_and(|text| text.len() > MAX_DESCRIPTION_BYTES) {
        return Err(invalid("description", &format!("it has more than {MAX_DESCRIPTION_BYTES} bytes")));
    }
    if let Some(backend) = fields.get::<String>("backend")?
        && backend != BACKEND
        && backend != "claude"
    {
        return Err(invalid("backend", &format!("this server has one, {BACKEND:?}")));
    }
    let system_prompt = system_prompt(&fields)?;
    let env: BTreeMap<String, String> = fields.get("env")?.unwrap_or_default();
    environment::check(&env).map_err(|error| ApiError::bad_request(format!("env: {error}")))?;
    if fields.raw("config").is_some_and(|config| config.get().len() > MAX_CONFIG_BYTES) {
        return Err(invalid("config", &format!("it has more than {MAX_CONFIG_BYTES} bytes")));
    }
    let mut settings = AgentSettings {
        model: fields.word("model", MAX_MODEL_BYTES)?,
        env,
        network: network::policy(&fields)?,
        config: fields.get("config")?,
        ..AgentSettings::default()
    };
    let (bundle, system_prompt) = files(&fields, allow_path, system_prompt)?;
    settings.system_prompt = system_prompt;
    settings.has_hooks = bundle.has_hooks();
    settings.model = settings.model.or_else(|| model_options::of_folder(&bundle));
    model_options::check_name(settings.model.as_deref())?;
    bundle.mcp_servers()?;
    let digest = bundle.digest();
    let bundle = bundle.to_tar_zstd().map_err(|error| {
        tracing::error!(%error, "a bundle could not be packed");
        ApiError::internal()
    })?;
    Ok(Deployment { name, slug: slug.transpose()?, description, settings, digest, bundle })
}

/// The text of a system prompt in a request.
pub(crate) fn system_prompt(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    let prompt = fields.get::<String>("systemPrompt")?;
    if prompt.as_ref().is_some_and(|prompt| prompt.len() > MAX_SYSTEM_PROMPT_BYTES || prompt.contains('\0')) {
        return Err(invalid("systemPrompt", "it is longer than 1 MiB or has a NUL character"));
    }
    Ok(prompt.filter(|prompt| !prompt.trim().is_empty()))
}

/// The files of a deployment, and the system prompt where it is not in them. A system prompt without files becomes their
/// `CLAUDE.md`.
fn files(
    fields: &Fields<'_>,
    allow_path: bool,
    system_prompt: Option<String>,
) -> Result<(Bundle, Option<String>), ApiError> {
    #[derive(Deserialize)]
    struct File<'a> {
        #[serde(borrow)]
        path: Cow<'a, str>,
        #[serde(borrow)]
        content: Cow<'a, str>,
        #[serde(default)]
        executable: Option<bool>,
    }

    match (fields.get::<String>("path")?, fields.get::<Vec<File<'_>>>("files")?, system_prompt) {
        (Some(_), Some(_), _) => Err(ApiError::bad_request("path and files are both there: send one of them")),
        (Some(_), None, _) if !allow_path => Err(ApiError::bad_request(
            "path is only for a standalone server: send the files themselves, as files with base64 content",
        )),
        (Some(path), None, prompt) => Ok((Bundle::read_directory(&PathBuf::from(path))?, prompt)),
        (None, Some(files), prompt) => {
            let mut builder = BundleBuilder::new();
            for file in files {
                // Three bytes of every four: told before anything is decoded.
                if (file.content.len() / 4 * 3) as u64 > builder.room() + 2 {
                    return Err(BundleError::TooLarge.into());
                }
                let bytes = BASE64.decode(file.content.as_bytes()).map_err(|error| {
                    let path: String = file.path.chars().take(200).collect();
                    invalid("files", &format!("the content of {path:?} is not base64: {error}"))
                })?;
                builder.add(&file.path, file.executable, bytes)?;
            }
            Ok((builder.finish()?, prompt))
        }
        (None, None, Some(prompt)) => {
            Ok((Bundle::from_files([(REQUIRED_FILE.to_owned(), prompt.into_bytes())])?, None))
        }
        (None, None, None) => {
            Err(ApiError::bad_request("an agent needs files (with a CLAUDE.md), a path or a systemPrompt"))
        }
    }
}

/// `GET /api/agents`.
pub(crate) async fn list(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
) -> Result<Response, ApiError> {
    let agents = state.store.agents(&tenant).await?;
    let agents: Vec<_> = agents.iter().map(AgentView::listed).collect();
    Ok(Json(json!({ "agents": agents })).into_response())
}

/// `GET /api/agents/{name}`, by name or slug.
pub(crate) async fn get(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let agent = state.store.agent(&tenant, &name).await?.ok_or_else(unknown)?;
    Ok(Json(json!({ "agent": AgentView::single(&agent) })).into_response())
}

/// `DELETE /api/agents/{name}`: no new sessions; those that there are go on.
pub(crate) async fn delete(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let agent = state.store.agent(&tenant, &name).await?.ok_or_else(unknown)?;
    if let Some(resources) = &state.optional.resources {
        resources.delete_agent(&tenant, &agent.name).await?;
    }
    if !state.store.delete_agent(&tenant, &name).await? {
        return Err(unknown());
    }
    state.runner.forget(&agent.version);
    Ok(Json(json!({ "ok": true })).into_response())
}

pub(crate) fn unknown() -> ApiError {
    ApiError::not_found("Agent not found")
}
