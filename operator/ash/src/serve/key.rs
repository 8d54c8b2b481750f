//! The key that signs the sandboxes' tokens: made once, kept in the data directory, so that tokens outlive a restart.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::Context;
use ash_gateway::{KEY_LENGTH, TokenSigner};
use secrecy::SecretBox;

/// The key's file, readable by its owner only.
const FILE: &str = "gateway.key";

/// The signer with the data directory's key, which is made where there is none.
pub(super) fn token_signer(data: &Path) -> anyhow::Result<TokenSigner> {
    let path = data.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(&path)?,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let key: [u8; KEY_LENGTH] = bytes.try_into().ok().with_context(|| {
        format!("{} is damaged: remove it and start again (sandboxes that run are started anew)", path.display())
    })?;
    Ok(TokenSigner::new(SecretBox::new(Box::new(key))))
}

fn make(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut key = vec![0; KEY_LENGTH];
    getrandom::fill(&mut key).map_err(|error| anyhow::anyhow!("the system has no random numbers: {error}"))?;
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
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
    use super::hexadecimal;

    #[test]
    fn a_key_is_64_hexadecimal_digits() {
        assert_eq!(hexadecimal(&"0f".repeat(32)), Some([15; 32]));
        for text in ["", "0f", &"0g".repeat(32), &"é".repeat(32), &"0f".repeat(33)] {
            assert_eq!(hexadecimal(text), None, "{text}");
        }
    }
}
