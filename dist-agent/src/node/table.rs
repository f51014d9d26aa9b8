//! Rows of JSON as text in columns.

use std::fmt::Write as _;

use serde_json::Value;

/// A table to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn nodes(json: &Value) -> Self {
        Self::of(json, "nodes", &["name", "state", "left", "zone", "address", "http", "id"])
    }

    pub(crate) fn groups(json: &Value) -> Self {
        Self::of(json, "groups", &["name", "state", "leader", "replicas", "term"])
    }

    pub(crate) fn shards(json: &Value) -> Self {
        Self::of(json, "shards", &["keyspace", "group", "lower", "upper", "keys", "bytes", "phase"])
    }

    pub(crate) fn agents(json: &Value) -> Self {
        Self::of(json, "agents", &["quota", "module", "key"])
    }

    /// One row that sums up.
    pub(crate) fn status(nodes: &Value, groups: &Value, keyspaces: &Value) -> Self {
        let count = |json: &Value, list: &str| json[list].as_array().map_or(0, Vec::len);
        let with = |json: &Value, list: &str, state: &str| {
            json[list].as_array().into_iter().flatten().filter(|row| row["state"] == state).count()
        };
        let row = [
            format!("{} of {}", with(nodes, "nodes", "active"), count(nodes, "nodes")),
            count(groups, "groups").to_string(),
            with(groups, "groups", "leaderless").to_string(),
            count(keyspaces, "keyspaces").to_string(),
        ];
        Self { heads: vec!["nodes active", "groups", "leaderless", "keyspaces"], rows: vec![row.to_vec()] }
    }

    /// The rows of a list, with these fields of each.
    pub(crate) fn of(json: &Value, list: &str, fields: &[&'static str]) -> Self {
        let rows = json[list].as_array().into_iter().flatten();
        let rows = rows.map(|row| fields.iter().map(|field| cell(&row[*field])).collect());
        Self { heads: fields.to_vec(), rows: rows.collect() }
    }

    /// Columns are as wide as their widest cell.
    pub(crate) fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.heads[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.heads.len()).map(width).collect();
        let heads = self.heads.iter().map(|head| head.to_uppercase()).collect::<Vec<_>>();
        let mut text = String::new();
        for row in std::iter::once(&heads).chain(&self.rows) {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a string cannot fail.
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        // A key may hold anything; a line break would tear the table.
        Value::String(text) => text.chars().flat_map(printable).collect(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn printable(character: char) -> Vec<char> {
    if character.is_control() { character.escape_default().collect() } else { vec![character] }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_is_torn() {
        let groups = json!({"groups": [
            {"name": "cluster", "state": "active", "leader": "n1", "replicas": ["n1", "n2"], "term": 3},
            {"name": "a\nb", "state": "leaderless", "leader": null, "replicas": [], "term": 12},
        ]});
        let expected = "\
NAME     STATE       LEADER  REPLICAS  TERM
cluster  active      n1      n1,n2     3
a\\nb     leaderless  -                 12
";
        assert_eq!(Table::groups(&groups).render(), expected);
    }

    #[test]
    fn the_status_counts() {
        let nodes = json!({"nodes": [{"state": "active"}, {"state": "unreachable"}]});
        let groups = json!({"groups": [{"state": "active"}, {"state": "leaderless"}]});
        let rendered = Table::status(&nodes, &groups, &json!({"keyspaces": [{}]})).render();
        assert!(rendered.ends_with("1 of 2        2       1           1\n"), "{rendered}");
    }
}
