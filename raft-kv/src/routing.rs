//! Which group owns a key, as far as this node knows: a table that is read without a lock and replaced as a whole.
//! It may be old; the shards themselves say so, and then it is asked for again.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::hash::{HashRange, KeyHash};
use crate::keyspaces::{KeyspaceRecord, KeyspaceState, Table};
use crate::policy::Policy;
use crate::shard::ShardId;

/// The table of this node.
#[derive(Debug, Default)]
pub(crate) struct Routing {
    routes: ArcSwap<Routes>,
}

#[derive(Debug, Default)]
struct Routes {
    revision: u64,
    by_name: HashMap<String, Arc<Route>>,
}

/// One keyspace.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) type_name: String,
    pub(crate) policy: Policy,
    /// Whether its shards have been told what they own.
    pub(crate) is_serving: bool,
    /// By their ranges, in order.
    pub(crate) shards: Vec<RouteShard>,
}

/// One shard of a keyspace.
#[derive(Debug, Clone)]
pub(crate) struct RouteShard {
    pub(crate) range: HashRange,
    pub(crate) group: Arc<str>,
}

impl Routing {
    /// The keyspace of this name. `None`: this node has not heard of it, or it is gone.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Route>> {
        self.routes.load().by_name.get(name).cloned()
    }

    /// Every keyspace, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Route>> {
        let mut routes: Vec<Arc<Route>> = self.routes.load().by_name.values().cloned().collect();
        routes.sort_by(|a, b| a.name.cmp(&b.name));
        routes
    }

    /// How new the table is; 0 before the first one.
    pub(crate) fn revision(&self) -> u64 {
        self.routes.load().revision
    }

    /// Takes a newer table; an older one, which may arrive late, is dropped.
    pub(crate) fn install(&self, table: Table) {
        let revision = table.revision;
        let routes = table.keyspaces.into_iter().map(|(id, keyspace)| Arc::new(Route::new(id, keyspace)));
        let by_name = routes.map(|route| (route.name.clone(), route)).collect();
        let routes = Arc::new(Routes { revision, by_name });
        self.routes.rcu(|current| if current.revision < revision { routes.clone() } else { current.clone() });
    }
}

impl Route {
    fn new(id: u64, keyspace: KeyspaceRecord) -> Self {
        let shard = |(shard, range)| {
            let group = Arc::from(ShardId { keyspace: id, shard }.group());
            RouteShard { range, group }
        };
        let mut shards: Vec<RouteShard> = keyspace.shards.into_iter().map(shard).collect();
        shards.sort_by_key(|shard| shard.range);
        Self {
            id,
            name: keyspace.name,
            type_name: keyspace.type_name,
            policy: keyspace.policy,
            is_serving: keyspace.state == KeyspaceState::Serving,
            shards,
        }
    }

    /// The shard that owns the hash.
    pub(crate) fn shard(&self, hash: KeyHash) -> Option<&RouteShard> {
        let at = self.shards.partition_point(|shard| shard.range.upper() < hash);
        self.shards.get(at).filter(|shard| shard.range.contains(hash))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn keyspace(name: &str, ranges: Vec<HashRange>) -> KeyspaceRecord {
        KeyspaceRecord {
            name: name.into(),
            type_name: "blob".into(),
            policy: Policy::new(),
            shards: (0..).zip(ranges).collect(),
            state: KeyspaceState::Serving,
        }
    }

    fn table(revision: u64, names: &[&str]) -> Table {
        let keyspaces = names.iter().map(|name| keyspace(name, HashRange::divide(2)));
        Table { revision, keyspaces: (1..).zip(keyspaces).collect() }
    }

    fn names(routing: &Routing) -> Vec<String> {
        routing.all().iter().map(|route| route.name.clone()).collect()
    }

    #[test]
    fn every_hash_finds_the_shard_that_owns_it() {
        for count in [1, 2, 3, 7, 64] {
            let mut ranges = HashRange::divide(count);
            let borders: Vec<KeyHash> = ranges.iter().flat_map(|range| [range.lower(), range.upper()]).collect();
            // After a split, numbers do not follow ranges.
            ranges.reverse();
            let route = Route::new(5, keyspace("a", ranges));
            for hash in borders {
                let shard = route.shard(hash).unwrap();
                assert!(shard.range.contains(hash), "{hash} of {count}");
            }
        }
        let route = Route::new(5, keyspace("a", HashRange::divide(2)));
        assert_eq!(&*route.shard(KeyHash(0)).unwrap().group, "kv.5.0");
        assert_eq!(&*route.shard(KeyHash(u32::MAX)).unwrap().group, "kv.5.1");
    }

    #[test]
    fn a_hash_that_no_shard_owns_is_not_found() {
        let mut ranges = HashRange::divide(4);
        ranges.remove(1);
        let route = Route::new(5, keyspace("a", ranges.clone()));
        assert!(route.shard(KeyHash(ranges[0].upper().0 + 1)).is_none());
        assert!(route.shard(ranges[1].lower()).is_some());
        ranges.pop();
        assert!(Route::new(5, keyspace("a", ranges)).shard(KeyHash(u32::MAX)).is_none());
    }

    #[test]
    fn an_older_table_never_replaces_a_newer_one() {
        let routing = Routing::default();
        assert_eq!((routing.revision(), names(&routing)), (0, vec![]));
        routing.install(table(3, &["a", "b"]));
        routing.install(table(2, &["a"]));
        assert_eq!((routing.revision(), names(&routing)), (3, vec!["a".into(), "b".into()]));
        routing.install(Table { revision: 4, keyspaces: BTreeMap::new() });
        assert_eq!((routing.revision(), names(&routing)), (4, vec![]));
    }
}
