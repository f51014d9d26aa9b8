//! Quotas.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Json;
use axum::routing::get;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::Shared;
use super::error::ApiError;
use super::request::{ApiPath, ApiQuery, Options, Page, cursor, from_json};
use crate::id::check_name;

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/quotas", get(list)).route("/quotas/{quota}", get(read).put(put).delete(delete))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    // Written out, so that an absent limit is a mistake and not "unlimited".
    #[serde(deserialize_with = "number_or_null")]
    limit: Option<u64>,
}

fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Option::deserialize(deserializer)
}

async fn put(
    State(shared): State<Shared>,
    ApiPath(quota): ApiPath<String>,
    options: Options,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let serving = shared.serving()?;
    check_name("quota", &quota)?;
    let Limit { limit } = from_json(&options.body(body).await?)?;
    serving.agents.quotas().put(&quota, limit, options.timeout()).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn read(
    State(shared): State<Shared>,
    ApiPath(quota): ApiPath<String>,
    options: Options,
) -> Result<Json<Value>, ApiError> {
    let quota = shared.serving()?.agents.quotas().get(&quota, options.timeout()).await?;
    Ok(Json(json!({"quota": quota.name, "limit": quota.limit, "count": quota.count})))
}

async fn delete(
    State(shared): State<Shared>,
    ApiPath(quota): ApiPath<String>,
    options: Options,
) -> Result<StatusCode, ApiError> {
    shared.serving()?.agents.quotas().delete(&quota, options.timeout()).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list(
    State(shared): State<Shared>,
    ApiQuery(page): ApiQuery<Page>,
    options: Options,
) -> Result<Json<Value>, ApiError> {
    let (after, limit) = (page.after()?, page.limit()?);
    let quotas = shared.serving()?.agents.quotas().clone();
    let names = quotas.list(after.as_deref(), limit, options.timeout()).await?;
    let mut answer = json!({"quotas": names});
    if let Some(last) = names.last().filter(|_| names.len() >= limit as usize) {
        answer["next"] = cursor(last).into();
    }
    Ok(Json(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_or_null_and_always_there() {
        let read = |text: &str| from_json::<Limit>(text.as_bytes()).map(|limit| limit.limit);
        assert_eq!(read(r#"{"limit": 100}"#).unwrap(), Some(100));
        assert_eq!(read(r#"{"limit": null}"#).unwrap(), None);
        for wrong in ["{}", r#"{"limit": -1}"#, r#"{"limit": "1"}"#, r#"{"limit": 1.5}"#, r#"{"limit": 1, "x": 2}"#, ""]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
