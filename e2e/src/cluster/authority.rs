//! A certificate authority of the tests, which the installation trusts: what they serve with TLS has its certificates.

use std::{fs, path::PathBuf, process::Command};

use tempfile::TempDir;

use super::succeed;

/// The beginning of each `openssl req`: a new key of P-256, with no password.
const NEW_KEY: [&str; 6] = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// An authority whose certificates last a day.
#[derive(Debug)]
pub struct Authority {
    folder: TempDir,
}

/// A certificate with its key, as PEM in files that live as long as the authority.
#[derive(Debug)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one with `openssl`.
    ///
    /// # Errors
    /// What it said.
    pub fn new() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut make = Command::new("openssl");
        make.current_dir(folder.path()).args(NEW_KEY);
        succeed(make.args([
            "-x509",
            "-days",
            "1",
            "-subj",
            "/CN=Tests of Ash",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
        ]))?;
        Ok(Self { folder })
    }

    /// Its own certificate, as PEM.
    ///
    /// # Panics
    /// When the file is gone.
    pub fn text(&self) -> String {
        fs::read_to_string(self.folder.path().join("ca.crt")).expect("the authority's certificate")
    }

    /// A certificate for a name of DNS.
    ///
    /// # Panics
    /// When openssl refuses.
    pub fn certificate(&self, name: &str) -> Certificate {
        let path = |ending: &str| self.folder.path().join(format!("{name}.{ending}"));
        let files = ["key", "csr", "crt", "ext"].map(path);
        let [key, request, certificate, extensions] = &files;
        fs::write(extensions, format!("subjectAltName=DNS:{name}\nbasicConstraints=CA:FALSE\n")).expect("a file");
        let mut ask = Command::new("openssl");
        ask.args(NEW_KEY).args(["-subj", "/CN=server", "-keyout"]).arg(key).arg("-out").arg(request);
        succeed(&mut ask).expect("a request for a certificate");
        let mut sign = Command::new("openssl");
        sign.current_dir(self.folder.path()).args(["x509", "-req", "-days", "1", "-CA", "ca.crt", "-CAkey", "ca.key"]);
        sign.arg("-in").arg(request).arg("-out").arg(certificate).arg("-extfile").arg(extensions);
        succeed(&mut sign).expect("a certificate");
        Certificate { certificate: certificate.clone(), key: key.clone() }
    }
}
