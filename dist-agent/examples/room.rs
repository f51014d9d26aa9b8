//! A node binary of one's own: a chat room as an agent. Run it with
//!
//! ```text
//! cargo run -p dist-agent --features node --example room -- node --name n1 --memory
//! curl -X PUT -d '{"limit": 100}' localhost:8101/v1/quotas/acme
//! curl -d '{"say": {"from": "ann", "text": "hi"}}' localhost:8101/v1/agents/acme/room/lobby/command
//! curl -d '{"since": 0}' localhost:8101/v1/agents/acme/room/lobby/query
//! ```

use std::process::ExitCode;

use dist_agent::{Agent, AgentId, Node, OnTick, Outcome, messages};

/// A room that is quiet for so many ticks, of a second each, is closed.
const QUIET_TICKS: u64 = 3_600;

/// A room keeps its last lines.
const MAX_LINES: usize = 100;

messages! {
    struct Room {
        first: u64,
        lines: Vec<String>,
    }

    enum RoomCommand {
        Say { from: String, text: String },
        Close,
    }

    enum RoomQuery {
        Since(u64),
    }
}

impl Agent for Room {
    const MODULE: &'static str = "room";
    type Command = RoomCommand;
    type Reply = u64;
    type Query = RoomQuery;
    type Answer = Vec<String>;

    /// Answers how many lines were said so far.
    fn handle_command(_: &AgentId, state: Option<&Self>, command: RoomCommand) -> Outcome<Self, u64> {
        let mut room = state.cloned().unwrap_or(Self { first: 0, lines: Vec::new() });
        match command {
            RoomCommand::Say { from, text } => room.lines.push(format!("{from}: {text}")),
            RoomCommand::Close => return Outcome::remove(room.first + room.lines.len() as u64),
        }
        if room.lines.len() > MAX_LINES {
            room.lines.remove(0);
            room.first += 1;
        }
        let said = room.first + room.lines.len() as u64;
        Outcome::set(room, said).on_tick(OnTick::Deactivate { ticks: QUIET_TICKS })
    }

    fn handle_query(&self, _: &AgentId, RoomQuery::Since(number): RoomQuery) -> Vec<String> {
        let skipped = number.saturating_sub(self.first);
        self.lines.iter().skip(usize::try_from(skipped).unwrap_or(usize::MAX)).cloned().collect()
    }
}

fn main() -> ExitCode {
    Node::builder().agent::<Room>().main()
}
