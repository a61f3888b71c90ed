//! The listening socket and its life: bound, serving, draining, closed.

use super::auth::{Gate, TOKEN_VARIABLE, Token};
use super::service::Service;
use super::snapshot::Snapshots;
use crate::error::{Error, Result};
use crate::job::Job;
use arrow_flight::flight_service_server::FlightServiceServer;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::transport::server::TcpIncoming;

/// Where to listen by default: this machine only, on the port that Flight SQL servers usually have.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 32010);
/// Queries that run at once by default: as many as a dashboard asks for when it opens.
pub const DEFAULT_QUERIES: usize = 16;
/// How old the view of a query may be by default. A look costs two listings; runs take minutes.
pub const DEFAULT_REFRESH: Duration = Duration::from_secs(5);
/// How long a client may take nothing by default: long enough for a person who scrolls.
pub const DEFAULT_IDLE: Duration = Duration::from_secs(600);
/// How long running queries have to end by default when the server is told to stop: what container schedulers usually grant.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(25);

/// How often a silent connection is asked whether its client is still there.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// How a job is served.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Address and port; port 0 takes a free one. Default [`DEFAULT_LISTEN`].
    pub listen: SocketAddr,
    /// What clients must know. Default none, for which `listen` must be an address of this machine only.
    pub token: Option<Token>,
    /// Partitions of a scan, at least one. Default 1.
    pub threads: usize,
    /// Most queries that run at once, at least one; more wait. Default [`DEFAULT_QUERIES`].
    pub queries: usize,
    /// How old the view of corpus and weights may be when a query begins. Zero looks before each query. Default [`DEFAULT_REFRESH`].
    pub refresh: Duration,
    /// A query whose client takes nothing for so long is stopped. Default [`DEFAULT_IDLE`].
    pub idle: Duration,
    /// How long running queries may go on after the server is told to stop. Default [`DEFAULT_DRAIN`].
    pub drain: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            listen: DEFAULT_LISTEN,
            token: None,
            threads: 1,
            queries: DEFAULT_QUERIES,
            refresh: DEFAULT_REFRESH,
            idle: DEFAULT_IDLE,
            drain: DEFAULT_DRAIN,
        }
    }
}

/// A server that is bound to its address and has opened the tables.
pub struct Server {
    incoming: TcpIncoming,
    address: SocketAddr,
    service: Service,
    gate: Gate,
    drain: Duration,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Opens the job's tables and binds the address. Connections wait until [`Server::run`].
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for an address that others can reach without a token, or one that cannot be bound; what
    /// [`sql_session`](crate::job::sql_session) answers.
    pub async fn bind(job: Job, options: ServeOptions) -> Result<Self> {
        let refused = |reason: String| Error::InvalidOption { name: "listen".to_owned(), reason };
        if options.token.is_none() && !options.listen.ip().is_loopback() {
            let reason = format!(
                "{} can be reached from other machines: set {TOKEN_VARIABLE} to a secret that clients must know, or listen on 127.0.0.1",
                options.listen
            );
            return Err(refused(reason));
        }
        let queries = options.queries.max(1);
        let snapshots = Arc::new(Snapshots::new(job, options.threads, options.refresh));
        snapshots.current().await?;
        let cannot = |e: &dyn std::fmt::Display| refused(format!("cannot listen on {}: {e}", options.listen));
        let incoming = TcpIncoming::bind(options.listen).map_err(|e| cannot(&e))?.with_nodelay(Some(true));
        let address = incoming.local_addr().map_err(|e| cannot(&e))?;
        let service = Service::new(snapshots, options.token.clone(), options.idle, queries);
        Ok(Self { incoming, address, service, gate: Gate(options.token), drain: options.drain })
    }

    /// The address with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is ready. Then no new query is taken, and running ones may go on for [`ServeOptions::drain`]. Gives whether
    /// all of them ended by themselves.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) -> Result<bool> {
        let (stopped, told) = oneshot::channel();
        let service = FlightServiceServer::with_interceptor(self.service, self.gate);
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .add_service(service)
            .serve_with_incoming_shutdown(self.incoming, async move {
                stop.await;
                let _ = stopped.send(());
            });
        let out_of_time = async {
            // An error means that the server is gone before it was told to stop.
            if told.await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(self.drain).await;
        };
        tokio::select! {
            served = serving => {
                let failed = |e: tonic::transport::Error| Error::Storage {
                    location: format!("socket {}", self.address),
                    action: "serve",
                    source: Box::new(e),
                };
                served.map_err(failed).map(|()| true)
            }
            () = out_of_time => Ok(false),
        }
    }
}
