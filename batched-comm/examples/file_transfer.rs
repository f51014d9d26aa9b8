//! Sends a file to another process in bulk, with a progress bar on both sides.
//!
//!     cargo run -p batched-comm --example file_transfer -- receive 127.0.0.1:7201 DIRECTORY
//!     cargo run -p batched-comm --example file_transfer -- send FILE 127.0.0.1:7201 [MAX_MIB_PER_SECOND]
//!
//! The receiver goes on until Ctrl-C. It writes to a temporary name, compares length and SHA-256, syncs, and only
//! then gives the file its name. Ctrl-C on either side cancels the transfer on both: no half a file is left.
//!
//! A transfer's header is the file's length (u64, little endian) and its name; the 32 bytes after the file are its
//! SHA-256. The receiver's reply is empty when all is well, and else says what is wrong.
//!
//! Certificates are made in the directory `TLS_DIR`, or else in one below the system's directory for temporary
//! files: both processes must use the same.

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use batched_comm::{Address, BulkError, BulkReceiver, BulkSender, Endpoint, Identity};
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use tokio::task::block_in_place;
use tokio::time::sleep;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// The name under which the receiver listens.
const MAILBOX: &str = "files";
/// What is read from the file at once.
const CHUNK_BYTES: usize = 128 * 1024;
const LENGTH_BYTES: usize = 8;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often progress is shown.
const SHOW_INTERVAL: Duration = Duration::from_millis(100);
const BAR_WIDTH: u64 = 30;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["receive", listen, directory] => receive(listen, Path::new(directory)).await,
        ["send", file, to] => send(Path::new(file), to, None).await,
        ["send", file, to, rate] => match rate.parse::<f64>() {
            Ok(rate) if rate > 0.0 => send(Path::new(file), to, Some(rate)).await,
            _ => Err(format!("MAX_MIB_PER_SECOND is a number above 0, not {rate}").into()),
        },
        _ => Err("usage: file_transfer receive ADDRESS DIRECTORY | send FILE ADDRESS [MAX_MIB_PER_SECOND]".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn bind(name: &str, listen: SocketAddr) -> Fallible<Endpoint> {
    let dir = std::env::var_os("TLS_DIR").map_or_else(|| std::env::temp_dir().join("batched-comm-files"), Into::into);
    Ok(Endpoint::bind(listen, Identity::dev(dir, name)?).await?)
}

async fn send(path: &Path, to: &str, max_mib_per_second: Option<f64>) -> Fallible<()> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let name = path.file_name().and_then(|name| name.to_str()).ok_or("the file has no name that can be sent")?;
    let to: SocketAddr = to.parse()?;
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let own = SocketAddr::new(if to.ip().is_loopback() { to.ip() } else { any }, 0);
    let endpoint = bind("sender", own).await?;
    let sending = async {
        let receiver = endpoint.probe(to, CONNECT_TIMEOUT).await?;
        let length = file.metadata()?.len();
        let header = [&length.to_le_bytes(), name.as_bytes()].concat();
        let transfer = endpoint.open_bulk(&Address::new(&receiver, MAILBOX)?, &header).await?;
        send_file(transfer, file, length, max_mib_per_second).await
    };
    let sent = tokio::select! {
        sent = sending => sent,
        // Dropping the transfer cancels it.
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Into::into).and(Err("cancelled".into())),
    };
    endpoint.shutdown().await;
    sent
}

async fn send_file(mut transfer: BulkSender, mut file: File, length: u64, max_rate: Option<f64>) -> Fallible<()> {
    let mut progress = Progress::new(length);
    let mut hash = Context::new(&SHA256);
    while transfer.sent_bytes() < length {
        let left = length - transfer.sent_bytes();
        let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(left).unwrap_or(CHUNK_BYTES))];
        block_in_place(|| file.read_exact(&mut chunk))?;
        hash.update(&chunk);
        let before = transfer.sent_bytes();
        transfer.write(chunk.into()).await?;
        if transfer.sent_bytes() == before {
            // The receiver has replied before the end: it says why.
            break;
        }
        progress.show(transfer.sent_bytes());
        if let Some(rate) = max_rate {
            let due = Duration::from_secs_f64(transfer.sent_bytes() as f64 / (rate * 1024.0 * 1024.0));
            sleep(due.saturating_sub(progress.begun.elapsed())).await;
        }
    }
    transfer.write(hash.finish().as_ref().to_vec().into()).await?;
    let reply = transfer.finish().await?;
    if !reply.is_empty() {
        return Err(String::from_utf8_lossy(&reply).into());
    }
    progress.end(length);
    Ok(())
}

async fn receive(listen: &str, directory: &Path) -> Fallible<()> {
    let endpoint = bind("receiver", listen.parse()?).await?;
    let mut listener = endpoint.bulk_listener(MAILBOX, 16)?;
    eprintln!("listens on {}", endpoint.local_address());
    let receiving = async {
        while let Some(transfer) = listener.accept().await {
            match receive_file(transfer, directory).await {
                Ok(path) => println!("received {}", path.display()),
                Err(error) => println!("not received: {error}"),
            }
        }
        Ok(())
    };
    let received = tokio::select! {
        received = receiving => received,
        // Dropping a transfer cancels it, and removes its temporary file.
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Into::into),
    };
    endpoint.shutdown().await;
    received
}

async fn receive_file(mut transfer: BulkReceiver, directory: &Path) -> Fallible<PathBuf> {
    let refused = match Partial::begin(&transfer.header, directory) {
        Ok(partial) => match write_file(&mut transfer, partial).await {
            Ok(path) => {
                transfer.reply(b"").await?;
                return Ok(path);
            }
            Err(error) => error,
        },
        Err(error) => error,
    };
    if !refused.is::<BulkError>() {
        // The sender is still there, and is told.
        transfer.reply(refused.to_string().as_bytes()).await?;
    }
    Err(refused)
}

async fn write_file(transfer: &mut BulkReceiver, mut partial: Partial) -> Fallible<PathBuf> {
    let mut progress = Progress::new(partial.length);
    let mut hash = Context::new(&SHA256);
    let mut expected = Vec::new();
    while let Some(chunk) = transfer.read_chunk().await? {
        let before = transfer.received_bytes() - chunk.len() as u64;
        let of_file = usize::try_from(partial.length.saturating_sub(before)).unwrap_or(usize::MAX).min(chunk.len());
        let (content, rest) = chunk.split_at(of_file);
        hash.update(content);
        block_in_place(|| partial.file.write_all(content))?;
        expected.extend_from_slice(rest);
        if expected.len() > SHA256_OUTPUT_LEN {
            return Err("the file is longer than was said".into());
        }
        progress.show(before + of_file as u64);
    }
    if expected.len() < SHA256_OUTPUT_LEN {
        return Err("the file is shorter than was said".into());
    }
    if hash.finish().as_ref() != expected {
        return Err("the SHA-256 is another one: the file changed on its way, or while it was read".into());
    }
    progress.end(partial.length);
    block_in_place(|| partial.keep())
}

/// A file under its temporary name, which is removed unless it is kept.
struct Partial {
    file: File,
    length: u64,
    temporary: PathBuf,
    path: PathBuf,
}

impl Partial {
    fn begin(header: &[u8], directory: &Path) -> Fallible<Partial> {
        let (length, name) = header.split_first_chunk::<LENGTH_BYTES>().ok_or("the header is too short")?;
        let name = std::str::from_utf8(name)?;
        // Never outside of the directory, whatever is sent.
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
            return Err(format!("{name:?} is no name for a file here").into());
        }
        let (path, temporary) = (directory.join(name), directory.join(format!(".{name}.part")));
        if path.exists() {
            return Err(format!("{name} is there already").into());
        }
        let file = File::create_new(&temporary).map_err(|error| format!("{}: {error}", temporary.display()))?;
        Ok(Partial { file, length: u64::from_le_bytes(*length), temporary, path })
    }

    /// Once it has its name, it is whole, even after a loss of power.
    fn keep(self) -> Fallible<PathBuf> {
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)?;
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(self.path.clone())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Not there any more when it was kept.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// A line on stderr that is written over.
struct Progress {
    length: u64,
    begun: Instant,
    shown: Option<Instant>,
}

impl Progress {
    fn new(length: u64) -> Progress {
        Progress { length, begun: Instant::now(), shown: None }
    }

    fn show(&mut self, bytes: u64) {
        if self.shown.is_none_or(|shown| shown.elapsed() >= SHOW_INTERVAL) {
            self.shown = Some(Instant::now());
            eprint!("\r{}", self.line(bytes));
        }
    }

    fn end(&mut self, bytes: u64) {
        eprintln!("\r{}", self.line(bytes));
    }

    fn line(&self, bytes: u64) -> String {
        let share = |of: u64| {
            if self.length == 0 { of } else { (u128::from(bytes) * u128::from(of) / u128::from(self.length)) as u64 }
        };
        let bar: String = (0..BAR_WIDTH).map(|at| if at < share(BAR_WIDTH) { '#' } else { '.' }).collect();
        let mib = |bytes: u64| bytes as f64 / (1024.0 * 1024.0);
        let rate = mib(bytes) / self.begun.elapsed().as_secs_f64().max(0.001);
        format!("[{bar}] {:3}% {:.1} of {:.1} MiB, {rate:.1} MiB/s  ", share(100), mib(bytes), mib(self.length))
    }
}
