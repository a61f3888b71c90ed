//! One client per store: parses a URL and hands out a [`Location`] on the shared client.

use super::credentials::Cloud;
use super::location::Location;
use super::metered::{MeteredStore, Traffic};
use super::server_copy::{ServerCopy, SharedConnector};
use crate::error::{Error, Result};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use url::Url;

/// How often a failed request is tried again. Eight tries with a doubling pause outlast a throttled or restarting store; the
/// time limit keeps a wrong endpoint from stalling a nightly run for longer than a minute.
const DEFAULT_RETRIES: usize = 8;
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

/// The stores whose server copies parts of objects by itself, and how it is asked.
type ServerCopies = Vec<(Arc<dyn ObjectStore>, Arc<ServerCopy>)>;

/// The object stores of one process. A clone has the same clients and counts the same bytes.
#[derive(Debug, Clone)]
pub struct Stores {
    clients: Arc<Mutex<HashMap<String, Arc<dyn ObjectStore>>>>,
    server_copies: Arc<Mutex<ServerCopies>>,
    traffic: Arc<Traffic>,
    base: PathBuf,
}

impl Stores {
    /// Stores whose relative paths are taken from the directory `base` (the job file's own).
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self { clients: Arc::default(), server_copies: Arc::default(), traffic: Arc::default(), base: base.into() }
    }

    /// What was read, sent, copied and asked so far, over all stores.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Opens a URL or a local path; nothing is requested yet.
    ///
    /// # Errors
    /// An unknown scheme, a malformed URL, or a cloud URL without credentials in the environment.
    pub fn open(&self, text: &str) -> Result<Location> {
        let invalid = |reason: String| Error::Location { location: without_user(text), reason };
        if !text.contains("://") {
            return self.local(text, &self.base.join(text));
        }
        let url = Url::parse(text).map_err(|e| invalid(format!("not a URL: {e}")))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            let mut shown = url.clone();
            let _ = shown.set_password(None);
            let _ = shown.set_username("");
            shown.set_query(None);
            return Err(Error::Location {
                location: shown.to_string(),
                reason: "keep credentials and signatures out of URLs: set them in the environment".into(),
            });
        }
        let supported = "supported are local paths, file://, s3://, gs://, az:// and http(s)://";
        let (scheme, path) = ObjectStoreScheme::parse(&url).map_err(|e| invalid(format!("{e}; {supported}")))?;
        let mut key = format!("{}://{}", url.scheme(), url.authority());
        if url.scheme().starts_with("http") && scheme != ObjectStoreScheme::Http {
            // The bucket or container of a cloud's own https address may be the first part of the path.
            key = format!("{key}/{}", url.path_segments().and_then(|mut parts| parts.next()).unwrap_or_default());
        }
        let environment = |name: &str| std::env::var(name).ok();
        let store: Arc<dyn ObjectStore> = match scheme {
            ObjectStoreScheme::Local => {
                let path = url.to_file_path().map_err(|()| invalid("not a local path".into()))?;
                return self.local(text, &path);
            }
            ObjectStoreScheme::AmazonS3 => {
                let mut server_copy = None;
                let store = self.client(&key, || {
                    Cloud::Aws.require(text, environment)?;
                    let connector = SharedConnector::default();
                    let mut builder = AmazonS3Builder::from_env().with_url(&key).with_retry(retry()).with_http_connector(connector.clone());
                    if std::env::var("AWS_REGION").or_else(|_| std::env::var("AWS_DEFAULT_REGION")).is_err() {
                        builder = builder.with_region("us-east-1");
                    }
                    let region = builder.get_config_value(&AmazonS3ConfigKey::Region);
                    let s3 = Arc::new(builder.build().map_err(|e| invalid(e.to_string()))?);
                    // In an https address of the service the bucket has no one place, and an unsigned client cannot sign a copy.
                    let bucket =
                        url.host_str().filter(|_| matches!(url.scheme(), "s3" | "s3a") && environment("AWS_SKIP_SIGNATURE").is_none());
                    if let (Some(bucket), Some(region), Some(http)) = (bucket, region, connector.client()) {
                        let (s3, bucket, traffic) = (Arc::clone(&s3), bucket.to_owned(), Arc::clone(&self.traffic));
                        server_copy = Some(ServerCopy { s3, http, bucket, region, traffic });
                    }
                    Ok(s3)
                })?;
                if let Some(server_copy) = server_copy {
                    let mut known = self.server_copies.lock().unwrap_or_else(PoisonError::into_inner);
                    known.push((Arc::clone(&store), Arc::new(server_copy)));
                }
                store
            }
            ObjectStoreScheme::GoogleCloudStorage => self.client(&key, || {
                Cloud::Google.require(text, environment)?;
                let builder = GoogleCloudStorageBuilder::from_env().with_url(&key).with_retry(retry());
                Ok(Arc::new(builder.build().map_err(|e| invalid(e.to_string()))?))
            })?,
            ObjectStoreScheme::MicrosoftAzure => self.client(&key, || {
                Cloud::Azure.require(text, environment)?;
                let builder = MicrosoftAzureBuilder::from_env().with_url(text).with_retry(retry());
                Ok(Arc::new(builder.build().map_err(|e| invalid(e.to_string()))?))
            })?,
            ObjectStoreScheme::Http => self.client(&key, || {
                let options = ClientOptions::new().with_allow_http(true);
                let builder = HttpBuilder::new().with_url(&key).with_client_options(options).with_retry(retry());
                Ok(Arc::new(builder.build().map_err(|e| invalid(e.to_string()))?))
            })?,
            _ => return Err(invalid(supported.into())),
        };
        Ok(Location::new(store, path, text.to_owned()))
    }

    /// What copies between two places on the server, where they are in one bucket that can.
    pub(super) fn server_copy(&self, from: &Location, to: &Location) -> Option<Arc<ServerCopy>> {
        let known = self.server_copies.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(store, _)| Arc::ptr_eq(store, from.store()) && Arc::ptr_eq(store, to.store())).map(|(_, copy)| Arc::clone(copy))
    }

    fn local(&self, text: &str, path: &std::path::Path) -> Result<Location> {
        let invalid = |reason: String| Error::Location { location: text.to_owned(), reason };
        let absolute = std::path::absolute(path).map_err(|e| invalid(e.to_string()))?;
        let path = lexically_normal(&absolute);
        let store = self.client("file://", || Ok(Arc::new(LocalFileSystem::new())))?;
        let path = Path::parse(path.to_string_lossy().trim_matches('/')).map_err(|e| invalid(e.to_string()))?;
        Ok(Location::new(store, path, text.to_owned()))
    }

    fn client(&self, key: &str, build: impl FnOnce() -> Result<Arc<dyn ObjectStore>>) -> Result<Arc<dyn ObjectStore>> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = clients.get(key) {
            return Ok(Arc::clone(store));
        }
        let store: Arc<dyn ObjectStore> = Arc::new(MeteredStore { inner: build()?, traffic: Arc::clone(&self.traffic) });
        clients.insert(key.to_owned(), Arc::clone(&store));
        Ok(store)
    }
}

/// The text without what stands before an `@` in the host part: it may be a secret.
fn without_user(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let host_end = rest.find('/').unwrap_or(rest.len());
    match rest[..host_end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => text.to_owned(),
    }
}

fn retry() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: DEFAULT_RETRIES, retry_timeout: RETRY_TIMEOUT }
}

/// Resolves `.` and `..` without touching the disk: the path may not exist yet.
fn lexically_normal(path: &std::path::Path) -> PathBuf {
    use std::path::Component;
    path.components().fold(PathBuf::new(), |mut normal, part| {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            other => normal.push(other),
        }
        normal
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_start_at_the_job_file() {
        let stores = Stores::new("/lake/jobs");
        assert_eq!(stores.open("../refs/./safe.parquet").unwrap().path().as_ref(), "lake/refs/safe.parquet");
        assert_eq!(stores.open("file:///lake/x/").unwrap().path().as_ref(), "lake/x");
        assert!(stores.open("ftp://host/x").is_err());
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_repeated() {
        for url in ["https://me:hunter2@host/x", "https://hunter2@host/x", "https://me:hunter2@host:x/", "https://host/x?sig=hunter2"] {
            let error = Stores::new(".").open(url).unwrap_err().to_string();
            assert!(!error.contains("hunter2") && error.contains("host"), "{error}");
        }
    }
}
