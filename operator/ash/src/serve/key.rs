//! Keys: the one that signs the sandboxes' tokens and the one that encrypts credentials. Standalone each is made once and kept in
//! the data directory, so that tokens and credentials outlive a restart; a coordinator is given both.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::{Context, bail};
use ash_gateway::{KEY_LENGTH, TokenSigner};
use ash_store::Keyring;
use secrecy::{ExposeSecret as _, SecretBox, SecretString};

use super::arguments::CredentialArguments;

/// The tokens' key, readable by its owner only.
const FILE: &str = "gateway.key";
/// The credentials' key, readable by its owner only.
const CREDENTIALS: &str = "credential.key";

/// The signer with the data directory's key, which is made where there is none.
pub(super) fn token_signer(data: &Path) -> anyhow::Result<TokenSigner> {
    let key = kept(&data.join(FILE), "sandboxes that run are started anew")?;
    Ok(TokenSigner::new(SecretBox::new(Box::new(key))))
}

/// The keys for credentials: as given, else the data directory's own where one may be made.
pub(crate) fn credential_keys(arguments: &CredentialArguments, data: Option<&Path>) -> anyhow::Result<Keyring> {
    let advice = "give the key that stored credentials are encrypted with, 64 hexadecimal digits (`openssl rand -hex 32`), the \
                  same at every start, as ASH_CREDENTIAL_KEY, or in a file that --credential-key-file names; keys that it \
                  replaces stand behind it";
    let text = match (&arguments.credential_key, &arguments.credential_key_file, data) {
        (Some(keys), _, _) => keys.clone(),
        (None, Some(path), _) => {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            SecretString::from(text)
        }
        (None, None, Some(data)) => {
            let key = kept(&data.join(CREDENTIALS), "stored credentials are lost with it")?;
            return Ok(Keyring::new(&[SecretBox::new(Box::new(key))])?);
        }
        (None, None, None) => bail!("a coordinator makes no key of its own: {advice}"),
    };
    let words = text.expose_secret().split([',', '\n', '\r', ' ']).map(str::trim).filter(|word| !word.is_empty());
    let keys = words.map(|word| hexadecimal(word).map(|key| SecretBox::new(Box::new(key))));
    let keys: Option<Vec<_>> = keys.collect();
    let keys = keys.with_context(|| format!("the key for credentials is none: {advice}"))?;
    Ok(Keyring::new(&keys)?)
}

/// A key in a file, which is made where it is not there.
fn kept(path: &Path, otherwise: &str) -> anyhow::Result<[u8; KEY_LENGTH]> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path)?,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let key = bytes.try_into().ok();
    key.with_context(|| format!("{} is damaged: remove it and start again ({otherwise})", path.display()))
}

fn make(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut key = vec![0; KEY_LENGTH];
    getrandom::fill(&mut key).map_err(|error| anyhow::anyhow!("the system has no random numbers: {error}"))?;
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
    let mut file = file.with_context(|| format!("cannot write {}", temporary.display()))?;
    file.write_all(&key)?;
    file.sync_all()?;
    fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(key)
}

/// A key from its 64 hexadecimal digits; `None` for anything else.
pub(crate) fn hexadecimal(text: &str) -> Option<[u8; KEY_LENGTH]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * KEY_LENGTH {
        return None;
    }
    let mut key = [0; KEY_LENGTH];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::{CREDENTIALS, credential_keys, hexadecimal};
    use crate::serve::arguments::CredentialArguments;

    fn given(key: Option<&str>) -> CredentialArguments {
        CredentialArguments { credential_key: key.map(Into::into), credential_key_file: None }
    }

    #[test]
    fn keys_for_credentials_are_given_or_made_once() {
        let two = format!("{}, {}", "0f".repeat(32), "1e".repeat(32));
        assert_eq!(format!("{:?}", credential_keys(&given(Some(&two)), None).unwrap()), "2 keys");
        let refused = credential_keys(&given(None), None).unwrap_err().to_string();
        assert!(refused.contains("ASH_CREDENTIAL_KEY"), "{refused}");
        let refused = credential_keys(&given(Some("sesame")), None).unwrap_err().to_string();
        assert!(refused.contains("64 hexadecimal digits") && !refused.contains("sesame"), "{refused}");
        let folder = tempfile::tempdir().unwrap();
        credential_keys(&given(None), Some(folder.path())).unwrap();
        let path = folder.path().join(CREDENTIALS);
        let made = std::fs::read(&path).unwrap();
        assert_eq!((made.len(), std::fs::metadata(&path).unwrap().permissions().mode() & 0o777), (32, 0o600));
        credential_keys(&given(None), Some(folder.path())).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), made);
        std::fs::write(&path, "short").unwrap();
        assert!(credential_keys(&given(None), Some(folder.path())).is_err());
    }

    #[test]
    fn a_key_is_64_hexadecimal_digits() {
        assert_eq!(hexadecimal(&"0f".repeat(32)), Some([15; 32]));
        for text in ["", "0f", &"0g".repeat(32), &"é".repeat(32), &"0f".repeat(33)] {
            assert_eq!(hexadecimal(text), None, "{text}");
        }
    }
}
