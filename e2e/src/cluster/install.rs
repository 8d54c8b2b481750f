//! Ash in the cluster, as a platform team installs it: Postgres, the model, the chart.

use std::{net::SocketAddr, process::Command, sync::Mutex, time::Instant};

use ash_test_postgres::Postgres;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::{Authority, Cluster, Endpoint, Release, journey, release, script, succeed};
use crate::{
    harness::MODEL_KEY,
    model::{Script, ScriptedModel},
};

/// The namespace of the control plane.
pub const SYSTEM_NAMESPACE: &str = "ash-system";
/// The Services in [`SYSTEM_NAMESPACE`] behind which this process is the model, and Postgres.
pub const MODEL_SERVICE: &str = "model";
const POSTGRES_SERVICE: &str = "postgres";
/// The Service of the API, and its port.
const API_SERVICE: (&str, u16) = ("ash", 80);
/// The Secret that the chart reads the database's address from.
const DATABASE_SECRET: &str = "ash-database";
/// The Secret with the keys; `install.sh` makes it.
const KEYS_SECRET: &str = "ash-keys";

/// The `ConfigMap` in [`SYSTEM_NAMESPACE`] with the authority of the tests, as `values.yaml` names it.
const AUTHORITIES: &str = "authorities";

/// An installed chart, with what it needs beside it. All in this process's hands: a test can read what the model was
/// asked, and take Postgres away.
#[derive(Debug)]
pub struct Installation {
    /// The model that every sandbox ends up at. It follows the directives in messages.
    pub model: ScriptedModel,
    /// The database. Stop and start it inside of [`Cluster::inside`]: it listens in the network of the thread that
    /// starts it.
    pub postgres: Mutex<Postgres>,
    /// The key with which clients call the API.
    pub api_key: SecretString,
    /// Who the installation trusts, beside the authorities of its images.
    pub authority: Authority,
    /// What `install.sh` hands to Helm.
    settings: Vec<String>,
}

impl Cluster {
    /// The installation of this program, made at the first use.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn installation(&self) -> &Installation {
        self.installed(|| self.install(None))
    }

    /// The same of an earlier release, on a cluster where nothing is installed.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn install_earlier(&self, release: &Release) -> &Installation {
        self.load_release(release);
        self.installed(|| self.install(Some(release)))
    }

    /// `helm upgrade` to the chart and the images of this tree, until every process is ready.
    ///
    /// # Panics
    /// When nothing is installed; when Helm fails.
    pub fn upgrade(&self) {
        self.helm_install(&self.installation().settings, None).expect("the upgrade");
    }

    /// The same, with more of the chart's values.
    ///
    /// # Panics
    /// When nothing is installed; when Helm fails.
    pub fn upgrade_with(&self, settings: &[String]) {
        let settings = [&self.installation().settings, settings].concat();
        self.helm_install(&settings, None).expect("the upgrade");
    }

    fn installed(&self, install: impl FnOnce() -> Result<Installation, String>) -> &Installation {
        let install = || {
            let begun = Instant::now();
            install().inspect(|_| journey::said("an installation", begun))
        };
        match self.installation.get_or_init(install) {
            Ok(installation) => installation,
            Err(error) => panic!("Ash is not installed: {error}"),
        }
    }

    fn install(&self, release: Option<&Release>) -> Result<Installation, String> {
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": SYSTEM_NAMESPACE } });
        self.apply(&namespace.to_string());
        let address = self.host_address();
        let password = SecretString::from(format!("{:032x}", fastrand::u128(..)));
        let (model, postgres) = self.inside(|| {
            let model = ScriptedModel::start_on(SocketAddr::new(address, 0), Script::directives());
            (model, Postgres::start_on(SocketAddr::new(address, 0), password.expose_secret()))
        });
        let model = model.map_err(|error| error.to_string())?;
        self.expose(SYSTEM_NAMESPACE, MODEL_SERVICE, model.address().port());
        let database = postgres.address().ok_or("Postgres listens nowhere")?;
        self.expose(SYSTEM_NAMESPACE, POSTGRES_SERVICE, database.port());
        let url = format!(
            "postgres://ash:{}@{POSTGRES_SERVICE}.{SYSTEM_NAMESPACE}.svc:{}/postgres",
            password.expose_secret(),
            database.port()
        );
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": DATABASE_SECRET, "namespace": SYSTEM_NAMESPACE },
            "stringData": { "url": url },
        });
        self.apply(&secret.to_string());
        let upstream = format!("http://{MODEL_SERVICE}.{SYSTEM_NAMESPACE}.svc:{}", model.address().port());
        let authority = Authority::new()?;
        let authorities = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": AUTHORITIES, "namespace": SYSTEM_NAMESPACE },
            "data": { "ca.crt": authority.text() },
        });
        self.apply(&authorities.to_string());
        // Git servers of the tests are where the model is.
        let egress = format!("networkPolicy.gitCloneEgress[0].to[0].ipBlock.cidr={address}/32");
        let settings = vec![format!("model.baseUrl={upstream}"), egress];
        // Once: every journey that needs it fails with the error.
        self.helm_install(&settings, release).inspect_err(|_| eprintln!("{}", self.dump(SYSTEM_NAMESPACE)))?;
        let path = "go-template={{index .data \"api-key\" | base64decode}}";
        let api_key = self.done(&["get", "secret", KEYS_SECRET, "-n", SYSTEM_NAMESPACE, "-o", path]);
        let (postgres, api_key) = (Mutex::new(postgres), SecretString::from(api_key));
        Ok(Installation { model, postgres, api_key, authority, settings })
    }

    /// Installs or upgrades to an earlier release, or to this tree.
    fn helm_install(&self, settings: &[String], release: Option<&Release>) -> Result<(), String> {
        let mut install = self.command(script("install.sh"));
        // Tests of the definitions may have applied them before.
        install.arg(SYSTEM_NAMESPACE).args(["--take-ownership", "--values"]).arg(script("values.yaml"));
        install.env("ANTHROPIC_API_KEY", MODEL_KEY);
        for setting in settings {
            install.args(["--set", setting]);
        }
        // Where something is measured (then writes are audited), no more is logged than people log.
        if self.audit_log().is_some_and(|log| log.exists()) {
            install.args(["--set", "log.filter=info"]);
        }
        if release.is_none() {
            // People reach the API with nothing but a kubeconfig. Not in values.yaml, which an earlier chart takes too.
            install.args(["--set", "portForwardRole=true"]);
        }
        if let Some(release) = release {
            let images = format!("image.controlPlane.tag={0},image.sandbox.tag={0}", release::TAG);
            install.args(["--set", &images]).env("ASH_CHART", &release.chart);
        }
        succeed(&mut install)
    }

    /// Where a test reaches the API, from inside of [`Cluster::run`].
    ///
    /// # Panics
    /// When Ash is not installed.
    pub fn api(&self) -> Endpoint {
        self.endpoint(SYSTEM_NAMESPACE, API_SERVICE.0, API_SERVICE.1)
    }

    /// `helm`, in the cluster's network.
    pub fn helm(&self) -> Command {
        self.command("helm")
    }
}
