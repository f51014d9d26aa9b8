//! Nodes that find a running cluster by what they were told, and that say so where they do not.

use crate::support::{Cluster, free_udp};

#[test]
fn a_node_joins_by_a_host_name() {
    let cluster = Cluster::start(1, true, &[]);
    let first = cluster.nodes[0].argument_after("--listen");
    let (_, port) = first.rsplit_once(':').unwrap();
    let mut joiner = cluster.joiner("n2", &["--seed", &format!("localhost:{port}")]);
    joiner.start();
    joiner.wait_until_ready();
}

#[test]
fn a_node_that_reaches_nobody_says_whom_it_tried_and_joins_when_its_file_of_seeds_is_right() {
    let cluster = Cluster::start(1, true, &[]);
    let file = cluster.directory().join("seeds");
    let dead = free_udp().to_string();
    let mut joiner = cluster.joiner("n2", &["--seed-file", file.to_str().unwrap(), "--seed", &dead]);
    joiner.start();
    joiner.wait_until_logged("seeds could not be found: the seeds' file");
    joiner.wait_until_logged(&format!("{dead} does not answer"));
    std::fs::write(&file, cluster.nodes[0].argument_after("--listen")).unwrap();
    joiner.wait_until_ready();
}
