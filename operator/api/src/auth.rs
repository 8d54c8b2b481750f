//! Who may ask: bearers of API keys, and of Kubernetes tokens where those are taken; and the first key of a new server.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use ash_core::{
    id::TenantId,
    ports::{KeyStore, NewKey, StoreError},
};
use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use http::{HeaderMap, StatusCode, header};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use crate::{
    access::{self, Access, User},
    error::ApiError,
    state::ApiState,
};

/// The file in the data directory that the first key is written to.
const INITIAL_KEY_FILE: &str = "initial-api-key";

/// Random bytes of a key.
const KEY_BYTES: usize = 24;

/// Whose request it is: an extension of every request that passed [`require_key`].
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) TenantId);

/// SHA-256 of a whole key: all that is kept of it.
pub fn hash_key(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Who somebody is, before it is known what they want.
pub(crate) enum Identity<'a> {
    /// The bearer of an API key, which may do everything of its tenant.
    Key(TenantId),
    /// The bearer of a Kubernetes token.
    User(&'a Access, User),
}

/// Lets only requests with a valid key, or a token with the right to make them, through, with their [`Caller`].
pub(crate) async fn require_key(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let tenant = match authenticate(&state, request.headers()).await? {
        Identity::Key(tenant) => tenant,
        Identity::User(access, user) => {
            tracing::Span::current().record("user", user.name());
            let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
            access.tenant(&user, request.headers(), request.method(), route).await?
        }
    };
    request.extensions_mut().insert(Caller(tenant));
    Ok(next.run(request).await)
}

/// Whose key or token the headers carry. The texts of the refusals are those that published clients know.
pub(crate) async fn authenticate<'a>(state: &'a ApiState, headers: &HeaderMap) -> Result<Identity<'a>, ApiError> {
    let refuse = |message: &str| {
        state.metrics.auth_failures.inc();
        ApiError::new(StatusCode::UNAUTHORIZED, message)
    };
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Err(refuse("Missing Authorization header")) };
    let key = value.to_str().ok().and_then(bearer).ok_or_else(|| refuse("Invalid API key"))?;
    let hash = hash_key(key);
    if state.extra_key.as_ref().is_some_and(|extra| same(extra, &hash)) {
        return of_key(state, TenantId::default_tenant(), headers);
    }
    if let Some(access) = &state.access
        && let Some(claims) = access::claims(key)
    {
        return Ok(Identity::User(access, access.user(key, &claims).await?));
    }
    let key = state.store.key(&hash).await?.ok_or_else(|| refuse("Invalid API key"))?;
    of_key(state, key.tenant, headers)
}

/// A key has one tenant. A request that names another is refused, rather than done in a place that nobody meant.
fn of_key<'a>(state: &ApiState, tenant: TenantId, headers: &HeaderMap) -> Result<Identity<'a>, ApiError> {
    let own = state.access.as_ref().map_or(tenant.0.as_str(), |access| access.namespace_of(&tenant));
    match access::named_namespace(headers)? {
        Some(named) if named != own => {
            let message =
                format!("this API key is of the namespace {own}: leave {named} away, or use a key or token of it");
            Err(ApiError::new(StatusCode::FORBIDDEN, message))
        }
        _ => Ok(Identity::Key(tenant)),
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, key) = value.split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then_some(key)
}

/// Compares without telling by its time where the two differ.
fn same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    std::hint::black_box(one.iter().zip(other).fold(0, |differences, (a, b)| differences | (a ^ b))) == 0
}

/// Why there is no first key.
#[derive(Debug, thiserror::Error)]
pub enum InitialKeyError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system gave no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// The file was not written.
    #[error("the first API key cannot be written to {path}: {source}; make the data directory writable", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

/// Makes the first key where the store has none: `ash_` and 24 random bytes in base64url, for the default tenant. Its hash goes
/// to the store, the key to `<data dir>/initial-api-key`, which only its owner can read. Gives the file's path, so that a
/// person can be told where the key is; `None` where there was a key.
pub async fn ensure_initial_key(store: &dyn KeyStore, data_dir: &Path) -> Result<Option<PathBuf>, InitialKeyError> {
    if store.has_keys().await? {
        return Ok(None);
    }
    let mut bytes = [0; KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(InitialKeyError::Random)?;
    let key = SecretString::from(format!("ash_{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)));
    let path = data_dir.join(INITIAL_KEY_FILE);
    // The file comes first: a key that is in the store and nowhere else would lock everybody out.
    write_private(&path, key.expose_secret()).map_err(|source| InitialKeyError::File { path: path.clone(), source })?;
    let hash = hash_key(key.expose_secret());
    store.add_key(NewKey { tenant: TenantId::default_tenant(), name: "initial".to_owned(), hash }).await?;
    Ok(Some(path))
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::{bearer, same};

    #[test]
    fn bearer_keys() {
        assert_eq!(bearer("Bearer ash_x"), Some("ash_x"));
        assert_eq!(bearer("bearer  ash_x "), Some("ash_x"));
        for value in ["", "Bearer", "Bearer ", "Basic abc", "ash_x"] {
            assert_eq!(bearer(value), None, "{value}");
        }
    }

    #[test]
    fn hashes_are_compared_whole() {
        let mut other = [7; 32];
        assert!(same(&[7; 32], &other));
        other[31] = 8;
        assert!(!same(&[7; 32], &other));
    }
}
