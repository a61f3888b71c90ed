//! Who may ask: a token that every call carries, as `Bearer TOKEN`, or as the password of `Basic` with any user.

use crate::error::{Error, Result};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::fmt;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// The environment variable that holds the token.
pub const TOKEN_VARIABLE: &str = "PUSHPULL_SERVE_TOKEN";

/// Go's client, and with it the ADBC driver, leaves the padding out; others send it.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// A secret that clients must know. It is never printed.
#[derive(Clone)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// A token of visible ASCII characters, as a header can carry it.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for an empty text or any other character.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        match !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Self(text)),
            false => {
                let reason = "must be visible ASCII characters without a space, and at least one".to_owned();
                Err(Error::InvalidOption { name: TOKEN_VARIABLE.to_owned(), reason })
            }
        }
    }

    /// The token in the environment; `None` where the variable is empty or not set.
    ///
    /// # Errors
    /// As [`Token::new`].
    pub fn from_environment() -> Result<Option<Self>> {
        match std::env::var_os(TOKEN_VARIABLE) {
            Some(value) if !value.is_empty() => Self::new(value.to_string_lossy()).map(Some),
            _ => Ok(None),
        }
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// Takes equally long whatever `offered` shares with the token: hashes are compared, and those in constant time.
    fn is(&self, offered: &str) -> bool {
        blake3::hash(self.0.as_bytes()) == blake3::hash(offered.as_bytes())
    }
}

/// Lets calls through that carry the token; all calls if there is none.
#[derive(Debug, Clone)]
pub(super) struct Gate(pub(super) Option<Token>);

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> std::result::Result<Request<()>, Status> {
        let Some(token) = &self.0 else { return Ok(request) };
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        match header.and_then(secret) {
            Some(offered) if token.is(&offered) => Ok(request),
            Some(_) => Err(Status::unauthenticated("wrong token")),
            None => Err(Status::unauthenticated(
                "this server wants a token: send it as `authorization: Bearer TOKEN`, or as the password of any user name",
            )),
        }
    }
}

/// The secret in an `authorization` header.
fn secret(header: &str) -> Option<String> {
    let (scheme, value) = header.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64.decode(value.trim()).ok()?).ok()?;
    decoded.split_once(':').map(|(_, password)| password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(token: Option<&str>, header: Option<&str>) -> std::result::Result<(), tonic::Code> {
        let mut request = Request::new(());
        if let Some(header) = header {
            request.metadata_mut().insert("authorization", header.parse().unwrap());
        }
        Gate(token.map(|token| Token::new(token).unwrap())).call(request).map(drop).map_err(|status| status.code())
    }

    #[test]
    fn the_token_opens_as_bearer_and_as_the_password_of_any_user() {
        let basic = |text: &str| format!("Basic {}", BASE64.encode(text));
        let refused = Err(tonic::Code::Unauthenticated);
        assert_eq!(ask(Some("s3cr:et"), Some("Bearer s3cr:et")), Ok(()));
        assert_eq!(ask(Some("s3cr:et"), Some("bearer s3cr:et")), Ok(()));
        assert_eq!(ask(Some("s3cr:et"), Some(&basic("ann:s3cr:et"))), Ok(()));
        assert_eq!(ask(Some("s3cr:et"), Some(&basic(":s3cr:et"))), Ok(()));
        assert!(basic(":s3cr:et").ends_with('='));
        assert_eq!(ask(Some("s3cr:et"), Some(basic(":s3cr:et").trim_end_matches('='))), Ok(()));
        for header in
            ["Bearer s3cr:e", "Bearer s3cr:et2", "Bearer", "s3cr:et", "Basic !!", "Digest s3cr:et", &basic("s3cr"), &basic("s3cr:e")]
        {
            assert_eq!(ask(Some("s3cr:et"), Some(header)), refused, "{header}");
        }
        assert_eq!(ask(Some("s3cr:et"), None), refused);
        assert_eq!(ask(None, None), Ok(()));
        assert_eq!(ask(None, Some("Bearer anything")), Ok(()));
    }

    #[test]
    fn a_token_is_never_printed_and_never_empty() {
        assert_eq!(format!("{:?}", Token::new("hidden").unwrap()), "Token");
        for bad in ["", "two words", "tab\t", "é"] {
            assert!(matches!(Token::new(bad), Err(Error::InvalidOption { .. })), "{bad:?}");
        }
    }
}
