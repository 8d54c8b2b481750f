//! How credentials are encrypted: AES-256-GCM (NIST SP 800-38D), a random 96-bit nonce for each, and the row's identity
//! authenticated with it.
//!
//! What is stored: one byte for this format, 4 that name the key (the first of its SHA-256), the nonce, the ciphertext with its
//! tag of 16. So keys can be exchanged: the first of those given encrypts, any of them decrypts.

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
    rand::{SecureRandom as _, SystemRandom},
};
use secrecy::{ExposeSecret as _, ExposeSecretMut as _, SecretBox};

/// The format's byte.
const FORMAT: u8 = 1;
/// Bytes that name a key.
const NAME: usize = 4;
/// Keys that may be given: one, and those that it replaces.
const MAX_KEYS: usize = 8;

/// Why keys cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    /// There are none, or too many.
    #[error(
        "give from 1 to {MAX_KEYS} keys for credentials: the first encrypts, the others are those that it replaces"
    )]
    Count,
    /// One cannot be used.
    #[error("a key for credentials cannot be used: it has to have 32 bytes")]
    Key,
}

/// Keys for credentials. Cannot be printed.
#[derive(Default)]
pub struct Keyring {
    keys: Vec<([u8; NAME], LessSafeKey)>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} keys", self.keys.len())
    }
}

/// Why something could not be encrypted or decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// No key was given.
    NoKey,
    /// It was encrypted under a key that was not given.
    OtherKey,
    /// It is not what was encrypted.
    Changed,
    /// The system has no random numbers.
    NoRandom,
}

impl Keyring {
    /// Keys, of which the first encrypts.
    pub fn new(keys: &[SecretBox<[u8; 32]>]) -> Result<Self, InvalidKeys> {
        if keys.is_empty() || keys.len() > MAX_KEYS {
            return Err(InvalidKeys::Count);
        }
        let made = keys.iter().map(|key| {
            let bytes = key.expose_secret();
            let mut name = [0; NAME];
            name.copy_from_slice(digest(&SHA256, bytes).as_ref().get(..NAME).ok_or(InvalidKeys::Key)?);
            let unbound = UnboundKey::new(&AES_256_GCM, bytes).map_err(|_| InvalidKeys::Key)?;
            Ok((name, LessSafeKey::new(unbound)))
        });
        Ok(Self { keys: made.collect::<Result<_, _>>()? })
    }

    /// Whether no key was given.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Encrypts; `row` is what it belongs to.
    pub(crate) fn seal(&self, row: &[u8], secret: &[u8]) -> Result<Vec<u8>, Broken> {
        let (name, key) = self.keys.first().ok_or(Broken::NoKey)?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| Broken::NoRandom)?;
        let mut body = secret.to_vec();
        let nonce_value = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce_value, Aad::from(row), &mut body).map_err(|_| Broken::Changed)?;
        let mut sealed = Vec::with_capacity(1 + NAME + NONCE_LEN + body.len());
        sealed.push(FORMAT);
        sealed.extend_from_slice(name);
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut body);
        Ok(sealed)
    }

    /// Decrypts what belongs to `row`.
    pub(crate) fn open(&self, row: &[u8], sealed: &[u8]) -> Result<SecretBox<[u8]>, Broken> {
        if self.keys.is_empty() {
            return Err(Broken::NoKey);
        }
        let (format, rest) = sealed.split_first().ok_or(Broken::Changed)?;
        let (name, rest) = rest.split_at_checked(NAME).ok_or(Broken::Changed)?;
        let (nonce, body) = rest.split_at_checked(NONCE_LEN).ok_or(Broken::Changed)?;
        if *format != FORMAT {
            return Err(Broken::Changed);
        }
        let mut is_known = false;
        for (_, key) in self.keys.iter().filter(|(own, _)| own == name) {
            is_known = true;
            let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Broken::Changed)?;
            // Cleared as it is dropped: what is decrypted in place is a secret.
            let mut clear = SecretBox::new(Box::new(body.to_vec()));
            if let Ok(secret) = key.open_in_place(nonce, Aad::from(row), clear.expose_secret_mut()) {
                return Ok(SecretBox::new(secret.to_vec().into_boxed_slice()));
            }
        }
        Err(if is_known { Broken::Changed } else { Broken::OtherKey })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use secrecy::{ExposeSecret as _, SecretBox};

    use super::{Broken, InvalidKeys, Keyring};

    fn ring(keys: &[u8]) -> Keyring {
        let keys: Vec<_> = keys.iter().map(|byte| SecretBox::new(Box::new([*byte; 32]))).collect();
        Keyring::new(&keys).unwrap()
    }

    #[test]
    fn keys_can_be_exchanged() {
        let old = ring(&[1]).seal(b"row", b"sesame").unwrap();
        let both = ring(&[2, 1]);
        assert_eq!(both.open(b"row", &old).unwrap().expose_secret(), b"sesame");
        let new = both.seal(b"row", b"sesame").unwrap();
        assert_eq!(ring(&[2]).open(b"row", &new).unwrap().expose_secret(), b"sesame");
        assert!(matches!(ring(&[1]).open(b"row", &new), Err(Broken::OtherKey)));
        assert!(matches!(Keyring::default().seal(b"row", b"sesame"), Err(Broken::NoKey)));
        assert!(matches!(Keyring::new(&[]), Err(InvalidKeys::Count)));
        assert!(!format!("{both:?}").contains('1'));
    }

    proptest! {
        #[test]
        fn what_was_changed_is_found(secret in prop::collection::vec(any::<u8>(), 0..80), at in 0usize..200, bit in 0u8..8) {
            let keys = ring(&[7]);
            let sealed = keys.seal(b"row", &secret).unwrap();
            let opened = keys.open(b"row", &sealed).unwrap();
            prop_assert_eq!(opened.expose_secret(), secret.as_slice());
            prop_assert!(keys.open(b"other row", &sealed).is_err());
            prop_assert!(!secret.is_empty() || sealed.len() == 1 + 4 + 12 + 16);
            prop_assert_ne!(keys.seal(b"row", &secret).unwrap(), sealed.clone());
            let mut changed = sealed.clone();
            let place = at % changed.len();
            changed[place] ^= 1 << bit;
            prop_assert!(keys.open(b"row", &changed).is_err());
            prop_assert!(keys.open(b"row", &sealed[..place]).is_err());
        }
    }
}
