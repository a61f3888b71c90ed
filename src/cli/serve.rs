//! `pushpull serve`: the tables for other programs, until a signal.

use super::args::at_least_one;
use super::print;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::serve::{DEFAULT_LISTEN, DEFAULT_QUERIES, DEFAULT_REFRESH, ServeOptions, Server, TOKEN_VARIABLE, Token};
use clap::Args;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

#[derive(Debug, Args)]
pub(super) struct ServeArguments {
    /// Address and port; port 0 takes a free one. Addresses that other machines reach need a token in PUSHPULL_SERVE_TOKEN.
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = DEFAULT_LISTEN)]
    listen: SocketAddr,
    /// Most queries that run at once; more wait for their turn.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_QUERIES, value_parser = at_least_one)]
    max_queries: usize,
    /// How old a query's view of corpus and weights may be; 0 looks for a newer one before each query.
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_REFRESH.as_secs())]
    refresh: u64,
}

/// Serves until ctrl-c or SIGTERM; then running queries are given time to end, unless a second signal comes.
pub(super) async fn serve(job: Job, asked: ServeArguments, threads: usize, json: bool) -> Result<u8> {
    let token = Token::from_environment()?;
    let open = token.is_none();
    let options = ServeOptions {
        listen: asked.listen,
        token,
        threads,
        queries: asked.max_queries,
        refresh: Duration::from_secs(asked.refresh),
        ..ServeOptions::default()
    };
    let mut signals = Signals::new()?;
    let server = Server::bind(job, options).await?;
    let address = server.address();
    if json {
        print(&format!("{}\n", serde_json::json!({ "address": address.to_string() })))?;
    }
    let who = if open { "anyone on this machine may ask".to_owned() } else { format!("with the token in {TOKEN_VARIABLE}") };
    eprintln!("serving corpus and weights over Arrow Flight SQL at grpc://{address} ({who})");
    if !address.ip().is_loopback() {
        eprintln!("token and rows travel unencrypted: put a proxy with TLS before it where the network is not yours");
    }
    let mut again = signals.clone();
    tokio::select! {
        ended = server.run(async move {
            signals.next().await;
            eprintln!("stopping: running queries are given time to end; a second signal stops them");
        }) => {
            if !ended? {
                eprintln!("stopped: queries that did not end in time were cut off");
            }
        }
        () = async {
            again.next().await;
            again.next().await;
        } => eprintln!("stopped"),
    }
    Ok(0)
}

/// The signals that ask a process to end, counted from the moment this is made.
#[derive(Clone)]
struct Signals(watch::Receiver<usize>);

impl Signals {
    fn new() -> Result<Self> {
        let (count, counted) = watch::channel(0);
        let mut signal = heard().map_err(|e| Error::Internal(format!("signals: {e}")))?;
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                count.send_modify(|n| *n += 1);
            }
        });
        Ok(Self(counted))
    }

    async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A message for each ctrl-c or SIGTERM from now on.
#[cfg(unix)]
fn heard() -> std::io::Result<mpsc::Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = mpsc::channel(1);
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut stream, sender) = (signal(kind)?, sender.clone());
        tokio::spawn(async move { while stream.recv().await.is_some() && sender.send(()).await.is_ok() {} });
    }
    Ok(receiver)
}

/// A message for each ctrl-c from now on.
#[cfg(not(unix))]
fn heard() -> std::io::Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move { while tokio::signal::ctrl_c().await.is_ok() && sender.send(()).await.is_ok() {} });
    Ok(receiver)
}
