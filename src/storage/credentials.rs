//! Which credentials a cloud client may use: those in the environment. A client without any would quietly ask the platform's
//! metadata address, which hangs or leaks a request where there is none, so that is an explicit choice.

use crate::error::{Error, Result};

/// Setting this to `1` lets clients without keys ask the platform's metadata service (an instance role, a managed identity).
const PLATFORM: &str = "PUSHPULL_PLATFORM_CREDENTIALS";

/// A cloud whose client reads its credentials from the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cloud {
    Aws,
    Google,
    Azure,
}

impl Cloud {
    /// Environment variables of which one is enough to sign requests (or to say that none are signed).
    fn sufficient(self) -> &'static [&'static str] {
        match self {
            Cloud::Aws => &[
                "AWS_ACCESS_KEY_ID",
                "AWS_SKIP_SIGNATURE",
                "AWS_WEB_IDENTITY_TOKEN_FILE",
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            ],
            Cloud::Google => &[
                "GOOGLE_SERVICE_ACCOUNT",
                "GOOGLE_SERVICE_ACCOUNT_PATH",
                "GOOGLE_SERVICE_ACCOUNT_KEY",
                "GOOGLE_APPLICATION_CREDENTIALS",
                "GOOGLE_SKIP_SIGNATURE",
            ],
            Cloud::Azure => &[
                "AZURE_STORAGE_ACCOUNT_KEY",
                "AZURE_STORAGE_ACCESS_KEY",
                "AZURE_STORAGE_SAS_KEY",
                "AZURE_STORAGE_SAS_TOKEN",
                "AZURE_STORAGE_CLIENT_SECRET",
                "AZURE_CLIENT_SECRET",
                "AZURE_FEDERATED_TOKEN_FILE",
                "AZURE_STORAGE_TOKEN",
                "AZURE_SKIP_SIGNATURE",
            ],
        }
    }

    /// Refuses before the first request when the environment holds nothing to sign with.
    pub(super) fn require(self, url: &str, variable: impl Fn(&str) -> Option<String>) -> Result<()> {
        let set = |name: &str| variable(name).is_some_and(|v| !v.is_empty());
        if variable(PLATFORM).as_deref() == Some("1") || self.sufficient().iter().any(|name| set(name)) {
            return Ok(());
        }
        Err(Error::Location {
            location: url.to_owned(),
            reason: format!(
                "no credentials in the environment: set one of {}, or {PLATFORM}=1 to use the role of the machine this runs on",
                self.sufficient().join(", ")
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_keys_is_an_error_that_names_the_variables_and_not_a_request() {
        let error = Cloud::Aws.require("s3://lake/x/", |_| None).unwrap_err().to_string();
        assert!(error.contains("AWS_ACCESS_KEY_ID") && error.contains("s3://lake/x/"), "{error}");
        assert!(Cloud::Aws.require("s3://lake/x/", |n| (n == "AWS_ACCESS_KEY_ID").then(|| "k".into())).is_ok());
        assert!(Cloud::Azure.require("az://c/x", |n| (n == PLATFORM).then(|| "1".into())).is_ok());
        assert!(Cloud::Google.require("gs://c/x", |_| Some(String::new())).is_err());
    }
}
