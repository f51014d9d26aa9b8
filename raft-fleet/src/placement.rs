//! Which nodes a group belongs on: rendezvous hashing (highest random weight: Thaler and Ravishankar,
//! 1998) over node names, zone after zone. Pure: the same names give the same places on every node, for ever.
//!
//! ```text
//! zone a:  n3  n1  n7      by weight, heaviest first
//! zone b:  n2  n8
//! zone c:  n9  n4  n5
//!          ^   ^   ^
//!     round 0  1   2       a round is sorted by weight, too; places are taken round after round
//! ```
//!
//! A node that joins or leaves changes at most one place of a group.

use std::collections::BTreeMap;

/// The first `count` places of a group, the preferred leader first; all nodes when there are fewer.
///
/// `nodes` are names with their zones. The first is the heaviest of all nodes, so that leaders spread
/// over nodes; the others spread over zones first.
pub(crate) fn place<'a>(
    group: &str,
    nodes: impl IntoIterator<Item = (&'a str, &'a str)>,
    count: usize,
) -> Vec<&'a str> {
    let mut zones: BTreeMap<&str, Vec<(u64, &'a str)>> = BTreeMap::new();
    for (name, zone) in nodes {
        zones.entry(zone).or_default().push((weight(group, name), name));
    }
    let mut places = Vec::new();
    for nodes in zones.values_mut() {
        nodes.sort_unstable_by(|a, b| b.cmp(a));
        places
            .extend(nodes.iter().enumerate().map(|(round, &(weight, name))| (round, std::cmp::Reverse(weight), name)));
    }
    places.sort_unstable();
    places.into_iter().take(count).map(|(_, _, name)| name).collect()
}

/// The weight of a node for a group: FNV-1a of 64 bits over `group 0xFF node`, then the 64-bit finalizer
/// of MurmurHash3, because FNV's high bits mix too little. 0xFF is in no UTF-8 text.
fn weight(group: &str, node: &str) -> u64 {
    let bytes = group.bytes().chain(std::iter::once(0xFF)).chain(node.bytes());
    let hash = bytes.fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME));
    let hash = (hash ^ (hash >> 33)).wrapping_mul(MURMUR_FIRST);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(MURMUR_SECOND);
    hash ^ (hash >> 33)
}

const FNV_OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01B3;
const MURMUR_FIRST: u64 = 0xFF51_AFD7_ED55_8CCD;
const MURMUR_SECOND: u64 = 0xC4CE_B9FE_1A85_EC53;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn nodes(count: usize, zones: usize) -> Vec<(String, String)> {
        (0..count).map(|i| (format!("n{i}"), format!("z{}", i % zones))).collect()
    }

    fn places(group: &str, nodes: &[(String, String)], count: usize) -> Vec<String> {
        let nodes = nodes.iter().map(|(name, zone)| (name.as_str(), zone.as_str()));
        place(group, nodes, count).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn the_weights_are_these() {
        assert_eq!(weight("", ""), 0x1BBD_5C81_3C69_A8D7);
        assert_eq!(weight("group1", "n1"), 0x5C10_5455_DC14_4B27);
    }

    #[test]
    fn the_places_are_these() {
        let table = [
            ("group1", "n0 n2 n1 n6 n4"),
            ("group2", "n6 n4 n5 n0 n1"),
            ("group3", "n1 n3 n2 n0 n5"),
            ("cluster", "n2 n6 n1 n3 n5"),
        ];
        for (group, expected) in table {
            assert_eq!(places(group, &nodes(7, 3), 5).join(" "), expected, "{group}");
        }
    }

    #[test]
    fn the_order_of_the_nodes_does_not_matter() {
        let forward = nodes(9, 4);
        let backward: Vec<_> = forward.iter().rev().cloned().collect();
        for group in 0..50 {
            let group = format!("g{group}");
            assert_eq!(places(&group, &forward, 5), places(&group, &backward, 5));
        }
    }

    #[test]
    fn a_count_beyond_the_nodes_takes_them_all() {
        assert_eq!(places("g", &nodes(4, 2), usize::MAX).len(), 4);
        assert!(places("g", &[], 3).is_empty());
    }

    #[test]
    fn replicas_spread_over_zones_first() {
        for (count, zones, replicas) in [(4, 2, 3), (9, 3, 3), (10, 5, 7), (7, 3, 5)] {
            let nodes = nodes(count, zones);
            for group in 0..200 {
                let chosen = places(&format!("g{group}"), &nodes, replicas);
                let mut per_zone: BTreeMap<&str, usize> = BTreeMap::new();
                for name in &chosen {
                    let zone = nodes.iter().find(|(n, _)| n == name).unwrap().1.as_str();
                    *per_zone.entry(zone).or_default() += 1;
                }
                let most = per_zone.values().max().unwrap();
                assert!(*most <= replicas.div_ceil(zones), "{chosen:?}");
            }
        }
    }

    #[test]
    fn a_join_moves_at_most_one_replica_of_a_group_and_only_its_share() {
        let groups = 2_000;
        for (count, zones, replicas) in [(4, 2, 3), (9, 3, 3), (12, 4, 5), (5, 1, 3), (6, 6, 5)] {
            let after = nodes(count + 1, zones);
            let before = &after[..count];
            let joined = &after[count].0;
            let mut moved = 0;
            for group in 0..groups {
                let group = format!("g{group}");
                let old: BTreeSet<_> = places(&group, before, replicas).into_iter().collect();
                let new: BTreeSet<_> = places(&group, &after, replicas).into_iter().collect();
                let added: Vec<_> = new.difference(&old).collect();
                assert!(added.is_empty() || added == [joined], "{group}: {old:?} -> {new:?}");
                assert!(old.difference(&new).count() <= 1);
                moved += added.len();
            }
            // Its share of the places in its zone; zones are of equal size but for one node.
            let zone_size = after.iter().filter(|(_, zone)| *zone == after[count].1).count();
            let share = (replicas as f64 / zones as f64 / zone_size as f64).min(1.0);
            let allowed = groups as f64 * share * 1.25 + 10.0;
            assert!((moved as f64) < allowed, "{count} nodes: {moved} moved, {allowed} allowed");
        }
    }

    #[test]
    fn leaders_spread_over_nodes() {
        let nodes = nodes(10, 3);
        let mut led: BTreeMap<String, usize> = BTreeMap::new();
        for group in 0..5_000 {
            *led.entry(places(&format!("g{group}"), &nodes, 3)[0].clone()).or_default() += 1;
        }
        assert_eq!(led.len(), 10);
        assert!(led.values().all(|&count| (400..600).contains(&count)), "{led:?}");
    }
}
