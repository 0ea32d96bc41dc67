//! What requests bring: a query, a body, a name in the path. What is wrong with it is a problem, in words.

use axum::extract::rejection::{BytesRejection, FormRejection, PathRejection, QueryRejection};
use axum::extract::{Form, FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use serde::de::value::StringDeserializer;
use serde::de::{DeserializeOwned, IntoDeserializer};
use serde::{Deserialize, Deserializer};

use super::problem::Problem;

/// A page without a limit of its own has so many, and none has more.
pub(super) const PAGE: u32 = 50;
pub(super) const MOST: u32 = 1_000;

/// The query, as a whole: a name that is not known is an error.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let wrong = |rejection: QueryRejection| Problem::new(rejection.status(), rejection.body_text());
        Query::from_request_parts(parts, state).await.map(|Query(asked)| Self(asked)).map_err(wrong)
    }
}

/// A query of nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// For paths that take none: whoever asks for something in particular is not given something else.
pub(super) async fn no_query(_: Asked<Nothing>, request: Request, next: Next) -> Response {
    next.run(request).await
}

/// A field of a form that was left empty is not given.
pub(super) fn given<'de, D, T>(field: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let text = Option::<String>::deserialize(field)?.filter(|text| !text.is_empty());
    let read = |text: String| -> StringDeserializer<D::Error> { text.into_deserializer() };
    text.map(|text| T::deserialize(read(text))).transpose()
}

/// What the path names.
pub(super) struct Named<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let wrong = |rejection: PathRejection| Problem::new(rejection.status(), rejection.body_text());
        Path::from_request_parts(parts, state).await.map(|Path(named)| Self(named)).map_err(wrong)
    }
}

/// A form that was filled in.
pub(super) struct Filled<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Filled<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let wrong = |rejection: FormRejection| Problem::new(rejection.status(), rejection.body_text());
        Form::from_request(request, state).await.map(|Form(filled)| Self(filled)).map_err(wrong)
    }
}

/// A body of JSON as it is written.
pub(super) struct Text(pub(super) String);

impl<S: Send + Sync> FromRequest<S> for Text {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let is_json = kind.is_some_and(|kind| {
            kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
        });
        if !is_json {
            let detail = "a body here is application/json, and says so";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
        let wrong = |rejection: BytesRejection| Problem::new(rejection.status(), rejection.body_text());
        let bytes = Bytes::from_request(request, state).await.map_err(wrong)?;
        let text = String::from_utf8(bytes.into()).map_err(|_| Problem::bad("the body is not UTF-8"))?;
        Ok(Self(text))
    }
}

/// A body of JSON that is read as a whole.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let Text(text) = Text::from_request(request, state).await?;
        serde_json::from_str(&text).map(Self).map_err(|error| Problem::bad(error.to_string()))
    }
}

/// As many as were asked for, if that is allowed.
pub(super) fn limit(asked: Option<u32>) -> Result<i64, Problem> {
    match asked.unwrap_or(PAGE) {
        limit @ 1..=MOST => Ok(limit.into()),
        _ => Err(Problem::bad(format!("`limit` must be from 1 to {MOST}"))),
    }
}
