//! Two nodes in one process: one calls the other's mailbox from many tasks, and the batches are counted.
//!
//!     cargo run -p batched-comm --example echo

use std::time::{Duration, Instant};

use batched_comm::{Address, Endpoint, Identity, Message, Request, rkyv};
use tokio::task::JoinSet;

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(crate = rkyv)]
struct Echo {
    number: u64,
}

impl Message for Echo {
    const TYPE: u32 = 1;
}

impl Request for Echo {
    type Reply = u64;
}

const CALLERS: u64 = 256;
const CALLS: u64 = 200;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ca = Identity::in_memory_ca()?;
    let address = "127.0.0.1:0".parse()?;
    let server = Endpoint::bind(address, ca.issue("server")?).await?;
    let client = Endpoint::bind(address, ca.issue("client")?).await?;

    let mut mailbox = server.typed_mailbox::<Echo>("echo", 10_000)?;
    tokio::spawn(async move {
        while let Some((_from, echo, reply)) = mailbox.recv().await {
            // A caller that is gone needs no answer.
            let _ = reply.reply(&echo.number);
        }
    });

    let name = client.probe(server.local_address(), Duration::from_secs(5)).await?;
    let to = Address::new(&name, "echo")?;
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (client, to) = (client.clone(), to.clone());
        callers.spawn(async move {
            for n in 0..CALLS {
                let number = caller * CALLS + n;
                let answer = client.call(&to, &Echo { number }, Duration::from_secs(10)).await?;
                assert_eq!(answer, number);
            }
            Ok::<_, batched_comm::CallError>(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    let elapsed = start.elapsed();
    let peers = client.peers();
    let traffic = peers.first().map(|peer| peer.traffic).unwrap_or_default();
    println!(
        "{} calls in {elapsed:?}: {:.0} calls/s, {:.1} messages per batch",
        CALLERS * CALLS,
        (CALLERS * CALLS) as f64 / elapsed.as_secs_f64(),
        traffic.messages_sent as f64 / traffic.batches_sent.max(1) as f64,
    );
    client.shutdown().await;
    server.shutdown().await;
    Ok(())
}
