//! A queue of jobs over three processes: run it as `queue n1`, `queue n2` and `queue n3`.
//! Lines typed into any of them are pushed; an empty line pops. A second argument gives other ports than 7301 to 7303.

use std::collections::VecDeque;
use std::io::BufRead;
use std::net::SocketAddr;

use batched_comm::{Endpoint, Identity};
use rafted_value::{Replica, Store, Value, messages};

messages! {
    /// Jobs that wait, oldest first.
    #[derive(Default)]
    struct Queue { items: VecDeque<String> }
    /// What changes it.
    enum Command { Push(String), Pop }
}

impl Value for Queue {
    type Command = Command;
    type Reply = Option<String>;
    type Query = ();
    type Answer = u64;

    fn command(&mut self, command: Command) -> Option<String> {
        match command {
            Command::Push(item) => {
                self.items.push_back(item);
                None
            }
            Command::Pop => self.items.pop_front(),
        }
    }

    fn query(&self, (): ()) -> u64 {
        self.items.len() as u64
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).ok_or("give a name: n1, n2 or n3")?;
    let ports: u16 = std::env::args().nth(2).map_or(Ok(7300), |below| below.parse())?;
    let address = |n: u16| SocketAddr::from(([127, 0, 0, 1], ports + n));
    let own: u16 = name.strip_prefix('n').and_then(|n| n.parse().ok()).ok_or("the names are n1, n2, n3")?;
    let endpoint = Endpoint::bind(address(own), Identity::dev("queue-data/tls", &name)?).await?;
    let store = Store::open(format!("queue-data/{name}"), &name).await?;
    let queue = Replica::<Queue>::builder("jobs")
        .member("n1", address(1))
        .member("n2", address(2))
        .member("n3", address(3))
        .start(&store, &endpoint)
        .await?;
    println!("type a line to push it, an empty one to pop");
    let (lines, mut typed) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        std::io::stdin().lock().lines().map_while(Result::ok).try_for_each(|line| lines.blocking_send(line)).ok();
    });
    while let Some(line) = typed.recv().await {
        let command = if line.is_empty() { Command::Pop } else { Command::Push(line) };
        match queue.command(command).await {
            Ok(popped) => println!("{popped:?}"),
            Err(error) => println!("{error}"),
        }
        match queue.query(()).await {
            Ok(count) => println!("{count} waiting"),
            Err(error) => println!("{error}"),
        }
    }
    queue.shutdown().await;
    store.close().await;
    endpoint.shutdown().await;
    Ok(())
}
