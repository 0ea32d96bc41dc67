//! `/api/messages`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use uuid::Uuid;

use super::Page;
use crate::domain::new_message::NewMessage;
use crate::http::Site;
use crate::http::input::{Asked, Named, Text, limit};
use crate::http::problem::Problem;
use crate::pg::inspect::{self, MessageFilter, MessageState, MessageStory};
use crate::pg::messages;

/// Messages that one request may bring.
const MOST: usize = 10_000;

/// A message to insert, as `outboxd send --lines` takes it; with bytes or without.
macro_rules! message_to_insert {
    ($(#[$doc:meta])* $name:ident { $(#[$payload_doc:meta])* $payload:ident: $type:ty }) => {
        $(#[$doc])*
        #[derive(Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "describes JSON")]
        pub(super) struct $name {
            #[schema(pattern = "^[a-zA-Z0-9_-]{1,249}$")]
            topic: String,
            $(#[$payload_doc])*
            $payload: $type,
            #[schema(pattern = "^[^\\u0000]*$")]
            key: Option<String>,
            #[serde(rename = "type")]
            #[schema(pattern = "^[^\\u0000]*$")]
            event_type: Option<String>,
            headers: Option<HeadersSchema>,
            #[schema(pattern = "^[a-zA-Z0-9 _-]{1,200}$")]
            idempotency_key: Option<String>,
            priority: Option<PrioritySchema>,
            deliver_after: Option<chrono::DateTime<chrono::Utc>>,
            id: Option<Uuid>,
        }
    };
}

message_to_insert! {
    /// A message to insert, as `outboxd send --lines` takes it.
    MessageToInsert {
        /// Text, or any JSON value, which is published as it is written; null is a tombstone.
        #[schema(value_type = Value)]
        payload: serde_json::Value
    }
}

message_to_insert! {
    /// One whose payload is bytes.
    BytesToInsert {
        #[schema(pattern = "^([A-Za-z0-9+/]{4})*$", required = true)]
        payload_base64: Option<String>
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes JSON")]
pub(super) enum AnyToInsert {
    Value(MessageToInsert),
    Bytes(BytesToInsert),
}

/// Names and values without a NUL, which PostgreSQL cannot store.
#[derive(Deserialize)]
struct HeadersSchema;

impl PartialSchema for HeadersSchema {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[^\\u0000]*$")).build();
        let headers = ObjectBuilder::new().schema_type(Type::Object).property_names(Some(text()));
        headers.additional_properties(Some(Schema::Object(text()))).into()
    }
}

impl ToSchema for HeadersSchema {}

/// A word or a number, as it is stored.
#[derive(Deserialize)]
struct PrioritySchema;

impl PartialSchema for PrioritySchema {
    fn schema() -> RefOr<Schema> {
        let values = [json!("low"), json!("normal"), json!("high"), json!(-1), json!(0), json!(1)];
        ObjectBuilder::new().schema_type(SchemaType::AnyValue).enum_values(Some(values)).into()
    }
}

impl ToSchema for PrioritySchema {}

/// One, or several that are inserted in one transaction, in their order.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes JSON")]
pub(super) enum MessagesToInsert {
    One(Box<AnyToInsert>),
    Several(Vec<AnyToInsert>),
}

#[derive(Serialize, ToSchema)]
pub(super) struct Inserted {
    /// In the order of the messages.
    ids: Vec<Uuid>,
}

/// Insert one message, or several in one transaction
#[utoipa::path(
    post, path = "/api/messages", request_body = MessagesToInsert,
    responses(
        (status = 202, body = Inserted, description = "Committed; the relay publishes them")
    )
)]
pub(super) async fn insert(
    State(site): State<Arc<Site>>,
    Text(body): Text,
) -> Result<(StatusCode, Json<Inserted>), Problem> {
    let messages = read(&body, site.largest_record)?;
    let client = site.database.lend().await?;
    let ids = messages::enqueue_all(&client, &messages).await?;
    Ok((StatusCode::ACCEPTED, Json(Inserted { ids })))
}

fn read(body: &str, largest_record: usize) -> Result<Vec<NewMessage>, Problem> {
    if !body.trim_start().starts_with('[') {
        let message = NewMessage::from_json(body, None, largest_record);
        return Ok(vec![message.map_err(|error| Problem::bad(error.to_string()))?]);
    }
    let all: Vec<&RawValue> = serde_json::from_str(body).map_err(|error| Problem::bad(error.to_string()))?;
    if all.len() > MOST {
        return Err(Problem::bad(format!("no more than {MOST} messages go at a time")));
    }
    let message = |(place, text): (usize, &&RawValue)| {
        NewMessage::from_json(text.get(), None, largest_record)
            .map_err(|error| Problem::bad(format!("message {place}: {error}; nothing is inserted")))
    };
    all.iter().enumerate().map(message).collect()
}

/// What a message may be.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum Stage {
    Pending,
    Scheduled,
    Published,
    Parked,
    Held,
    Discarded,
    Replayed,
}

impl Stage {
    pub(in crate::http) const ALL: [Self; 7] = [
        Self::Pending,
        Self::Scheduled,
        Self::Published,
        Self::Parked,
        Self::Held,
        Self::Discarded,
        Self::Replayed,
    ];

    pub(in crate::http) fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Scheduled => "scheduled",
            Self::Published => "published",
            Self::Parked => "parked",
            Self::Held => "held",
            Self::Discarded => "discarded",
            Self::Replayed => "replayed",
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    #[param(pattern = "^[^\\u0000]*$")]
    topic: Option<String>,
    #[param(pattern = "^[^\\u0000]*$")]
    key: Option<String>,
    #[param(inline)]
    state: Option<Stage>,
    /// The next page: the `next` of the one before
    #[param(minimum = 0)]
    after: Option<i64>,
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Messages with their states, newest first
#[utoipa::path(
    get, path = "/api/messages", params(Filter),
    responses(
        (status = 200, body = Page<MessageState>)
    )
)]
pub(super) async fn list(
    State(site): State<Arc<Site>>,
    Asked(filter): Asked<Filter>,
) -> Result<Json<Page<MessageState>>, Problem> {
    let limit = limit(filter.limit)?;
    let Filter { topic, key, state, after, .. } = filter;
    if after.is_some_and(|after| after < 0) {
        return Err(Problem::bad("`after` is the `next` of the page before"));
    }
    let state = state.map(|state| state.name().to_owned());
    let filter = MessageFilter { topic, key, state, before: after, limit };
    let client = site.database.lend().await?;
    let messages = inspect::messages(&client, &filter).await?;
    Ok(Json(Page::of(messages, limit, |message| message.seq.to_string())))
}

/// One message: its content, and what became of it where
#[utoipa::path(
    get, path = "/api/messages/{id}", params(("id" = Uuid, Path, description = "Its own id, or the derived one")),
    responses(
        (status = 200, body = MessageStory)
    )
)]
pub(super) async fn show(
    State(site): State<Arc<Site>>,
    Named(id): Named<Uuid>,
) -> Result<Json<MessageStory>, Problem> {
    let client = site.database.lend().await?;
    let story = inspect::message(&client, id).await?;
    story.map(Json).ok_or_else(|| Problem::not_found(format!("no message {id} is in the outbox")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_several_are_read_and_a_wrong_one_is_named() {
        let read = |body: &str| {
            read(body, 1_000).map(|messages| messages.len()).map_err(|problem| problem.detail().to_owned())
        };
        assert_eq!(read(r#"{"topic":"t","payload":1}"#), Ok(1));
        assert_eq!(read(r#" [{"topic":"t","payload":1},{"topic":"t","payload":null}]"#), Ok(2));
        assert_eq!(read("[]"), Ok(0));
        assert!(read("{").is_err() && read("[1").is_err() && read("").is_err());
        let wrong = read(r#"[{"topic":"t","payload":1},{"topic":7}]"#).unwrap_err();
        assert!(wrong.starts_with("message 1: `topic` is not text"), "{wrong}");
    }
}
