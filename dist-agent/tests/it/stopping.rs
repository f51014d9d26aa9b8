//! What a node does when it is told to stop.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::{Cluster, until};

const BODY: &[u8] = b"{\"add\": 1}";

/// A command whose handler waits for its body.
struct OpenRequest(TcpStream);

impl OpenRequest {
    fn new(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let head = "POST /v1/agents/q/counter/open/command HTTP/1.1\r\nHost: node\r\nExpect: 100-continue\r\n";
        write!(stream, "{head}Content-Length: {}\r\n\r\n", BODY.len()).unwrap();
        let mut request = Self(stream);
        let answer = request.read();
        assert!(answer.starts_with("HTTP/1.1 100 "), "{answer}");
        request
    }

    fn finish(mut self) -> String {
        self.0.write_all(BODY).unwrap();
        self.read()
    }

    fn read(&mut self) -> String {
        let mut buffer = [0; 4_096];
        let length = self.0.read(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }
}

#[test]
fn open_requests_are_finished_and_a_second_signal_does_not_wait_for_them() {
    let mut cluster = Cluster::start(1, true, &[]);
    cluster.client(0).put_quota("q", "null");
    let client = cluster.client(0).clone();

    let open = OpenRequest::new(client.address);
    cluster.nodes[0].process().signal("TERM");
    until(Duration::from_secs(5), "nothing new is taken", || client.try_get("/readyz").is_none().then_some(()));
    let answer = open.finish();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("{\"reply\":1}"), "{answer}");
    assert!(cluster.nodes[0].process().wait(Duration::from_secs(10)).success());

    cluster.nodes[0].start();
    cluster.nodes[0].wait_until_ready();
    client.put_quota("q", "null");
    let _open = OpenRequest::new(client.address);
    cluster.nodes[0].process().signal("INT");
    until(Duration::from_secs(5), "nothing new is taken", || client.try_get("/readyz").is_none().then_some(()));
    let asked_again = Instant::now();
    cluster.nodes[0].process().signal("INT");
    assert_eq!(cluster.nodes[0].process().wait(Duration::from_secs(10)).code(), Some(1));
    assert!(asked_again.elapsed() < Duration::from_secs(3), "{:?}", asked_again.elapsed());
}
