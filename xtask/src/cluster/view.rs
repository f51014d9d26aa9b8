//! What the cluster tells about itself -> rows: pure functions over the JSON of `/v1`.

use std::collections::BTreeMap;

use serde_json::Value;

/// Nodes, groups and shards of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The cluster's own word for each node's state, by name.
    pub node_states: BTreeMap<String, String>,
    pub groups: Vec<Group>,
    pub shards: Vec<Shard>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub leader: Option<String>,
    pub replicas: Vec<String>,
    pub state: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    pub keyspace: String,
    pub group: String,
    pub lower: String,
    pub upper: String,
    pub keys: u64,
    pub phase: String,
}

/// What one node holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub replicas: u64,
    pub leaders: u64,
    /// Shards of keyspaces other than the agents'.
    pub shards_led: u64,
    /// Keys other than agents.
    pub keys_led: u64,
    pub agents_led: u64,
}

/// The keyspace in which agents live.
pub const AGENTS: &str = "agents";

impl View {
    /// From the arrays of `/v1/nodes` and `/v1/groups`, and of each keyspace's shards.
    pub fn new(nodes: &[Value], groups: &[Value], shards: &[(String, Vec<Value>)]) -> View {
        let node_states = nodes.iter().map(|node| (text(node, "name"), text(node, "state")));
        let shards = shards.iter().flat_map(|(keyspace, shards)| {
            shards.iter().map(move |shard| Shard {
                keyspace: keyspace.clone(),
                group: text(shard, "group"),
                lower: text(shard, "lower"),
                upper: text(shard, "upper"),
                keys: shard["keys"].as_u64().unwrap_or(0),
                phase: text(shard, "phase"),
            })
        });
        View {
            node_states: node_states.collect(),
            groups: groups.iter().map(group).collect(),
            shards: shards.collect(),
        }
    }

    /// What a node holds.
    pub fn load(&self, node: &str) -> Load {
        let mut load = Load::default();
        for group in &self.groups {
            load.replicas += u64::from(group.replicas.iter().any(|replica| replica == node));
            load.leaders += u64::from(group.leader.as_deref() == Some(node));
        }
        for shard in &self.shards {
            if self.leader(&shard.group) != Some(node) {
                continue;
            }
            if shard.keyspace == AGENTS {
                load.agents_led += shard.keys;
            } else {
                load.shards_led += 1;
                load.keys_led += shard.keys;
            }
        }
        load
    }

    /// The leader of a group, where it has one.
    pub fn leader(&self, group: &str) -> Option<&str> {
        self.groups.iter().find(|one| one.name == group).and_then(|one| one.leader.as_deref())
    }
}

/// The names in the array of `/v1/keyspaces`: texts, or objects that carry one.
pub fn keyspace_names(keyspaces: &[Value]) -> Vec<String> {
    let name = |keyspace: &Value| match keyspace {
        Value::String(name) => Some(name.clone()),
        other => ["keyspace", "name"].iter().find_map(|field| other[*field].as_str()).map(str::to_owned),
    };
    keyspaces.iter().filter_map(name).collect()
}

fn group(group: &Value) -> Group {
    let replicas = group["replicas"].as_array().map(Vec::as_slice).unwrap_or_default();
    Group {
        name: text(group, "name"),
        leader: group["leader"].as_str().map(str::to_owned),
        replicas: replicas.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        state: text(group, "state"),
    }
}

/// A field as people read it; a dash where there is none.
pub fn text(value: &Value, field: &str) -> String {
    match &value[field] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view() -> View {
        let nodes = [json!({"name": "n1", "state": "active"}), json!({"name": "n2", "state": "suspect"})];
        let groups = [
            json!({"name": "cluster", "leader": "n1", "replicas": ["n1", "n2"], "state": "active"}),
            json!({"name": "demo-1", "leader": "n2", "replicas": ["n1", "n2"], "state": "active"}),
            json!({"name": "demo-2", "leader": null, "replicas": ["n1"], "state": "leaderless"}),
            json!({"name": "agents-1", "leader": "n2", "replicas": ["n2"], "state": "hibernating"}),
        ];
        let demo = vec![
            json!({"group": "demo-1", "lower": 0, "upper": 7, "keys": 40, "phase": "serving"}),
            json!({"group": "demo-2", "lower": 8, "upper": 15, "keys": 60}),
        ];
        let agents = vec![json!({"group": "agents-1", "keys": 5})];
        View::new(&nodes, &groups, &[("demo".into(), demo), (AGENTS.into(), agents)])
    }

    #[test]
    fn a_nodes_load_is_what_its_groups_hold() {
        let view = view();
        let n1 = Load { replicas: 3, leaders: 1, ..Load::default() };
        assert_eq!(view.load("n1"), n1);
        let n2 = Load { replicas: 3, leaders: 2, shards_led: 1, keys_led: 40, agents_led: 5 };
        assert_eq!(view.load("n2"), n2);
        assert_eq!(view.load("n3"), Load::default());
        assert_eq!(view.node_states["n2"], "suspect");
        assert_eq!(view.leader("demo-2"), None);
    }

    #[test]
    fn what_is_missing_is_a_dash() {
        let view = view();
        assert_eq!(view.shards[0].lower, "0");
        assert_eq!(view.shards[1].phase, "-");
    }

    #[test]
    fn keyspaces_are_names_or_carry_one() {
        let array = [json!("a"), json!({"name": "b"}), json!({"keyspace": "c", "name": "x"}), json!(4)];
        assert_eq!(keyspace_names(&array), ["a", "b", "c"]);
    }
}
