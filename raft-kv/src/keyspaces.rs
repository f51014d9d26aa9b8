//! The value of the `keyspaces` group: which keyspaces there are, how they are cut, and which workflows run.
//!
//! ```text
//!   Create --> Creating ----registered----> Serving
//!                 |                            |
//!                 +---- Delete ----+---Delete--+
//!                                  v
//!                              Deleting --deregistered--> forgotten
//! ```
//!
//! A keyspace's id is the log index of the command that created it, so that no id, and no name of a group made
//! from it, is ever used again. A keyspace that is being deleted has no name any more: the name is free at
//! once for another one.

use std::collections::BTreeMap;

use rafted_value::{Context, LogTime, Value};

use crate::hash::HashRange;
use crate::policy::Policy;
use crate::shard::ShardId;
use crate::workflow::{Deregistration, Effect, Next, Registration};

/// The keyspaces that there can be at once.
pub const MAX_KEYSPACES: usize = 1_024;

rafted_value::messages! {
    /// Which keyspaces there are.
    #[derive(Default)]
    pub struct Keyspaces {
        /// Raised by every change that a table of shards must follow.
        revision: u64,
        /// The highest id that was given to a keyspace.
        last_id: u64,
        by_id: BTreeMap<u64, KeyspaceRecord>,
    }

    /// One keyspace.
    pub struct KeyspaceRecord {
        /// Its name, which no other keyspace has that is not being deleted.
        pub name: String,
        /// The type of its values.
        pub type_name: String,
        /// How it is cut.
        pub policy: Policy,
        /// Its shards by number, which together own every key.
        pub shards: BTreeMap<u64, HashRange>,
        /// Where it is in its life.
        pub state: KeyspaceState,
    }

    /// Where a keyspace is in its life.
    #[derive(Eq)]
    pub enum KeyspaceState {
        /// Its shards do not serve yet.
        Creating(Registration),
        /// Its shards serve.
        Serving,
        /// It is gone for its users, its groups go.
        Deleting(Deregistration),
    }

    /// What changes the keyspaces.
    pub enum KeyspacesCommand {
        /// A new keyspace.
        Create {
            /// Its name.
            name: String,
            /// The type of its values.
            type_name: String,
            /// How it is cut.
            policy: Policy,
        },
        /// Another policy for a keyspace.
        SetPolicy {
            /// Its name.
            name: String,
            /// How it is cut from now on.
            policy: Policy,
        },
        /// A keyspace goes.
        Delete {
            /// Its name.
            name: String,
        },
        /// A driver has carried out an effect.
        Done {
            /// The keyspace's id.
            keyspace: u64,
            /// The effect.
            effect: Effect,
        },
    }

    /// What the keyspaces answer to a command.
    pub enum KeyspacesReply {
        /// It is done, or on its way.
        Accepted {
            /// The keyspace's id.
            id: u64,
        },
        /// There is one of this name.
        AlreadyExists {
            /// Its id.
            id: u64,
            /// The type of its values.
            type_name: String,
        },
        /// There is none of this name.
        NotFound,
        /// There are [`MAX_KEYSPACES`].
        TooMany,
        /// The policy asks for what cannot be changed yet.
        Fixed {
            /// Which setting.
            setting: FixedSetting,
            /// What it is.
            present: u32,
        },
        /// A driver's report was taken.
        Noted,
    }

    /// What is fixed when a keyspace is created, so far.
    #[derive(Copy, Eq)]
    pub enum FixedSetting {
        /// The number of shards must stay within the policy.
        Shards,
        /// The number of replicas.
        Replicas,
    }

    /// What reads the keyspaces.
    pub enum KeyspacesQuery {
        /// Everything, if anything has changed.
        Since {
            /// The revision that the reader has; 0 for none.
            revision: u64,
        },
        /// Whether the shards of a keyspace answer no more.
        IsClosed {
            /// The keyspace's id.
            id: u64,
        },
    }

    /// What the keyspaces answer to a query.
    pub enum KeyspacesAnswer {
        /// The reader has the latest revision.
        Unchanged,
        /// Everything that is not being deleted.
        Table(Table),
        /// Whether it was deleted, and its shards answer no more.
        Closed(bool),
    }

    /// The keyspaces that are not being deleted, as of a revision.
    #[derive(Default)]
    pub struct Table {
        /// Of two tables, the one with the higher revision is newer.
        pub revision: u64,
        /// By id.
        pub keyspaces: BTreeMap<u64, KeyspaceRecord>,
    }
}

impl Value for Keyspaces {
    type Command = KeyspacesCommand;
    type Reply = KeyspacesReply;
    type Query = KeyspacesQuery;
    type Answer = KeyspacesAnswer;

    /// As [`Value::command_in`] at the beginning of time.
    fn command(&mut self, command: KeyspacesCommand) -> KeyspacesReply {
        self.command_in(&Context::new(LogTime::default(), 0, None), command)
    }

    fn command_in(&mut self, context: &Context<'_>, command: KeyspacesCommand) -> KeyspacesReply {
        match command {
            KeyspacesCommand::Create { name, type_name, policy } => self.create(context, name, type_name, policy),
            KeyspacesCommand::SetPolicy { name, policy } => self.set_policy(&name, policy),
            KeyspacesCommand::Delete { name } => self.delete(&name),
            KeyspacesCommand::Done { keyspace, effect } => self.done(keyspace, effect),
        }
    }

    fn query(&self, query: KeyspacesQuery) -> KeyspacesAnswer {
        match query {
            KeyspacesQuery::Since { revision } if revision == self.revision => KeyspacesAnswer::Unchanged,
            KeyspacesQuery::Since { .. } => {
                let named = self.by_id.iter().filter(|(_, keyspace)| keyspace.is_named());
                let keyspaces = named.map(|(&id, keyspace)| (id, keyspace.clone())).collect();
                KeyspacesAnswer::Table(Table { revision: self.revision, keyspaces })
            }
            KeyspacesQuery::IsClosed { id } => KeyspacesAnswer::Closed(self.is_closed(id)),
        }
    }
}

impl Keyspaces {
    /// What is to be done now, by the id of the keyspace; in any order.
    pub fn effects(&self) -> Vec<(u64, Effect)> {
        let effects = |(&id, keyspace): (&u64, &KeyspaceRecord)| {
            let effects: Vec<Effect> = match &keyspace.state {
                KeyspaceState::Creating(workflow) => workflow.effects().collect(),
                KeyspaceState::Serving => Vec::new(),
                KeyspaceState::Deleting(workflow) => workflow.effects().collect(),
            };
            effects.into_iter().map(move |effect| (id, effect)).collect::<Vec<_>>()
        };
        self.by_id.iter().flat_map(effects).collect()
    }

    /// The keyspace of this id, also while it is being deleted.
    pub fn get(&self, id: u64) -> Option<&KeyspaceRecord> {
        self.by_id.get(&id)
    }

    /// Whether the shard was forgotten with its keyspace: a group of this name was left over by a driver that
    /// was late.
    pub fn is_forgotten(&self, shard: ShardId) -> bool {
        shard.keyspace <= self.last_id && !self.by_id.contains_key(&shard.keyspace)
    }

    fn is_closed(&self, id: u64) -> bool {
        let Some(keyspace) = self.by_id.get(&id) else { return id <= self.last_id };
        matches!(keyspace.state, KeyspaceState::Deleting(Deregistration::Groups { .. }))
    }

    fn create(&mut self, context: &Context<'_>, name: String, type_name: String, policy: Policy) -> KeyspacesReply {
        if let Some((id, keyspace)) = self.find(&name) {
            return KeyspacesReply::AlreadyExists { id, type_name: keyspace.type_name.clone() };
        }
        if self.by_id.len() >= MAX_KEYSPACES {
            return KeyspacesReply::TooMany;
        }
        // The index only grows; the other one is for a value that runs outside a group.
        let id = context.index().max(self.last_id + 1);
        self.last_id = id;
        let shards: BTreeMap<u64, HashRange> = (0..).zip(HashRange::divide(*policy.shards().start())).collect();
        let state = Registration::first(shards.keys().copied()).map_or(KeyspaceState::Serving, KeyspaceState::Creating);
        self.by_id.insert(id, KeyspaceRecord { name, type_name, policy, shards, state });
        self.revision += 1;
        KeyspacesReply::Accepted { id }
    }

    fn set_policy(&mut self, name: &str, policy: Policy) -> KeyspacesReply {
        let Some((id, _)) = self.find(name) else { return KeyspacesReply::NotFound };
        let Some(keyspace) = self.by_id.get_mut(&id) else { return KeyspacesReply::NotFound };
        // At most `MAX_SHARDS`.
        let present = keyspace.shards.len() as u32;
        if !policy.shards().contains(&present) {
            return KeyspacesReply::Fixed { setting: FixedSetting::Shards, present };
        }
        let replicas = keyspace.policy.replicas();
        if policy.replicas() != replicas {
            return KeyspacesReply::Fixed { setting: FixedSetting::Replicas, present: replicas };
        }
        keyspace.policy = policy;
        self.revision += 1;
        KeyspacesReply::Accepted { id }
    }

    fn delete(&mut self, name: &str) -> KeyspacesReply {
        let Some((id, keyspace)) = self.find(name) else { return KeyspacesReply::NotFound };
        let first = Deregistration::first(keyspace.shards.keys().copied());
        match (first, self.by_id.get_mut(&id)) {
            (Some(first), Some(keyspace)) => keyspace.state = KeyspaceState::Deleting(first),
            _ => drop(self.by_id.remove(&id)),
        }
        self.revision += 1;
        KeyspacesReply::Accepted { id }
    }

    fn done(&mut self, id: u64, effect: Effect) -> KeyspacesReply {
        let Some(keyspace) = self.by_id.get_mut(&id) else { return KeyspacesReply::Noted };
        let all = keyspace.shards.keys().copied();
        match keyspace.state.clone() {
            KeyspaceState::Serving => {}
            KeyspaceState::Creating(workflow) => match workflow.next(effect, all) {
                Next::Goes(next) => keyspace.state = KeyspaceState::Creating(next),
                Next::Ends => {
                    keyspace.state = KeyspaceState::Serving;
                    self.revision += 1;
                }
            },
            KeyspaceState::Deleting(workflow) => match workflow.next(effect, all) {
                Next::Goes(next) => keyspace.state = KeyspaceState::Deleting(next),
                Next::Ends => drop(self.by_id.remove(&id)),
            },
        }
        KeyspacesReply::Noted
    }

    fn find(&self, name: &str) -> Option<(u64, &KeyspaceRecord)> {
        let named = |(&id, keyspace)| {
            Some((id, keyspace))
                .filter(|(_, keyspace): &(u64, &KeyspaceRecord)| keyspace.is_named() && keyspace.name == name)
        };
        self.by_id.iter().find_map(named)
    }
}

impl KeyspaceRecord {
    /// Whether its name is taken: until it is deleted.
    fn is_named(&self) -> bool {
        !matches!(self.state, KeyspaceState::Deleting(_))
    }
}

impl ShardId {
    /// The name of the shard's group.
    pub fn group(self) -> String {
        format!("{GROUP_PREFIX}{}.{}", self.keyspace, self.shard)
    }

    /// The shard of a group; `None` when the group is none of a shard.
    pub fn of_group(name: &str) -> Option<Self> {
        let (keyspace, shard) = name.strip_prefix(GROUP_PREFIX)?.split_once('.')?;
        let id = Self { keyspace: keyspace.parse().ok()?, shard: shard.parse().ok()? };
        // "kv.01.2" and "kv.+1.2" are none of ours.
        (id.group() == name).then_some(id)
    }
}

const GROUP_PREFIX: &str = "kv.";

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::expect;

    use super::*;

    fn at(keyspaces: &mut Keyspaces, index: u64, command: KeyspacesCommand) -> KeyspacesReply {
        keyspaces.command_in(&Context::new(LogTime::default(), index, None), command)
    }

    fn policy(shards: u32) -> Policy {
        Policy::new().with_shards(shards..=shards).unwrap()
    }

    fn create(name: &str, shards: u32) -> KeyspacesCommand {
        KeyspacesCommand::Create { name: name.into(), type_name: "blob".into(), policy: policy(shards) }
    }

    fn delete(name: &str) -> KeyspacesCommand {
        KeyspacesCommand::Delete { name: name.into() }
    }

    fn set_policy(name: &str, shards: u32) -> KeyspacesCommand {
        KeyspacesCommand::SetPolicy { name: name.into(), policy: policy(shards) }
    }

    fn table(keyspaces: &Keyspaces) -> Table {
        match keyspaces.query(KeyspacesQuery::Since { revision: 0 }) {
            KeyspacesAnswer::Table(table) => table,
            _ => Table::default(),
        }
    }

    /// Carries out every effect until there is none.
    fn drive(keyspaces: &mut Keyspaces) -> Vec<(u64, Effect)> {
        let mut done = Vec::new();
        while let Some(&(keyspace, effect)) = keyspaces.effects().first() {
            assert_eq!(at(keyspaces, 0, KeyspacesCommand::Done { keyspace, effect }), KeyspacesReply::Noted);
            done.push((keyspace, effect));
        }
        done
    }

    fn describe(keyspaces: &Keyspaces) -> String {
        let mut text = format!("revision {}", keyspaces.revision);
        for (id, keyspace) in &keyspaces.by_id {
            let state = format!("{:?}", keyspace.state);
            let state = state.split(['(']).next().unwrap();
            write!(text, "; {id} {} {state} x{}", keyspace.name, keyspace.shards.len()).unwrap();
        }
        text
    }

    #[test]
    fn the_life_of_keyspaces() {
        let mut keyspaces = Keyspaces::default();
        let mut story = String::new();
        let script = [
            (3, Some(create("a", 2))),
            (4, Some(create("a", 3))),
            (5, Some(create("b", 1))),
            (6, None),
            (7, Some(set_policy("a", 2))),
            (8, Some(set_policy("a", 3))),
            (9, Some(set_policy("c", 3))),
            (10, Some(delete("c"))),
            (11, Some(delete("a"))),
            (12, Some(delete("a"))),
            (13, Some(create("a", 1))),
            (14, Some(delete("a"))),
            (15, None),
        ];
        for (index, command) in script {
            match command {
                None => writeln!(story, "{index}: drive {:?}", drive(&mut keyspaces)).unwrap(),
                Some(command) => {
                    let label = match &command {
                        KeyspacesCommand::Create { name, .. } => format!("create {name}"),
                        KeyspacesCommand::SetPolicy { name, .. } => format!("set policy of {name}"),
                        KeyspacesCommand::Delete { name } => format!("delete {name}"),
                        KeyspacesCommand::Done { .. } => "done".into(),
                    };
                    let reply = at(&mut keyspaces, index, command);
                    writeln!(story, "{index}: {label} -> {reply:?}").unwrap();
                }
            }
            writeln!(story, "    {}", describe(&keyspaces)).unwrap();
        }
        expect![[r#"
            3: create a -> Accepted { id: 3 }
                revision 1; 3 a Creating x2
            4: create a -> AlreadyExists { id: 3, type_name: "blob" }
                revision 1; 3 a Creating x2
            5: create b -> Accepted { id: 5 }
                revision 2; 3 a Creating x2; 5 b Creating x1
            6: drive [(3, CreateGroup(0)), (3, CreateGroup(1)), (3, OpenShard(0)), (3, OpenShard(1)), (5, CreateGroup(0)), (5, OpenShard(0))]
                revision 4; 3 a Serving x2; 5 b Serving x1
            7: set policy of a -> Accepted { id: 3 }
                revision 5; 3 a Serving x2; 5 b Serving x1
            8: set policy of a -> Fixed { setting: Shards, present: 2 }
                revision 5; 3 a Serving x2; 5 b Serving x1
            9: set policy of c -> NotFound
                revision 5; 3 a Serving x2; 5 b Serving x1
            10: delete c -> NotFound
                revision 5; 3 a Serving x2; 5 b Serving x1
            11: delete a -> Accepted { id: 3 }
                revision 6; 3 a Deleting x2; 5 b Serving x1
            12: delete a -> NotFound
                revision 6; 3 a Deleting x2; 5 b Serving x1
            13: create a -> Accepted { id: 13 }
                revision 7; 3 a Deleting x2; 5 b Serving x1; 13 a Creating x1
            14: delete a -> Accepted { id: 13 }
                revision 8; 3 a Deleting x2; 5 b Serving x1; 13 a Deleting x1
            15: drive [(3, CloseShard(0)), (3, CloseShard(1)), (3, RemoveGroup(0)), (3, RemoveGroup(1)), (13, CloseShard(0)), (13, RemoveGroup(0))]
                revision 8; 5 b Serving x1
        "#]].assert_eq(&story);
    }

    #[test]
    fn a_deleted_keyspace_is_closed_when_its_last_shard_is() {
        let mut keyspaces = Keyspaces::default();
        at(&mut keyspaces, 3, create("a", 2));
        let closed = |keyspaces: &Keyspaces, id| keyspaces.query(KeyspacesQuery::IsClosed { id });
        let is = KeyspacesAnswer::Closed;
        drive(&mut keyspaces);
        assert_eq!(closed(&keyspaces, 3), is(false));
        at(&mut keyspaces, 4, delete("a"));
        for (effect, expected) in [
            (Effect::CloseShard(0), false),
            (Effect::CloseShard(1), true),
            (Effect::RemoveGroup(0), true),
            (Effect::RemoveGroup(1), true),
        ] {
            at(&mut keyspaces, 0, KeyspacesCommand::Done { keyspace: 3, effect });
            assert_eq!(closed(&keyspaces, 3), is(expected), "{effect:?}");
        }
        assert_eq!(closed(&keyspaces, 4), is(false), "never heard of");
    }

    #[test]
    fn effects_that_nobody_waits_for_change_nothing() {
        let mut keyspaces = Keyspaces::default();
        at(&mut keyspaces, 3, create("a", 2));
        drive(&mut keyspaces);
        at(&mut keyspaces, 50, create("b", 2));
        let before = keyspaces.clone();
        for (keyspace, effect) in [
            (3, Effect::CreateGroup(0)),
            (3, Effect::RemoveGroup(0)),
            (50, Effect::OpenShard(0)),
            (50, Effect::CreateGroup(2)),
            (4, Effect::CreateGroup(0)),
        ] {
            at(&mut keyspaces, 60, KeyspacesCommand::Done { keyspace, effect });
            assert_eq!(keyspaces, before, "{effect:?} of {keyspace}");
        }
    }

    #[test]
    fn a_reader_gets_the_table_only_when_it_changed() {
        let mut keyspaces = Keyspaces::default();
        assert_eq!(table(&keyspaces), Table::default());
        at(&mut keyspaces, 3, create("a", 2));
        drive(&mut keyspaces);
        let first = table(&keyspaces);
        assert_eq!(first.keyspaces[&3].state, KeyspaceState::Serving);
        let since = KeyspacesQuery::Since { revision: first.revision };
        assert_eq!(keyspaces.query(since.clone()), KeyspacesAnswer::Unchanged);
        at(&mut keyspaces, 4, delete("a"));
        assert!(matches!(keyspaces.query(since), KeyspacesAnswer::Table(table) if table.keyspaces.is_empty()));
    }

    #[test]
    fn only_shards_of_forgotten_keyspaces_are_forgotten() {
        let mut keyspaces = Keyspaces::default();
        at(&mut keyspaces, 3, create("a", 1));
        at(&mut keyspaces, 5, create("b", 1));
        at(&mut keyspaces, 6, delete("a"));
        let forgotten = |keyspaces: &Keyspaces, keyspace| keyspaces.is_forgotten(ShardId { keyspace, shard: 0 });
        assert!(!forgotten(&keyspaces, 3), "its workflow removes it");
        drive(&mut keyspaces);
        assert!(forgotten(&keyspaces, 3) && forgotten(&keyspaces, 4));
        assert!(!forgotten(&keyspaces, 5));
        assert!(!forgotten(&keyspaces, 6), "perhaps this replica has not heard of it yet");
    }

    #[test]
    fn groups_are_named_by_numbers() {
        let id = ShardId { keyspace: 12, shard: 3 };
        assert_eq!(id.group(), "kv.12.3");
        assert_eq!(ShardId::of_group("kv.12.3"), Some(id));
        for other in ["kv.keyspaces", "kv.12", "kv.012.3", "kv.12.+3", "kv.12.3.4", "other", "kv.12.", "xkv.1.2"] {
            assert_eq!(ShardId::of_group(other), None, "{other}");
        }
    }
}
