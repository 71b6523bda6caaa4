use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{Attribute, BackoffConfig, Error, GetOptions, ObjectStore, RetryConfig};
use reqwest::StatusCode;
use url::Url;

use super::path::{StorePath, StorePattern};
use super::trouble::Trouble;
use super::{FileBytes, Found};
#[cfg(any(feature = "gcs", feature = "azure"))]
use crate::config::Secret;
use crate::config::StoreKind;
use crate::net::{Client, GatherError, StoreConnector, gather};

/// Names that a pattern may have to look through.
const LISTED: usize = 1000;
const PROBE: &str = "gristmill-probe";

/// S3, Google and Azure, by way of `object_store`.
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// For `check`: what was opened.
    name: String,
}

pub(super) fn s3(client: Client, kind: &StoreKind) -> Result<Objects, String> {
    let StoreKind::S3 { bucket, region, endpoint, key_id, secret, path_style } = kind else {
        return Err("it is not an S3 store".to_owned());
    };
    let mut builder = match (key_id, secret) {
        (Some(key_id), Some(secret)) => {
            AmazonS3Builder::new().with_access_key_id(key_id.expose()).with_secret_access_key(secret.expose())
        }
        // Keys, roles and container credentials as Amazon's own tools find them, the machine's own role at last.
        (None, None) => AmazonS3Builder::from_env(),
        _ => return Err("key_id and secret go together".to_owned()),
    };
    if let Some(endpoint) = endpoint {
        let address = if *path_style { Ok(endpoint.clone()) } else { with_bucket(endpoint, bucket) }?;
        builder = builder.with_endpoint(address.as_str().trim_end_matches('/'));
    }
    let store = builder
        .with_bucket_name(bucket)
        .with_region(region)
        .with_virtual_hosted_style_request(!path_style)
        .with_retry(retry())
        .with_http_connector(StoreConnector::new(client))
        .build()
        .map_err(unbuilt)?;
    Ok(Objects { store: Arc::new(store), name: format!("bucket {bucket}") })
}

#[cfg(feature = "gcs")]
pub(super) fn gcs(client: Client, bucket: &str, credentials: Option<&Secret>) -> Result<Objects, String> {
    use object_store::gcp::GoogleCloudStorageBuilder;
    let builder = match credentials {
        Some(credentials) => GoogleCloudStorageBuilder::new().with_service_account_key(credentials.expose()),
        None => GoogleCloudStorageBuilder::from_env(),
    };
    let builder = builder.with_bucket_name(bucket).with_retry(retry());
    let store = builder.with_http_connector(StoreConnector::new(client)).build().map_err(unbuilt)?;
    Ok(Objects { store: Arc::new(store), name: format!("bucket {bucket}") })
}

#[cfg(feature = "azure")]
pub(super) fn azure(client: Client, account: &str, container: &str, key: Option<&Secret>) -> Result<Objects, String> {
    use object_store::azure::MicrosoftAzureBuilder;
    let builder = match key {
        Some(key) => MicrosoftAzureBuilder::new().with_access_key(key.expose()),
        None => MicrosoftAzureBuilder::from_env(),
    };
    let builder = builder.with_account(account).with_container_name(container).with_retry(retry());
    let store = builder.with_http_connector(StoreConnector::new(client)).build().map_err(unbuilt)?;
    Ok(Objects { store: Arc::new(store), name: format!("container {container}") })
}

/// One cheap retry of a dropped connection; the durable ones are the job's.
fn retry() -> RetryConfig {
    let pause = Duration::from_millis(100);
    RetryConfig {
        backoff: BackoffConfig { init_backoff: pause, max_backoff: pause, base: 2. },
        max_retries: 1,
        retry_timeout: Duration::from_mins(1),
    }
}

/// The address of a bucket that has a name of its own below the endpoint's.
fn with_bucket(endpoint: &Url, bucket: &str) -> Result<Url, String> {
    let mut address = endpoint.clone();
    let host = endpoint.domain().map(|host| format!("{bucket}.{host}"));
    if host.is_some() && address.set_host(host.as_deref()).is_ok() {
        Ok(address)
    } else {
        Err("its endpoint has no name to put the bucket before; set path_style = true".to_owned())
    }
}

/// A builder's error may show what it was given, so only what kind it is gets out.
fn unbuilt(error: Error) -> String {
    match error {
        Error::Generic { source, .. } if source.to_string().to_lowercase().contains("key") => {
            "its credential cannot be read".to_owned()
        }
        Error::Generic { .. } => "its bucket, region, endpoint or credential cannot be used".to_owned(),
        _ => "this build cannot speak to it".to_owned(),
    }
}

impl Objects {
    pub(super) async fn read(&self, path: &StorePath, limit: u64) -> Result<FileBytes, Trouble> {
        let location =
            Path::parse(path.as_str()).map_err(|_| Trouble::Never("no object has such a name".to_owned()))?;
        let result = self.store.get_opts(&location, GetOptions::default()).await.map_err(|error| of_store(&error))?;
        let media_type = result.attributes.get(&Attribute::ContentType).map(|value| value.as_ref().to_owned());
        let expected = result.meta.size;
        let body = gather(result.into_stream(), Some(expected), limit).await.map_err(|error| match error {
            GatherError::TooLarge => Trouble::TooLarge,
            GatherError::Short { expected, received } => {
                Trouble::Unavailable(format!("{received} of {expected} bytes came"))
            }
            GatherError::Stream(error) => of_store(&error),
        })?;
        Ok(FileBytes::new(body, media_type.as_deref()))
    }

    pub(super) async fn list(&self, pattern: &StorePattern) -> Result<Vec<Found>, Trouble> {
        let folder = Path::parse(pattern.folder()).map_err(|_| Trouble::Missing)?;
        let start = match folder.as_ref() {
            "" => pattern.before().to_owned(),
            folder => format!("{folder}/{}", pattern.before()),
        };
        // Keys come in order, so what starts like the pattern is one stretch, and listing begins at it (or, where that is no
        // path, at the folder).
        let offset = Path::parse(start.trim_end_matches('/')).unwrap_or_else(|_| folder.clone());
        let mut keys = self.store.list_with_offset(Some(&folder), &offset);

        let mut found = Vec::new();
        for _ in 0..LISTED {
            let Some(key) = keys.next().await else { return Ok(found) };
            let key = key.map_err(|error| of_store(&error))?;
            match key.location.as_ref().strip_prefix(&start) {
                Some(rest) => {
                    let path = pattern.path_of(&format!("{}{rest}", pattern.before()));
                    let modified = key.last_modified.timestamp_micros().into();
                    found.extend(path.map(|path| Found { path, modified }));
                }
                None if key.location.as_ref() < start.as_str() => {}
                None => return Ok(found),
            }
        }
        Err(Trouble::Misconfigured(format!("more than {LISTED} names start like {pattern}")))
    }

    pub(super) async fn probe(&self) -> Result<String, Trouble> {
        match self.store.get_opts(&Path::from(PROBE), GetOptions::default()).await.map_err(|error| of_store(&error)) {
            Ok(_) | Err(Trouble::Missing) => Ok(self.name.clone()),
            Err(trouble) => Err(trouble),
        }
    }
}

/// Sorts the store's errors. Their own text may hold addresses, keys' names and signatures, so only status and code get out.
fn of_store(error: &Error) -> Trouble {
    let code = code(error);
    match (error, code.as_deref()) {
        (_, Some("NoSuchBucket" | "ContainerNotFound")) => Trouble::Misconfigured("its bucket is not there".to_owned()),
        (
            _,
            Some(
                code @ ("InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "InvalidToken"
                | "ExpiredToken"
                | "AuthenticationFailed"
                | "RequestTimeTooSkewed"),
            ),
        ) => Trouble::Misconfigured(format!("it refuses the credential: {code}")),
        (_, Some("PermanentRedirect" | "AuthorizationHeaderMalformed")) => {
            Trouble::Misconfigured("its bucket is in another region".to_owned())
        }
        (Error::NotFound { .. }, _) => Trouble::Missing,
        (Error::PermissionDenied { .. }, _) => Trouble::Denied(
            "the store answers 403; where its list may not be read, a file that is missing looks the same".to_owned(),
        ),
        (Error::Unauthenticated { .. }, _) => Trouble::Misconfigured("it refuses the credential".to_owned()),
        _ => status(error).map_or_else(|| unanswered(error), Trouble::of_status),
    }
}

fn unanswered(error: &Error) -> Trouble {
    let text = error.to_string();
    if text.contains("redirect without LOCATION") {
        return Trouble::Misconfigured("its bucket is in another region".to_owned());
    }
    let mut bottom: &dyn std::error::Error = error;
    while let Some(source) = bottom.source() {
        bottom = source;
    }
    Trouble::Unavailable(format!("the connection failed: {bottom}"))
}

/// The store's own word for an error, out of the body that `object_store` keeps in the error's text.
fn code(error: &Error) -> Option<String> {
    let text = error.source()?.to_string();
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let plain = code.len() <= 64 && code.chars().all(|letter| letter.is_ascii_alphanumeric());
    plain.then(|| code.to_owned())
}

fn status(error: &Error) -> Option<StatusCode> {
    let text = error.to_string();
    let (_, rest) = text.split_once("non-2xx status code: ").or_else(|| text.split_once("error response: "))?;
    StatusCode::from_bytes(rest.get(..3)?.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_with_a_name_of_its_own_stands_before_the_endpoint() {
        let check = |endpoint: &str| with_bucket(&endpoint.parse().expect("an address"), "docs").map(String::from);
        assert_eq!(check("https://s3.example.org:9000").as_deref(), Ok("https://docs.s3.example.org:9000/"));
        assert!(check("http://127.0.0.1:9000").is_err());
    }
}
