//! The fields of a request: each is read by its name, so that a refusal can name it; unknown ones are ignored,
//! but for slips of spelling.

use std::{borrow::Cow, collections::HashMap};

use axum::extract::FromRequestParts;
use http::request::Parts;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{error::ApiError, spelling};

/// The fields of a JSON object, not read yet.
#[derive(Debug, Default)]
pub(crate) struct Fields<'a>(HashMap<Cow<'a, str>, &'a RawValue>);

impl<'a> Fields<'a> {
    /// Reads a body that must be a JSON object. An empty body is an object without fields: published clients send it.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        let text = std::str::from_utf8(body).map_err(|_| ApiError::bad_request("the body is not UTF-8"))?;
        serde_json::from_str(text).map(Self).map_err(|error| {
            let what = if error.is_data() { "a JSON object" } else { "JSON" };
            ApiError::bad_request(format!("the body is not {what}: {error}"))
        })
    }

    /// Refuses names that are misspelt ones of `known`.
    pub(crate) fn check_spelling(&self, known: &[&str]) -> Result<(), ApiError> {
        Ok(spelling::check(self.names(), known, "")?)
    }

    /// The same within a field that is an object. What is no object is left to whoever reads the field.
    pub(crate) fn check_spelling_in(&self, name: &str, known: &[&str]) -> Result<(), ApiError> {
        let Some(Ok(inner)) = self.raw(name).map(|raw| serde_json::from_str(raw.get()).map(Fields)) else {
            return Ok(());
        };
        Ok(spelling::check(inner.names(), known, &format!("{name}."))?)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(AsRef::as_ref)
    }

    /// A field as it came; `None` where it is absent or null.
    pub(crate) fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.0.get(name).copied().filter(|raw| raw.get() != "null")
    }

    /// Whether a field is there, and null.
    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|raw| raw.get() == "null")
    }

    /// A field; `None` where it is absent or null.
    pub(crate) fn get<T: Deserialize<'a>>(&self, name: &str) -> Result<Option<T>, ApiError> {
        self.raw(name)
            .map(|raw| serde_json::from_str(raw.get()))
            .transpose()
            .map_err(|error| invalid(name, &without_place(&error)))
    }

    /// A field that must be there.
    pub(crate) fn required<T: Deserialize<'a>>(&self, name: &str) -> Result<T, ApiError> {
        self.get(name)?.ok_or_else(|| ApiError::bad_request(format!("{name} is missing")))
    }

    /// A JSON object as it came.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Box<RawValue>>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        if !raw.get().starts_with('{') {
            return Err(invalid(name, "it must be an object"));
        }
        Ok(Some(on_one_line(raw)))
    }

    /// A text that is not empty, has no control characters and at most so many bytes.
    pub(crate) fn word(&self, name: &str, max_bytes: usize) -> Result<Option<String>, ApiError> {
        let Some(word) = self.get::<String>(name)? else { return Ok(None) };
        if word.trim().is_empty() || word.len() > max_bytes || word.chars().any(char::is_control) {
            return Err(invalid(name, &format!("it must be a text of 1 to {max_bytes} bytes on one line")));
        }
        Ok(Some(word))
    }
}

/// A refusal that names its field.
pub(crate) fn invalid(name: &str, reason: &str) -> ApiError {
    ApiError::bad_request(format!("{name} is not valid: {reason}"))
}

/// What serde says without "at line 1 column 7", which counts within the field and not within the body.
pub(crate) fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(reason, _)| reason.to_owned())
}

/// The same JSON without line breaks. Inside of strings JSON has none, so those that there are stand between tokens.
pub(crate) fn on_one_line(raw: &RawValue) -> Box<RawValue> {
    if memchr::memchr2(b'\n', b'\r', raw.get().as_bytes()).is_none() {
        return raw.to_owned();
    }
    let text = raw.get().replace(['\n', '\r'], " ");
    RawValue::from_string(text).unwrap_or_else(|_| raw.to_owned())
}

/// The variable parts of a route, decoded.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0)).map_err(|_| ApiError::bad_request("the address cannot be read"))
    }
}

/// The parameters behind the `?` of an address, decoded, in order.
pub(crate) struct Parameters(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Parameters {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query: axum::extract::Query<Vec<(String, String)>> = axum::extract::Query::try_from_uri(&parts.uri)
            .map_err(|_| ApiError::bad_request("the parameters behind the ? cannot be read"))?;
        Ok(Self(query.0))
    }
}

impl Parameters {
    /// The first parameter of a name that is not empty.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// Whether a parameter says yes; false where it is absent.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.text(name) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(_) => Err(invalid(name, "it is true or false")),
        }
    }

    /// A whole number between bounds.
    pub(crate) fn number(&self, name: &str, default: u32, min: u32, max: u32) -> Result<u32, ApiError> {
        let Some(text) = self.text(name) else { return Ok(default) };
        text.parse()
            .ok()
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| invalid(name, &format!("it is a whole number from {min} to {max}")))
    }

    /// The parameters whose names begin with `prefix`, without it.
    pub(crate) fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(move |(key, value)| Some((key.strip_prefix(prefix)?, value.as_str())))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::value::RawValue;

    use super::{Fields, on_one_line};

    #[test]
    fn unknown_fields_and_null_are_no_error() {
        let fields = Fields::parse(br#"{"new":1,"model":null,"n":2,"\u0061":3}"#).unwrap();
        assert_eq!(fields.get::<String>("model").unwrap(), None);
        assert_eq!(fields.get::<u32>("n").unwrap(), Some(2));
        assert_eq!(fields.get::<u32>("a").unwrap(), Some(3));
        assert!(Fields::parse(b"").unwrap().raw("x").is_none());
    }

    #[test]
    fn a_refusal_names_the_field() {
        let fields = Fields::parse(br#"{"n":"x"}"#).unwrap();
        let error = format!("{:?}", fields.get::<u32>("n").unwrap_err());
        assert!(error.contains("n is not valid") && !error.contains("column"), "{error}");
        assert!(format!("{:?}", fields.required::<u32>("m").unwrap_err()).contains("m is missing"));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for body in [&b"["[..], b"[]", b"1", b"{", b"{\"a\":}", b"\xff", b"null"] {
            assert!(Fields::parse(body).is_err());
        }
    }

    #[test]
    fn line_breaks_go_and_strings_stay() {
        let raw = RawValue::from_string("[\n {\"a\":\r\n\"x\\n\"}]".to_owned()).unwrap();
        assert_eq!(on_one_line(&raw).get(), "[  {\"a\":  \"x\\n\"}]");
    }
}
