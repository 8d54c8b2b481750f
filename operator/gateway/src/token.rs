//! Sandbox tokens: who is calling, provable without a lookup and worth nothing anywhere else.
//!
//! A token is `ash-sbx-` and base64url (no padding) of `version (1 byte) ‖ sandbox id (16) ‖
//! HMAC-SHA256 (32)`. The MAC covers a domain string, the version and the id. It never expires:
//! what it permits is decided by the registry, for each request.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use secrecy::{ExposeSecret as _, SecretBox, SecretString};
use sha2::Sha256;
use uuid::Uuid;

use crate::error::TokenError;
use crate::id::SandboxId;

/// What every token starts with, so that people and secret scanners recognise one.
pub const TOKEN_PREFIX: &str = "ash-sbx-";

/// Length of the signing key in bytes.
pub const KEY_LENGTH: usize = 32;

const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"ash sandbox token";
const ID_LENGTH: usize = 16;
const MAC_LENGTH: usize = 32;
const TOKEN_BYTES: usize = 1 + ID_LENGTH + MAC_LENGTH;

/// Signs and verifies sandbox tokens with one secret key.
pub struct TokenSigner {
    key: SecretBox<[u8; KEY_LENGTH]>,
}

impl TokenSigner {
    /// Takes the key: 32 random bytes, the same in every process that has to accept the tokens.
    pub fn new(key: SecretBox<[u8; KEY_LENGTH]>) -> Self {
        Self { key }
    }

    /// The token of a sandbox. The same id always gives the same token, so a restarted server
    /// knows the tokens of the sandboxes that survived it.
    pub fn sign(&self, sandbox: SandboxId) -> SecretString {
        let mut raw = Vec::with_capacity(TOKEN_BYTES);
        raw.push(VERSION);
        raw.extend_from_slice(sandbox.0.as_bytes());
        if let Some(mac) = self.mac(&raw) {
            raw.extend_from_slice(&mac.finalize().into_bytes());
        }
        SecretString::from(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(raw)))
    }

    /// Whose token this is. The comparison takes constant time.
    pub fn verify(&self, token: &str) -> Result<SandboxId, TokenError> {
        let encoded = token.strip_prefix(TOKEN_PREFIX).ok_or(TokenError::Malformed)?;
        let mut raw = [0_u8; TOKEN_BYTES];
        let length = URL_SAFE_NO_PAD.decode_slice(encoded, &mut raw).map_err(|_| TokenError::Malformed)?;
        if length != TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        if raw[0] != VERSION {
            return Err(TokenError::Version(raw[0]));
        }
        let (signed, mac) = raw.split_at(1 + ID_LENGTH);
        let expected = self.mac(signed).ok_or(TokenError::Forged)?;
        expected.verify_slice(mac).map_err(|_| TokenError::Forged)?;
        let id = Uuid::from_slice(&signed[1..]).map_err(|_| TokenError::Malformed)?;
        Ok(SandboxId(id))
    }

    /// HMAC accepts keys of every length, so this is `None` never; it saves a panic path.
    fn mac(&self, signed: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.expose_secret()).ok()?;
        mac.update(DOMAIN);
        mac.update(signed);
        Some(mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(byte: u8) -> TokenSigner {
        TokenSigner::new(SecretBox::new(Box::new([byte; KEY_LENGTH])))
    }

    #[test]
    fn a_token_names_its_sandbox() {
        let sandbox = SandboxId(Uuid::from_u128(7));
        let token = signer(1).sign(sandbox);
        assert_eq!(signer(1).verify(token.expose_secret()), Ok(sandbox));
        assert_eq!(signer(2).verify(token.expose_secret()), Err(TokenError::Forged));
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let signer = signer(3);
        let token = signer.sign(SandboxId(Uuid::from_u128(u128::MAX / 3)));
        let token = token.expose_secret().to_owned();
        for index in 0..token.len() {
            for replacement in ['A', 'B', '_', '=', ' '] {
                let mut forged: Vec<char> = token.chars().collect();
                if forged[index] == replacement {
                    continue;
                }
                forged[index] = replacement;
                let forged: String = forged.into_iter().collect();
                assert!(signer.verify(&forged).is_err(), "{forged}");
            }
        }
    }

    #[test]
    fn strange_input_is_refused() {
        let signer = signer(4);
        let long = format!("{TOKEN_PREFIX}{}", "A".repeat(10_000));
        for token in ["", "ash-sbx-", "ash-sbx-AA", "sk-ant-key", &long, "ash-sbx-é"] {
            assert!(signer.verify(token).is_err(), "{token:.20}");
        }
        let mut raw = [0_u8; TOKEN_BYTES];
        raw[0] = 9;
        let other = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(raw));
        assert_eq!(signer.verify(&other), Err(TokenError::Version(9)));
    }

    #[test]
    fn an_id_cannot_be_exchanged() {
        let signer = signer(5);
        let mine = signer.sign(SandboxId(Uuid::from_u128(1)));
        let encoded = mine.expose_secret().strip_prefix(TOKEN_PREFIX).unwrap();
        let mut raw = URL_SAFE_NO_PAD.decode(encoded).unwrap();
        raw[16] = 2;
        let forged = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(raw));
        assert_eq!(signer.verify(&forged), Err(TokenError::Forged));
    }
}
