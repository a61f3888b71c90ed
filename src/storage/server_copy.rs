//! Copies between objects of one S3 bucket that the server makes: the request `UploadPartCopy`, which `object_store` does not offer,
//! built from its own HTTP client, credentials and signature.

use super::metered::Traffic;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{ClientOptions, HttpClient, HttpConnector, HttpErrorKind, HttpRequest, HttpRequestBody, ReqwestConnector};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{ObjectMeta, PutPayload, Result};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Every part of an upload but the last must have this many bytes.
pub(super) const SMALLEST_PART: u64 = 5 << 20;
/// Bytes of a copied part: far below the service's 5 GiB, so that the parts of one object are copied side by side.
const PART: u64 = 128 << 20;
/// The service takes 10,000 parts; one is the tail.
const MOST_COPIED_PARTS: u64 = 9_999;
/// Parts of one object copied at a time.
const PARTS_AT_ONCE: usize = 4;
/// How often a copy is asked for, with a pause that doubles from the first one.
const TRIES: u32 = 7;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A signed address is only used for its path.
const UNUSED: Duration = Duration::from_secs(1);

/// Hands a client's own HTTP client out, so that our requests share its connections, proxy and time limits.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedConnector {
    last: Arc<Mutex<Option<HttpClient>>>,
}

impl SharedConnector {
    /// The client that was connected last, which is the one for the bucket: credentials connect before.
    pub(super) fn client(&self) -> Option<HttpClient> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl HttpConnector for SharedConnector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client)
    }
}

/// Composes objects of one bucket from parts of others.
pub(super) struct ServerCopy {
    pub(super) s3: Arc<AmazonS3>,
    pub(super) http: HttpClient,
    pub(super) bucket: String,
    pub(super) region: String,
    pub(super) traffic: Arc<Traffic>,
}

// By hand: a client holds credentials.
impl fmt::Debug for ServerCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCopy").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl ServerCopy {
    /// Makes `to` of the first `keep` bytes of `from` (at least [`SMALLEST_PART`]), which must still be the listed version, and of
    /// `tail`. The object appears whole or not at all; on an error the upload is aborted.
    pub(super) async fn compose(&self, from: &ObjectMeta, keep: u64, tail: PutPayload, to: &Path) -> Result<()> {
        self.traffic.request();
        let upload = self.s3.create_multipart(to).await?;
        let composed = self.compose_parts(from, keep, tail, to, &upload).await;
        if composed.is_err() {
            self.traffic.request();
            if let Err(error) = self.s3.abort_multipart(to, &upload).await {
                tracing::debug!(%to, %error, "an abandoned upload was not cleaned up");
            }
        }
        composed
    }

    async fn compose_parts(&self, from: &ObjectMeta, keep: u64, tail: PutPayload, to: &Path, upload: &String) -> Result<()> {
        let ranges = parts(keep);
        let last = ranges.len();
        let copies = ranges.into_iter().enumerate().map(|(index, range)| self.copy_part(from, range, to, upload, index));
        let mut parts: Vec<PartId> = stream::iter(copies).buffered(PARTS_AT_ONCE).try_collect().await?;
        self.traffic.request();
        self.traffic.written(tail.content_length() as u64);
        parts.push(self.s3.put_part(to, upload, last, tail).await?);
        self.traffic.request();
        self.s3.complete_multipart(to, upload, parts).await?;
        Ok(())
    }

    async fn copy_part(&self, from: &ObjectMeta, range: Range<u64>, to: &Path, upload: &str, index: usize) -> Result<PartId> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            self.traffic.request();
            match self.try_copy_part(from, &range, to, upload, index).await {
                Ok(part) => {
                    self.traffic.copied(range.end - range.start);
                    return Ok(part);
                }
                Err(Failure::Passing(reason)) if attempt < TRIES => {
                    tracing::debug!(%to, attempt, reason, "a copy by the server failed; trying again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(Failure::Passing(reason)) => return Err(generic(format!("{reason} ({TRIES} tries)"))),
                Err(Failure::Lasting(error)) => return Err(error),
            }
        }
        Err(generic("no try left".to_owned()))
    }

    async fn try_copy_part(
        &self,
        from: &ObjectMeta,
        range: &Range<u64>,
        to: &Path,
        upload: &str,
        index: usize,
    ) -> std::result::Result<PartId, Failure> {
        let malformed = |what: &str| Failure::Lasting(generic(format!("cannot ask for a copy: malformed {what}")));
        // The client knows the bucket's address and tells it only in a signed form.
        let method = "PUT".parse().map_err(|_| malformed("method"))?;
        let mut url = self.s3.signed_url(method, to, UNUSED).await.map_err(Failure::Lasting)?;
        url.set_query(None);
        url.query_pairs_mut().append_pair("partNumber", &(index + 1).to_string()).append_pair("uploadId", upload);
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = "PUT".parse().map_err(|_| malformed("method"))?;
        *request.uri_mut() = url.as_str().parse().map_err(|_| malformed("address"))?;
        let mut header = |name: &'static str, value: &str| {
            value.parse().map(|value| drop(request.headers_mut().insert(name, value))).map_err(|_| malformed(name))
        };
        header("x-amz-copy-source", &percent_encoded(&format!("{}/{}", self.bucket, from.location)))?;
        header("x-amz-copy-source-range", &format!("bytes={}-{}", range.start, range.end - 1))?;
        if let Some(etag) = from.e_tag.as_deref().filter(|etag| !etag.starts_with("W/")) {
            header("x-amz-copy-source-if-match", etag)?;
        }
        let credential = self.s3.credentials().get_credential().await.map_err(Failure::Lasting)?;
        AwsAuthorizer::new(&credential, "s3", &self.region).authorize(&mut request, None);

        let response = self.http.execute(request).await.map_err(|e| match e.kind() {
            HttpErrorKind::Decode => Failure::Lasting(generic(format!("the answer to a copy cannot be read: {e}"))),
            _ => Failure::Passing(format!("no answer to a copy: {e}")),
        })?;
        let status = response.status();
        let body = response.into_body().bytes().await.map_err(|e| Failure::Passing(format!("no whole answer to a copy: {e}")))?;
        let body = String::from_utf8_lossy(&body);
        answered(status.as_u16(), &body, &from.location)
    }
}

#[derive(Debug)]
enum Failure {
    /// Trying again may help.
    Passing(String),
    Lasting(object_store::Error),
}

/// Understands the answer to a copy. The service may answer 200 and report an error in the body.
fn answered(status: u16, body: &str, from: &Path) -> std::result::Result<PartId, Failure> {
    if status == 200
        && let Some(etag) = element(body, "ETag")
    {
        return Ok(PartId { content_id: etag.replace("&#34;", "\"").replace("&quot;", "\"") });
    }
    // Of the body only these two: others repeat what was signed.
    let code = element(body, "Code").unwrap_or("no code");
    let message = element(body, "Message").unwrap_or("no message");
    let reason = format!("Server returned non-2xx status code: {status}: {code}: {message}");
    let path = from.to_string();
    let passing = status == 429 || status >= 500 || (status == 200 && code != "PreconditionFailed");
    Err(match status {
        _ if passing => Failure::Passing(format!("copying by the server: {status} {code}: {message}")),
        404 => Failure::Lasting(object_store::Error::NotFound { path, source: reason.into() }),
        403 => Failure::Lasting(object_store::Error::PermissionDenied { path, source: reason.into() }),
        200 | 412 => Failure::Lasting(object_store::Error::Precondition { path, source: reason.into() }),
        _ => Failure::Lasting(generic(reason)),
    })
}

fn generic(reason: String) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: reason.into() }
}

/// The text of the first element `name`.
fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

/// Cuts `[0, keep)` into parts of nearly equal size.
fn parts(keep: u64) -> Vec<Range<u64>> {
    let count = keep.div_ceil(PART).clamp(1, MOST_COPIED_PARTS);
    let size = keep.div_ceil(count).max(1);
    (0..count).map(|i| (i * size).min(keep)..((i + 1) * size).min(keep)).filter(|range| !range.is_empty()).collect()
}

/// As the service wants a key in a header: all but unreserved characters and `/` as `%XX`.
fn percent_encoded(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_cover_the_range_and_respect_the_limits(keep in SMALLEST_PART..(5u64 << 40)) {
            let parts = parts(keep);
            prop_assert!(parts.len() as u64 <= MOST_COPIED_PARTS);
            let mut next = 0;
            for part in &parts {
                prop_assert_eq!(part.start, next);
                let size = part.end - part.start;
                prop_assert!((SMALLEST_PART..=5 << 30).contains(&size), "{} of {}", size, keep);
                next = part.end;
            }
            prop_assert_eq!(next, keep);
        }
    }

    #[test]
    fn an_error_in_a_good_answer_is_noticed_and_secrets_are_not_repeated() {
        let from = Path::from("corpus/a.parquet");
        let good = "<CopyPartResult><ETag>&quot;abc&quot;</ETag></CopyPartResult>";
        assert_eq!(answered(200, good, &from).unwrap().content_id, "\"abc\"");
        let bad = "<Error><Code>InternalError</Code><Message>try again</Message><StringToSign>hunter2</StringToSign></Error>";
        assert!(matches!(answered(200, bad, &from), Err(Failure::Passing(reason)) if reason.contains("InternalError")));
        let stale = "<Error><Code>PreconditionFailed</Code><Message>m</Message></Error>";
        for status in [200, 412] {
            assert!(matches!(answered(status, stale, &from), Err(Failure::Lasting(object_store::Error::Precondition { .. }))));
        }
        match answered(403, bad, &from) {
            Err(Failure::Lasting(error @ object_store::Error::PermissionDenied { .. })) => {
                assert!(!format!("{error:?}").contains("hunter2"))
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(answered(503, "", &from), Err(Failure::Passing(_))));
    }

    #[test]
    fn keys_are_encoded_as_the_service_wants_them() {
        assert_eq!(percent_encoded("b/lang=en/a b+ü%.parquet"), "b/lang%3Den/a%20b%2B%C3%BC%25.parquet");
    }
}
