//! `ctl`: asks a running cluster over the HTTP of its nodes, and prints the answers.

mod recovery;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::settings::{CtlArgs, CtlCommand, Output};
use super::table::Table;

/// How long one request to one node may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for a recovery, for which all nodes are asked and every group elects a leader.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(120);

/// Why a command did not print what it should.
#[derive(Debug, thiserror::Error)]
enum CtlError {
    /// No node answered.
    #[error("no node answered:{}; is the cluster up, and is --http right?", tried.iter().map(|(url, why)| format!(" {url}: {why};")).collect::<String>())]
    NoNode {
        /// Each address, and what happened.
        tried: Vec<(String, String)>,
    },
    /// A node answered with an error.
    #[error("{code}: {message}")]
    Refused {
        /// The interface's code.
        code: String,
        /// The node's words.
        message: String,
    },
    /// The answer is none of a node's.
    #[error("{url} answered with status {status}, which is not JSON: is it a node's HTTP address?")]
    NotANode {
        /// Which address.
        url: String,
        /// The status.
        status: u16,
    },
    /// This version cannot do it.
    #[error("`ctl {0}` is not implemented yet in this version")]
    NotYet(&'static str),
    /// The file is not there, or holds no plan.
    #[error("{path}: {reason}; give the file into which `ctl recover --plan` was printed")]
    NoPlan {
        /// Which file.
        path: String,
        /// Why.
        reason: String,
    },
    /// Some groups are as they were.
    #[error("not every group goes on: {0}")]
    NotRecovered(String),
    /// Standard output is closed or full.
    #[error("the answer could not be printed: {0}")]
    Print(std::io::Error),
}

/// Runs one command.
pub(crate) fn run(args: &CtlArgs) -> ExitCode {
    let patience = match &args.command {
        CtlCommand::Recover { .. } => RECOVERY_TIMEOUT,
        _ => REQUEST_TIMEOUT,
    };
    let client = Client::new(args.http.clone(), patience);
    let result = answer(&client, &args.command).and_then(|answer| {
        print(&answer, args.output)?;
        answer.failure.map_or(Ok(()), Err)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dist-agent ctl: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is printed: the node's JSON, and how it looks to people.
struct Answer {
    json: Value,
    text: String,
    /// Printed, and then it has failed all the same.
    failure: Option<CtlError>,
}

impl Answer {
    fn new(json: Value, tables: &[Table]) -> Self {
        let text = tables.iter().map(Table::render).collect::<Vec<_>>().join("\n");
        Self { json, text, failure: None }
    }

    /// Of a request that is answered with nothing.
    fn words(text: String) -> Self {
        Self { json: json!({"message": text}), text: format!("{text}\n"), failure: None }
    }
}

fn answer(client: &Client, command: &CtlCommand) -> Result<Answer, CtlError> {
    match command {
        CtlCommand::Status => status(client),
        CtlCommand::Nodes => rows(client, "/v1/nodes", Table::nodes),
        CtlCommand::Groups => rows(client, "/v1/groups", Table::groups),
        CtlCommand::Shards { keyspace } => shards(client, keyspace.as_deref()),
        CtlCommand::Agents { quota, module } => agents(client, quota.as_deref(), module.as_deref()),
        CtlCommand::Drain { node, cancel: true } => {
            client.delete(&format!("/v1/nodes/{}/drain", encode(node)))?;
            Ok(Answer::words(format!("{node} holds replicas again")))
        }
        CtlCommand::Drain { node, cancel: false } => {
            client.post(&format!("/v1/nodes/{}/drain", encode(node)))?;
            Ok(Answer::words(format!(
                "{node} gives everything away; it can be stopped when `ctl nodes` shows it no more"
            )))
        }
        CtlCommand::Remove { node } => {
            client.delete(&format!("/v1/nodes/{}", encode(node)))?;
            Ok(Answer::words(format!("{node} is removed")))
        }
        CtlCommand::Quota { .. } => Err(CtlError::NotYet("quota")),
        CtlCommand::Recover { apply: None, .. } => recovery::plan(client),
        CtlCommand::Recover { apply: Some(file), .. } => recovery::apply(client, file),
        CtlCommand::Backup { .. } => Err(CtlError::NotYet("backup")),
        CtlCommand::Restore { .. } => Err(CtlError::NotYet("restore")),
        CtlCommand::Events => Err(CtlError::NotYet("events")),
    }
}

fn rows(client: &Client, path: &str, table: impl FnOnce(&Value) -> Table) -> Result<Answer, CtlError> {
    let json = client.get(path)?;
    let tables = [table(&json)];
    Ok(Answer::new(json, &tables))
}

fn status(client: &Client) -> Result<Answer, CtlError> {
    let nodes = client.get("/v1/nodes")?;
    let groups = client.get("/v1/groups")?;
    let keyspaces = client.get("/v1/keyspaces")?;
    let tables = [Table::status(&nodes, &groups, &keyspaces), Table::nodes(&nodes)];
    Ok(Answer::new(
        json!({"nodes": nodes["nodes"], "groups": groups["groups"], "keyspaces": keyspaces["keyspaces"]}),
        &tables,
    ))
}

fn shards(client: &Client, keyspace: Option<&str>) -> Result<Answer, CtlError> {
    let names = match keyspace {
        Some(name) => vec![name.to_owned()],
        None => names(&client.get("/v1/keyspaces")?, "keyspaces", "name"),
    };
    let mut all = Vec::new();
    for name in names {
        let found = client.get(&format!("/v1/keyspaces/{}/shards", encode(&name)))?;
        for shard in found["shards"].as_array().into_iter().flatten() {
            let mut shard = shard.clone();
            shard["keyspace"] = name.clone().into();
            all.push(shard);
        }
    }
    let json = json!({"shards": all});
    let tables = [Table::shards(&json)];
    Ok(Answer::new(json, &tables))
}

fn agents(client: &Client, quota: Option<&str>, module: Option<&str>) -> Result<Answer, CtlError> {
    let quotas = match quota {
        Some(name) => vec![name.to_owned()],
        None => client
            .pages("/v1/quotas", "", "quotas")?
            .iter()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect(),
    };
    let filter = module.map(|module| format!("module={}", encode(module))).unwrap_or_default();
    let mut all = Vec::new();
    for quota in quotas {
        for mut agent in client.pages(&format!("/v1/agents/{}", encode(&quota)), &filter, "agents")? {
            agent["quota"] = quota.clone().into();
            all.push(agent);
        }
    }
    let json = json!({"agents": all});
    let tables = [Table::agents(&json)];
    Ok(Answer::new(json, &tables))
}

fn names(json: &Value, list: &str, field: &str) -> Vec<String> {
    let rows = json[list].as_array().into_iter().flatten();
    rows.filter_map(|row| row[field].as_str().map(str::to_owned)).collect()
}

fn print(answer: &Answer, output: Output) -> Result<(), CtlError> {
    let text = match output {
        Output::Json => format!("{}\n", answer.json),
        Output::Table => answer.text.clone(),
    };
    std::io::stdout().lock().write_all(text.as_bytes()).map_err(CtlError::Print)
}

/// Percent-encodes what is not a letter, digit or one of `_ . -`.
fn encode(part: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    part.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

struct Client {
    patience: Duration,
    agent: ureq::Agent,
    urls: Vec<String>,
}

enum Method<'a> {
    Get,
    Post,
    /// With a body.
    PostJson(&'a Value),
    Delete,
}

impl Client {
    fn new(urls: Vec<String>, patience: Duration) -> Self {
        let config = ureq::Agent::config_builder();
        let config = config.timeout_global(Some(patience)).http_status_as_error(false);
        let urls = urls.into_iter().map(|url| if url.contains("://") { url } else { format!("http://{url}") });
        Self {
            patience,
            agent: config.build().into(),
            urls: urls.map(|url| url.trim_end_matches('/').to_owned()).collect(),
        }
    }

    fn get(&self, path: &str) -> Result<Value, CtlError> {
        self.send(&Method::Get, path)
    }

    fn post(&self, path: &str) -> Result<Value, CtlError> {
        self.send(&Method::Post, path)
    }

    fn post_json(&self, path: &str, body: &Value) -> Result<Value, CtlError> {
        self.send(&Method::PostJson(body), path)
    }

    fn delete(&self, path: &str) -> Result<Value, CtlError> {
        self.send(&Method::Delete, path)
    }

    /// All rows of a list, page by page.
    fn pages(&self, path: &str, filter: &str, list: &str) -> Result<Vec<Value>, CtlError> {
        let (mut rows, mut next) = (Vec::new(), None::<String>);
        loop {
            let cursor = next.map(|next| format!("&cursor={}", encode(&next))).unwrap_or_default();
            let mut page = self.get(&format!("{path}?{filter}{cursor}"))?;
            if let Value::Array(page) = page[list].take() {
                rows.extend(page);
            }
            match page["next"].as_str() {
                Some(cursor) => next = Some(cursor.to_owned()),
                None => return Ok(rows),
            }
        }
    }

    /// The first node that can be reached answers.
    fn send(&self, method: &Method<'_>, path: &str) -> Result<Value, CtlError> {
        let mut tried = Vec::new();
        let timeout = self.patience.saturating_sub(TIMEOUT_MARGIN).as_millis().to_string();
        for url in &self.urls {
            let target = format!("{url}{path}");
            let response = match method {
                Method::Get => self.agent.get(&target).header(TIMEOUT_HEADER, &timeout).call(),
                Method::Post => self.agent.post(&target).header(TIMEOUT_HEADER, &timeout).send_empty(),
                Method::PostJson(body) => {
                    let request = self.agent.post(&target).header(TIMEOUT_HEADER, &timeout);
                    request.header("Content-Type", "application/json").send(body.to_string())
                }
                Method::Delete => self.agent.delete(&target).header(TIMEOUT_HEADER, &timeout).call(),
            };
            match response {
                Ok(mut response) => {
                    let status = response.status().as_u16();
                    let text = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_string();
                    match text {
                        Ok(text) if status == 503 => tried.push((url.clone(), reason(&text))),
                        Ok(text) => return read(url, status, &text),
                        Err(error) => tried.push((url.clone(), error.to_string())),
                    }
                }
                Err(error) => tried.push((url.clone(), error.to_string())),
            }
        }
        Err(CtlError::NoNode { tried })
    }
}

/// How long a node may take; less than what this program waits, so that the node says what it knows by then.
const TIMEOUT_HEADER: &str = "X-Timeout-Ms";
const TIMEOUT_MARGIN: Duration = Duration::from_secs(1);

/// A page of 1,000 agents with the longest keys has some MB.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

fn read(url: &str, status: u16, text: &str) -> Result<Value, CtlError> {
    let succeeded = (200..300).contains(&status);
    if succeeded && text.is_empty() {
        return Ok(Value::Null);
    }
    let json: Value = serde_json::from_str(text).map_err(|_| CtlError::NotANode { url: url.to_owned(), status })?;
    if succeeded {
        return Ok(json);
    }
    let word = |field: &str| json[field].as_str().unwrap_or("error").to_owned();
    Err(CtlError::Refused { code: word("error"), message: word("message") })
}

fn reason(text: &str) -> String {
    let json: Value = serde_json::from_str(text).unwrap_or_default();
    json["message"].as_str().unwrap_or("it does not serve").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_or_named_as_what_they_are() {
        assert_eq!(read("u", 204, "").unwrap(), Value::Null);
        assert_eq!(read("u", 200, "{\"nodes\":[]}").unwrap(), json!({"nodes": []}));
        let refused = read("u", 404, r#"{"error":"node_not_found","message":"no"}"#).unwrap_err();
        assert_eq!(refused.to_string(), "node_not_found: no");
        assert!(matches!(read("u", 200, "<html>"), Err(CtlError::NotANode { .. })));
    }

    #[test]
    fn parts_of_paths_are_encoded() {
        assert_eq!(encode("a-b_c.d"), "a-b_c.d");
        assert_eq!(encode("a/b é%"), "a%2Fb%20%C3%A9%25");
    }

    #[test]
    fn nobody_at_the_address_is_an_error_that_names_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = Client::new(vec![address.to_string()], REQUEST_TIMEOUT).get("/v1/nodes").unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
