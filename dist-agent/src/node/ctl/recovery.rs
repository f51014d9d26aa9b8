//! `ctl recover`: prints a plan, and has one applied.

use std::path::Path;

use serde_json::{Value, json};

use super::{Answer, Client, CtlError};
use crate::node::table::Table;

/// Before the digits of a plan, on a line of their own.
const PLAN_MARK: &str = "plan: ";

pub(super) fn plan(client: &Client) -> Result<Answer, CtlError> {
    let json = client.get("/v1/recovery")?;
    let leaderless = json["leaderless"].as_array().into_iter().flatten().map(leaderless_line);
    let mut text: String = leaderless.collect();
    text += json["text"].as_str().unwrap_or_default();
    if json["groups"].as_array().is_some_and(|groups| !groups.is_empty()) {
        text += &format!("{PLAN_MARK}{}\n", json["plan"].as_str().unwrap_or_default());
    }
    Ok(Answer { json, text, failure: None })
}

fn leaderless_line(group: &Value) -> String {
    let members = group["members"].as_array().into_iter().flatten().map(|member| {
        let node = member["node"].as_str().unwrap_or("?");
        format!("{node} {}", member["absence"].as_str().unwrap_or("answers"))
    });
    let members = members.collect::<Vec<_>>().join(", ");
    format!("group {} has no leader: {members}\n", group["name"].as_str().unwrap_or("?"))
}

pub(super) fn apply(client: &Client, file: &Path) -> Result<Answer, CtlError> {
    let no_plan = |reason: String| CtlError::NoPlan { path: file.display().to_string(), reason };
    let written = std::fs::read_to_string(file).map_err(|error| no_plan(error.to_string()))?;
    let plan = read(&written).ok_or_else(|| no_plan("there is no plan in it".into()))?;
    let json = client.post_json("/v1/recovery", &json!({"plan": plan}))?;
    let has_failed = |row: &&Value| matches!(row["outcome"].as_str(), Some("outdated" | "not_happened" | "unknown"));
    let failed = json["groups"].as_array().into_iter().flatten().filter(has_failed);
    let failed: Vec<_> = failed.filter_map(|row| row["group"].as_str().map(str::to_owned)).collect();
    let failure = (!failed.is_empty()).then(|| CtlError::NotRecovered(failed.join(", ")));
    let table = Table::of(&json, "groups", &["group", "outcome", "message"]);
    Ok(Answer { failure, ..Answer::new(json, &[table]) })
}

/// The plan's digits, from either form in which it is printed.
fn read(written: &str) -> Option<String> {
    if let Ok(json) = serde_json::from_str::<Value>(written) {
        return json["plan"].as_str().map(str::to_owned);
    }
    written.lines().rev().find_map(|line| line.strip_prefix(PLAN_MARK)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_in_both_forms_in_which_it_is_printed() {
        assert_eq!(read("group g: goes on\nplan: 01ab\n").as_deref(), Some("01ab"));
        assert_eq!(read("{\"plan\": \"01ab\", \"groups\": []}").as_deref(), Some("01ab"));
        assert_eq!(read("no group has lost its majority\n"), None);
        assert_eq!(read("{\"groups\": []}"), None);
    }
}
