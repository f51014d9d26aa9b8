//! Values for tests.

use raft_kv::{KeyedValue, Outcome};
use rafted_value::{Context, LogTime};

rafted_value::messages! {
    /// A list whose order shows in which order commands ran. Non-commutative on purpose.
    pub struct List { pub items: Vec<u32>, pub until: Option<u64> }

    pub enum ListCommand {
        /// Appends, and answers the length.
        Append(u32),
        /// Sets when the list is removed.
        Until(Option<u64>),
        /// Removes the list, and answers its last length.
        Clear,
        /// Answers the length.
        Look,
    }
}

impl KeyedValue for List {
    const NAME: &'static str = "list";
    type Command = ListCommand;
    type Reply = u64;
    type Query = ();
    type Answer = Vec<u32>;

    fn command(current: Option<&Self>, _key: &str, command: ListCommand) -> Outcome<Self, u64> {
        let mut list = current.cloned().unwrap_or(Self { items: Vec::new(), until: None });
        let length = list.items.len() as u64;
        match command {
            ListCommand::Append(item) => {
                list.items.push(item);
                Outcome::set(list, length + 1)
            }
            ListCommand::Until(until) => {
                list.until = until;
                Outcome::set(list, length)
            }
            ListCommand::Clear => Outcome::remove(length),
            ListCommand::Look => Outcome::keep(length),
        }
    }

    fn query(&self, _key: &str, (): ()) -> Vec<u32> {
        self.items.clone()
    }

    fn size(&self) -> u64 {
        self.items.len() as u64 * 4
    }

    fn deadline(&self) -> Option<LogTime> {
        self.until.map(LogTime::from_millis)
    }

    fn timeout(_: &Context<'_>, _: &Self, _key: &str) -> Outcome<Self, ()> {
        Outcome::remove(())
    }

    fn account(key: &str) -> Option<&str> {
        key.split_once('/').map(|(account, _)| account)
    }
}
