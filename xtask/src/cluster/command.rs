//! The console's commands: a line of text -> a command.

use std::{fmt, time::Duration};

use serde_json::Value;

/// How many clients `bench` and `count` have, unless told otherwise.
pub const DEFAULT_CLIENTS: usize = 64;

/// The most clients that `bench` starts: each is a thread.
pub const MAX_CLIENTS: usize = 1_024;

/// What `help` prints.
pub const HELP: &str = "\
help                               this list
stat                               one row per node
fill N                             write k1..kN through random nodes, remember what was acknowledged
check                              read all of them back through random nodes
kill NODE                          SIGKILL of its process (`kill all`: all at once)
start NODE                         start its process again (`start all`)
pause NODE, resume NODE            SIGSTOP and SIGCONT of its process
put KEY VALUE, get KEY             one key of the demo keyspace
command QUOTA MODULE KEY JSON      a command to an agent, e.g. command demo counter a {\"add\":1}
query QUOTA MODULE KEY JSON        a query to an agent, e.g. query demo counter a \"get\"
groups, shards, agents             what the cluster holds
count N [NODE]                     N times {\"add\":1} to one counter by 64 clients; NODE is killed and
                                   started in the middle; the final value must be exactly N
bench SECONDS [CLIENTS]            commands to counters over HTTP: per second, p50, p99
add, drain NODE, remove NODE       not yet
quit                               stop all nodes and leave (also: end of input, Ctrl-C)";

/// One command.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Help,
    Stat,
    Fill {
        count: u64,
    },
    Check,
    Kill(Which),
    Start(Which),
    Pause {
        node: String,
    },
    Resume {
        node: String,
    },
    Put {
        key: String,
        value: String,
    },
    Get {
        key: String,
    },
    Agent(AgentCall),
    Groups,
    Shards,
    Agents,
    Count {
        count: u64,
        victim: Option<String>,
    },
    Bench {
        duration: Duration,
        clients: usize,
    },
    /// Named, and not built yet.
    NotYet {
        name: &'static str,
    },
    Quit,
}

/// One node, or all of them at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    One(String),
    All,
}

/// A command or a query to an agent.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentCall {
    pub kind: AgentCallKind,
    pub quota: String,
    pub module: String,
    pub key: String,
    pub body: Value,
}

/// Whether a call may change the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentCallKind {
    Command,
    Query,
}

/// Why a line is no command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// No command has this name.
    Unknown { name: String },
    /// The arguments are not what the command takes.
    Usage { usage: &'static str, given: String },
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParseError::Unknown { name } => {
                write!(f, "no command is named {name:?}: `help` lists them")
            }
            ParseError::Usage { usage, given } => {
                write!(f, "the arguments do not fit: {given:?} was given, usage: {usage}")
            }
        }
    }
}

impl std::error::Error for ParseError {}

/// Reads a line; `None` where it is blank or a comment.
pub fn parse(line: &str) -> Result<Option<Command>, ParseError> {
    let line = line.trim();
    let line = strip_comment(line);
    let (name, rest) = match line.split_once(char::is_whitespace) {
        Some((name, rest)) => (name, rest.trim()),
        None => (line, ""),
    };
    if name.is_empty() {
        return Ok(None);
    }
    let usage = |usage| ParseError::Usage { usage, given: line.to_owned() };
    let words: Vec<&str> = rest.split_whitespace().collect();
    let plain = |command: Command, text| {
        if words.is_empty() { Ok(command) } else { Err(usage(text)) }
    };
    let one = |text| match words[..] {
        [word] => Ok(word.to_owned()),
        _ => Err(usage(text)),
    };
    let command = match name {
        "help" => plain(Command::Help, "help")?,
        "stat" => plain(Command::Stat, "stat")?,
        "check" => plain(Command::Check, "check")?,
        "groups" => plain(Command::Groups, "groups")?,
        "shards" => plain(Command::Shards, "shards")?,
        "agents" => plain(Command::Agents, "agents")?,
        "quit" | "exit" => plain(Command::Quit, "quit")?,
        "fill" => {
            let text = "fill N, with N of 1 or more";
            Command::Fill { count: positive(&one(text)?).ok_or_else(|| usage(text))? }
        }
        "kill" => Command::Kill(which(one("kill NODE")?)),
        "start" => Command::Start(which(one("start NODE")?)),
        "pause" => Command::Pause { node: one("pause NODE")? },
        "resume" => Command::Resume { node: one("resume NODE")? },
        "get" => Command::Get { key: one("get KEY")? },
        "put" => match rest.split_once(char::is_whitespace) {
            Some((key, value)) => Command::Put { key: key.into(), value: value.trim().into() },
            None => return Err(usage("put KEY VALUE")),
        },
        "command" => Command::Agent(
            agent_call(AgentCallKind::Command, rest)
                .ok_or_else(|| usage("command QUOTA MODULE KEY JSON, e.g. command demo counter a {\"add\":1}"))?,
        ),
        "query" => Command::Agent(
            agent_call(AgentCallKind::Query, rest)
                .ok_or_else(|| usage("query QUOTA MODULE KEY JSON, e.g. query demo counter a \"get\""))?,
        ),
        "count" => count(&words).ok_or_else(|| usage("count N [NODE], with N of 1 or more"))?,
        "bench" => bench(&words).ok_or_else(|| usage("bench SECONDS [CLIENTS], with 1 to 1024 clients"))?,
        "add" => plain(Command::NotYet { name: "add" }, "add")?,
        "drain" => one("drain NODE").map(|_| Command::NotYet { name: "drain" })?,
        "remove" => one("remove NODE").map(|_| Command::NotYet { name: "remove" })?,
        _ => {
            return Err(ParseError::Unknown { name: name.to_owned() });
        }
    };
    Ok(Some(command))
}

/// A comment is a line of its own, or follows a command that ends in no value: values may hold a `#`.
fn strip_comment(line: &str) -> &str {
    if line.starts_with('#') {
        return "";
    }
    let ends_in_value = ["put", "command", "query"].contains(&line.split(' ').next().unwrap_or(line));
    match line.find(" #") {
        Some(at) if !ends_in_value => line[..at].trim_end(),
        _ => line,
    }
}

fn positive(word: &str) -> Option<u64> {
    word.parse().ok().filter(|number| *number > 0)
}

fn which(node: String) -> Which {
    if node == "all" { Which::All } else { Which::One(node) }
}

fn agent_call(kind: AgentCallKind, rest: &str) -> Option<AgentCall> {
    let (quota, rest) = rest.split_once(char::is_whitespace)?;
    let (module, rest) = rest.trim_start().split_once(char::is_whitespace)?;
    let (key, body) = rest.trim_start().split_once(char::is_whitespace)?;
    let body = serde_json::from_str(body).ok()?;
    Some(AgentCall { kind, quota: quota.into(), module: module.into(), key: key.into(), body })
}

fn count(words: &[&str]) -> Option<Command> {
    let victim = match words {
        [_] => None,
        [_, node] => Some((*node).to_owned()),
        _ => return None,
    };
    Some(Command::Count { count: positive(words[0])?, victim })
}

fn bench(words: &[&str]) -> Option<Command> {
    let clients = match words {
        [_] => DEFAULT_CLIENTS,
        [_, clients] => clients.parse().ok().filter(|clients| (1..=MAX_CLIENTS).contains(clients))?,
        _ => return None,
    };
    Some(Command::Bench { duration: Duration::from_secs(positive(words[0])?), clients })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn one(node: &str) -> Which {
        Which::One(node.into())
    }

    fn call(kind: AgentCallKind, key: &str, body: &str) -> Command {
        let body = serde_json::from_str(body).unwrap();
        let (quota, module) = ("q".into(), "counter".into());
        Command::Agent(AgentCall { kind, quota, module, key: key.into(), body })
    }

    #[test]
    fn a_line_is_a_command() {
        use AgentCallKind::{Command as C, Query as Q};
        let seconds = Duration::from_secs;
        let rows = [
            ("help", Command::Help),
            ("  stat  # a row per node", Command::Stat),
            ("fill 5000", Command::Fill { count: 5_000 }),
            ("kill n1", Command::Kill(one("n1"))),
            ("kill all", Command::Kill(Which::All)),
            ("start n1", Command::Start(one("n1"))),
            ("pause n2", Command::Pause { node: "n2".into() }),
            ("put a  b #d", Command::Put { key: "a".into(), value: "b #d".into() }),
            ("get a", Command::Get { key: "a".into() }),
            ("command q counter a {\"add\": 1}", call(C, "a", "{\"add\": 1}")),
            ("query q  counter  a  \"get\"", call(Q, "a", "\"get\"")),
            ("count 10 n3", Command::Count { count: 10, victim: Some("n3".into()) }),
            ("bench 5", Command::Bench { duration: seconds(5), clients: DEFAULT_CLIENTS }),
            ("bench 5 1", Command::Bench { duration: seconds(5), clients: 1 }),
            ("drain n1", Command::NotYet { name: "drain" }),
            ("quit", Command::Quit),
        ];
        for (line, command) in rows {
            assert_eq!(parse(line), Ok(Some(command)), "{line}");
        }
        for blank in ["", "   ", "# a comment", "#help"] {
            assert_eq!(parse(blank), Ok(None), "{blank:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_the_usage() {
        let rows = [
            ("fill", "fill N"),
            ("fill 0", "fill N"),
            ("fill many", "fill N"),
            ("kill", "kill NODE"),
            ("kill n1 n2", "kill NODE"),
            ("put a", "put KEY VALUE"),
            ("command q counter a {", "command QUOTA MODULE KEY JSON"),
            ("query q counter a", "query QUOTA MODULE KEY JSON"),
            ("count", "count N"),
            ("bench 0", "bench SECONDS"),
            ("bench 1 1025", "bench SECONDS"),
            ("stat n1", "stat"),
            ("drain", "drain NODE"),
        ];
        for (line, expected) in rows {
            match parse(line) {
                Err(ParseError::Usage { usage, given }) => {
                    assert!(usage.starts_with(expected), "{line}: {usage}");
                    assert_eq!(given, line);
                }
                other => panic!("{line}: {other:?}"),
            }
        }
        let unknown = parse("fil 3").unwrap_err();
        assert_eq!(unknown.to_string(), "no command is named \"fil\": `help` lists them");
    }

    #[test]
    fn help_names_every_command() {
        let names = "help stat fill check kill start pause resume add drain remove put get command query \
                     groups shards agents bench count quit";
        for name in names.split_whitespace() {
            let words = HELP.split(|c: char| !c.is_ascii_alphabetic());
            assert!(words.into_iter().any(|word| word == name), "{name}");
            assert!(!matches!(parse(name), Err(ParseError::Unknown { .. })), "{name}");
        }
    }
}
