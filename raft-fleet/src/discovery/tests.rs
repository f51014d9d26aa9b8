//! Looks at what there is, and at what is not.

use super::*;

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn list(seeds: &[&str]) -> SeedList {
    SeedList::new(seeds.iter().map(|seed| seed.parse().unwrap()))
}

#[tokio::test]
async fn addresses_are_as_given_and_hosts_are_looked_up() {
    let found = list(&["127.0.0.1:3", "localhost:1", "127.0.0.1:3"]).find().await;
    assert_eq!(found.problems, []);
    assert_eq!(found.seeds[0], at(3), "in the order of the list");
    assert!(found.seeds[1..].iter().all(|seed| seed.ip().is_loopback() && seed.port() == 1), "{found:?}");
    assert!(found.seeds.len() > 1 && !found.seeds[1..].contains(&found.seeds[0]), "each once: {found:?}");
}

#[tokio::test]
async fn what_is_not_found_hides_nothing_else() {
    let nobody = SeedList::with_name_servers(list(&["nobody.invalid:1", "_db._udp.invalid", "127.0.0.1:3"]), vec![]);
    let found = nobody.find().await;
    assert_eq!(found.seeds, [at(3)]);
    let told: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("nobody.invalid") && told[1].contains("_db._udp.invalid"), "{told:?}");
}

#[tokio::test]
async fn seeds_are_bounded_and_what_is_left_out_is_told() {
    let seeds: Vec<Seed> =
        (0..MAX_SEEDS as u16 + 7).map(|at| format!("127.0.0.1:{}", at + 1).parse().unwrap()).collect();
    let found = SeedList::new(seeds).find().await;
    assert_eq!(found.seeds.len(), MAX_SEEDS);
    assert_eq!(found.problems, [DiscoveryError::TooMany { found: MAX_SEEDS + 7, used: MAX_SEEDS }]);
    let both = Found::of_all(vec![found.clone(), Found { seeds: vec![([127, 0, 0, 2], 1).into()], problems: vec![] }]);
    assert_eq!(both.seeds, found.seeds);
    assert_eq!(both.problems.len(), 2);
}
