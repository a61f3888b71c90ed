//! Safety weights for text corpora in a data lake.
//!
//! pushpull gives every row of a corpus of Parquet and Arrow shards a weight by push-pull optimal transport: the weighted corpus
//! is pulled towards a trusted safe anchor and pushed away from a harmful reference (Wang et al., *Safeguarding LLM Fine-tuning
//! via Push-Pull Distributional Alignment*, arXiv 2601.07200). The weights are written beside the corpus, which is never
//! changed, and served with it as one SQL table.
//!
//! The modules follow the data: [`storage`] → [`shard`] → [`embed`] → [`transport`] → [`writeback`] → [`catalog`] → [`sql`], joined
//! by [`job`] (and offered to other programs by `serve`). `transport` and `embed` are pure: no IO and no async; so is [`eval`], which
//! measures on labelled rows how well weights tell harmful rows from others.
//!
//! ```no_run
//! # async fn example() -> pushpull::error::Result<()> {
//! use pushpull::job::{Job, RunOptions, run, sql_session};
//!
//! let job = Job::open("job.toml", &[], RunOptions::default()).await?;
//! let report = run(&job).await?;
//! println!("{} rows, mean weight {:.3}", report.rows, report.mean_weight);
//!
//! let session = sql_session(&job, 4).await?;
//! let rows = session.query("select id from corpus where weight >= 0.5").await?.collect().await?;
//! # Ok(()) }
//! ```

pub mod catalog;
pub mod cli;
pub mod embed;
pub mod error;
pub mod eval;
pub mod job;
#[cfg(feature = "serve")]
pub mod serve;
pub mod shard;
pub mod sql;
pub mod storage;
pub mod transport;
pub mod writeback;
