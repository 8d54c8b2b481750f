//! Who has the shared secret, provable without showing it: HMAC-SHA256 (RFC 2104) over both sides' nonces.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;

use crate::error::TrustError;

/// Bytes of a nonce.
const NONCE_BYTES: usize = 32;

/// The nonces of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nonces {
    pub(crate) client: String,
    pub(crate) server: String,
}

/// A new nonce, as it stands in a header.
pub(crate) fn nonce() -> Result<String, TrustError> {
    let mut bytes = [0; NONCE_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| TrustError::NoRandom(error.to_string()))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Whether a header's text is a nonce.
pub(crate) fn is_nonce(text: &str) -> bool {
    URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes.len() == NONCE_BYTES)
}

/// The MAC of several parts, each with its length before it, so that none runs into the next.
///
/// HMAC takes keys of every length, so this is `None` never; it saves a panic path.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    for part in parts {
        mac.update(&(part.len() as u64).to_le_bytes());
        mac.update(part);
    }
    Some(mac)
}

fn of(secret: &SecretString, purpose: &[u8], nonces: &Nonces) -> Option<Hmac<Sha256>> {
    mac(secret.expose_secret().as_bytes(), &[purpose, nonces.client.as_bytes(), nonces.server.as_bytes()])
}

const SERVER: &[u8] = b"ash fleet server 1";
const CLIENT: &[u8] = b"ash fleet client 1";

/// What a server shows.
pub(crate) fn server_proof(secret: &SecretString, nonces: &Nonces) -> String {
    encoded(of(secret, SERVER, nonces))
}

/// The token of a client, for one connection.
pub(crate) fn client_token(secret: &SecretString, nonces: &Nonces) -> String {
    encoded(of(secret, CLIENT, nonces))
}

fn encoded(mac: Option<Hmac<Sha256>>) -> String {
    mac.map(|mac| URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())).unwrap_or_default()
}

fn verifies(mac: Option<Hmac<Sha256>>, shown: &[u8]) -> bool {
    mac.is_some_and(|mac| mac.verify_slice(shown).is_ok())
}

/// The secret with which a server proved itself, of those that we have. Comparisons take constant time.
pub(crate) fn proven<'a>(secrets: &'a [SecretString], nonces: &Nonces, proofs: &str) -> Option<&'a SecretString> {
    let proofs: Vec<Vec<u8>> =
        proofs.split(',').take(16).filter_map(|proof| URL_SAFE_NO_PAD.decode(proof.trim()).ok()).collect();
    let matches = |secret: &&SecretString| proofs.iter().any(|proof| verifies(of(secret, SERVER, nonces), proof));
    secrets.iter().find(matches)
}

/// Whether a client's token is good for one of the secrets. The comparison takes constant time.
pub(crate) fn accepts(secrets: &[SecretString], nonces: &Nonces, token: &str) -> bool {
    let Ok(token) = URL_SAFE_NO_PAD.decode(token) else { return false };
    secrets.iter().any(|secret| verifies(of(secret, CLIENT, nonces), &token))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use secrecy::{ExposeSecret as _, SecretString};

    use super::{Nonces, accepts, client_token, is_nonce, nonce, proven, server_proof};

    fn secret(text: &str) -> SecretString {
        text.into()
    }

    #[test]
    fn both_sides_prove_the_same_secret() {
        let nonces = Nonces { client: nonce().unwrap(), server: nonce().unwrap() };
        assert!(is_nonce(&nonces.client) && nonces.client != nonces.server);
        let ours = [secret("new"), secret("old")];
        let proof = format!("{},{}", server_proof(&secret("other"), &nonces), server_proof(&secret("old"), &nonces));
        let used = proven(&ours, &nonces, &proof).unwrap();
        assert_eq!(used.expose_secret(), "old");
        assert!(accepts(&[secret("x"), secret("old")], &nonces, &client_token(used, &nonces)));
        assert!(!accepts(&[secret("new")], &nonces, &client_token(used, &nonces)));
    }

    #[test]
    fn a_proof_is_good_for_one_side_and_one_connection() {
        let nonces = Nonces { client: nonce().unwrap(), server: nonce().unwrap() };
        let other = Nonces { server: nonce().unwrap(), ..nonces.clone() };
        let secrets = [secret("s")];
        assert!(!accepts(&secrets, &nonces, &server_proof(&secrets[0], &nonces)));
        assert!(!accepts(&secrets, &other, &client_token(&secrets[0], &nonces)));
        assert!(proven(&secrets, &other, &server_proof(&secrets[0], &nonces)).is_none());
        assert!(proven(&secrets, &nonces, &client_token(&secrets[0], &nonces)).is_none());
    }

    proptest! {
        #[test]
        fn whatever_comes_proves_nothing(text in ".{0,200}") {
            let nonces = Nonces { client: "a".to_owned(), server: "b".to_owned() };
            prop_assert!(proven(&[secret("s")], &nonces, &text).is_none());
            prop_assert!(!accepts(&[secret("s")], &nonces, &text));
            let _ = is_nonce(&text);
        }
    }
}
