use reqwest::{RequestBuilder, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::OnceCell;
use url::Url;

use super::path::{StorePath, StorePattern};
use super::trouble::Trouble;
use super::{FileBytes, Found};
use crate::config::Secret;
use crate::net::{Answer, Client, exchange};

const PAGE: usize = 100;
/// Names that a pattern may have to look through.
const LISTED: usize = 1000;
const LARGEST_LIST: u64 = 1024 * 1024;

/// Supabase Storage by REST.
pub(super) struct Supabase {
    client: Client,
    /// `…/storage/v1`
    base: Url,
    key: Secret,
    buckets: Vec<String>,
    /// The first of `buckets` that exists, once that is known.
    bucket: OnceCell<String>,
}

impl Supabase {
    pub(super) fn new(client: Client, url: &Url, key: &Secret, buckets: &[String]) -> Result<Self, String> {
        let mut base = url.clone();
        base.path_segments_mut().map_err(|()| "its url is no address")?.pop_if_empty().extend(["storage", "v1"]);
        if buckets.is_empty() {
            return Err("it names no bucket".to_owned());
        }
        // A single bucket is taken at its word; reading says if it is not there.
        let only = (buckets.len() == 1).then(|| buckets[0].clone());
        let (key, buckets) = (key.clone(), buckets.to_vec());
        Ok(Self { client, base, key, buckets, bucket: OnceCell::new_with(only) })
    }

    pub(super) async fn read(&self, path: &StorePath, limit: u64) -> Result<FileBytes, Trouble> {
        let bucket = self.bucket().await?;
        let address = self.address(["object", "authenticated", bucket].into_iter().chain(path.segments()));
        let answer = self.ask(self.client.get(address), limit).await?;
        let media_type = answer.header("content-type").map(str::to_owned);
        Ok(FileBytes::new(answer.body, media_type.as_deref()))
    }

    pub(super) async fn list(&self, pattern: &StorePattern) -> Result<Vec<Found>, Trouble> {
        let bucket = self.bucket().await?;
        let address = self.address(["object", "list", bucket]);
        let mut found = Vec::new();
        for offset in (0..LISTED).step_by(PAGE) {
            let query = ListQuery {
                prefix: pattern.folder(),
                search: pattern.before(),
                limit: PAGE,
                offset,
                sort_by: SortBy { column: "name", order: "asc" },
            };
            let answer = self.ask(self.client.post(address.clone()).json(&query), LARGEST_LIST).await?;
            let page: Vec<ListedFile> = serde_json::from_slice(&answer.body.bytes)
                .map_err(|_| Trouble::Unavailable("its list cannot be read".to_owned()))?;
            let last = page.len() < PAGE;
            found.extend(page.into_iter().filter_map(|file| file.fits(pattern)));
            if last {
                return Ok(found);
            }
        }
        Err(Trouble::Misconfigured(format!("more than {LISTED} names start like {pattern}")))
    }

    pub(super) async fn probe(&self) -> Result<String, Trouble> {
        let bucket = self.bucket().await?;
        if self.exists(bucket).await? {
            Ok(format!("bucket {bucket}"))
        } else {
            Err(Trouble::Misconfigured(format!("bucket {bucket} is not there")))
        }
    }

    async fn bucket(&self) -> Result<&str, Trouble> {
        let first = async || {
            for bucket in &self.buckets {
                if self.exists(bucket).await? {
                    return Ok(bucket.clone());
                }
            }
            Err(Trouble::Misconfigured(format!("none of its buckets is there: {}", self.buckets.join(", "))))
        };
        self.bucket.get_or_try_init(first).await.map(String::as_str)
    }

    async fn exists(&self, bucket: &str) -> Result<bool, Trouble> {
        let answer = self.send(self.client.get(self.address(["bucket", bucket])), LARGEST_LIST).await?;
        if answer.status.is_success() {
            return Ok(true);
        }
        match Truth::of(&answer) {
            Some(truth) if truth.is_bucket() || truth.status == StatusCode::NOT_FOUND => Ok(false),
            _ => Err(trouble(&answer)),
        }
    }

    async fn ask(&self, request: RequestBuilder, limit: u64) -> Result<Answer, Trouble> {
        let answer = self.send(request, limit).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(trouble(&answer)) }
    }

    /// Both headers carry the key: the gateway reads `apikey`, and takes a key that is no JWT as bearer only if they agree.
    async fn send(&self, request: RequestBuilder, limit: u64) -> Result<Answer, Trouble> {
        let request = request.bearer_auth(self.key.expose()).header("apikey", self.key.expose());
        Ok(exchange(request, limit).await?)
    }

    /// An address below the base, each segment encoded.
    fn address<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut address = self.base.clone();
        address.path_segments_mut().expect("the base was taken apart before").extend(segments);
        address
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListQuery<'a> {
    prefix: &'a str,
    search: &'a str,
    limit: usize,
    offset: usize,
    sort_by: SortBy,
}

#[derive(Serialize)]
struct SortBy {
    column: &'static str,
    order: &'static str,
}

#[derive(Deserialize)]
struct ListedFile {
    name: String,
    /// Folders have none.
    id: Option<String>,
    updated_at: Option<String>,
    created_at: Option<String>,
}

impl ListedFile {
    fn fits(&self, pattern: &StorePattern) -> Option<Found> {
        self.id.as_ref()?;
        let time = self.updated_at.as_ref().or(self.created_at.as_ref());
        let time = time.and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok());
        let modified = time.map_or(0, OffsetDateTime::unix_timestamp_nanos);
        Some(Found { path: pattern.path_of(&self.name)?, modified })
    }
}

/// What an error's body says, which is often another thing than its status: HTTP 400, and `"statusCode": "404"` inside.
#[derive(Debug)]
struct Truth {
    status: StatusCode,
    code: String,
    message: String,
}

impl Truth {
    fn of(answer: &Answer) -> Option<Self> {
        let body: Value = serde_json::from_slice(&answer.body.bytes).ok()?;
        let word = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let inside = match body.get("statusCode")? {
            Value::String(status) => status.parse().ok(),
            status => status.as_u64().and_then(|status| u16::try_from(status).ok()),
        };
        let status = inside.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(answer.status);
        let code = [word("code"), word("error")].into_iter().find(|code| !code.is_empty()).unwrap_or_default();
        Some(Self { status, code, message: word("message").to_lowercase() })
    }

    fn is_bucket(&self) -> bool {
        self.code == "NoSuchBucket" || self.message == "bucket not found"
    }

    /// A credential that is broken and one that may not see this row's file are both called unauthorized.
    fn is_credential(&self) -> bool {
        let spoken = ["jwt", "jws", "signature", "claim", "api key"].iter().any(|word| self.message.contains(word));
        self.code == "InvalidJWT"
            || self.status == StatusCode::UNAUTHORIZED
            || self.status == StatusCode::FORBIDDEN && spoken
    }
}

fn trouble(answer: &Answer) -> Trouble {
    let Some(truth) = Truth::of(answer) else {
        return match Trouble::of_status(answer.status) {
            // A storage that is there says so in JSON.
            Trouble::Missing => Trouble::Misconfigured("no Supabase Storage answers at its url".to_owned()),
            trouble => trouble,
        };
    };
    if truth.is_bucket() {
        return Trouble::Misconfigured("its bucket is not there".to_owned());
    }
    if truth.is_credential() {
        return Trouble::Misconfigured("it refuses the key".to_owned());
    }
    match truth.code.as_str() {
        "NoSuchKey" => Trouble::Missing,
        "InvalidKey" => Trouble::Never("no object of Supabase has such a name".to_owned()),
        "TenantNotFound" => Trouble::Misconfigured("there is no such project".to_owned()),
        code @ ("SlowDown" | "DatabaseTimeout" | "LockTimeout" | "ResourceLocked" | "InternalError"
        | "DatabaseError") => Trouble::Unavailable(format!("it answers {code}")),
        _ => Trouble::of_status(truth.status),
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderMap;

    use super::*;
    use crate::net::Body;

    fn check(status: u16, body: &str) -> Trouble {
        let body = Body { bytes: body.to_owned().into(), sha256: [0; 32] };
        let status = StatusCode::from_u16(status).expect("a status");
        trouble(&Answer { status, headers: HeaderMap::new(), body })
    }

    #[test]
    fn the_truth_is_inside() {
        let missing = Trouble::Missing;
        let key = Trouble::Misconfigured("it refuses the key".to_owned());
        let bucket = Trouble::Misconfigured("its bucket is not there".to_owned());
        let busy = |what: &str| Trouble::Unavailable(format!("it answers {what}"));
        for (expected, status, body) in [
            (&missing, 400, r#"{"statusCode":"404","error":"not_found","message":"Object not found"}"#),
            (
                &missing,
                400,
                r#"{"statusCode":"404","code":"NoSuchKey","error":"NoSuchKey","message":"Object not found"}"#,
            ),
            (&missing, 404, r#"{"statusCode":404,"error":"not_found","message":"The resource was not found"}"#),
            (&bucket, 400, r#"{"statusCode":"404","error":"Bucket not found","message":"Bucket not found"}"#),
            (&bucket, 400, r#"{"statusCode":"404","code":"NoSuchBucket","message":"Bucket not found"}"#),
            (&key, 400, r#"{"statusCode":"403","error":"Unauthorized","message":"Invalid Compact JWS"}"#),
            (&key, 400, r#"{"statusCode":"403","error":"Unauthorized","message":"jwt expired"}"#),
            (&key, 400, r#"{"statusCode":"400","code":"InvalidJWT","message":"bad"}"#),
            (&key, 400, r#"{"statusCode":"401","error":"Unauthorized","message":"no"}"#),
            (&busy("429"), 400, r#"{"statusCode":"429","error":"too_many","message":"slow down"}"#),
            (&busy("SlowDown"), 503, r#"{"statusCode":"503","code":"SlowDown","message":""}"#),
            (&busy("DatabaseTimeout"), 544, r#"{"statusCode":"544","code":"DatabaseTimeout","message":""}"#),
            (&busy("500"), 400, r#"{"statusCode":"500","error":"Internal","message":""}"#),
            (&busy("502"), 502, "<html>bad gateway</html>"),
            (&busy("540"), 540, ""),
        ] {
            assert_eq!(&check(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn what_only_a_person_can_change_is_told_apart() {
        let denied =
            r#"{"statusCode":"403","error":"Unauthorized","message":"new row violates row-level security policy"}"#;
        assert_eq!(check(400, denied), Trouble::Denied("the store answers 403".to_owned()));
        let elsewhere = Trouble::Misconfigured("no Supabase Storage answers at its url".to_owned());
        assert_eq!(check(404, "<html>nothing here</html>"), elsewhere);
        assert_eq!(
            check(401, r#"{"message":"Invalid API key"}"#),
            Trouble::Misconfigured("it refuses the credential".to_owned())
        );
        assert_eq!(
            check(400, r#"{"statusCode":"400","code":"InvalidMimeType"}"#),
            Trouble::Misconfigured("it answers 400".to_owned())
        );
    }
}
