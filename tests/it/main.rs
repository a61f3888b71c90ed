//! Integration tests, in one binary so that the stack is linked once. Parts that need something outside the repository say what
//! they skip: `PUSHPULL_TEST_S3_ENDPOINT` (a real S3 server), `PUSHPULL_TEST_PYTHON` (a Python with the packages of
//! `.ci/requirements.txt`; Spark wants Java beside it), `PUSHPULL_TEST_MINILM` (a folder with all-MiniLM-L6-v2). `.ci/run` sets all
//! three.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]
#![expect(unreachable_pub, reason = "a test binary has no outside")]

mod bad_input;
mod bytes_read;
mod candle_bert;
#[cfg(feature = "decoder")]
mod decoder;
mod embed_golden;
mod embedders;
mod eval;
mod eval_rows;
mod explain;
mod hygiene;
mod interrupted;
mod long_documents;
mod noted_pages;
mod other_engines;
mod queries;
mod rerun;
mod reweigh;
mod row_for_row;
mod s3;
#[cfg(feature = "serve")]
mod serve;
mod splice;
mod sql_functions;
mod sql_table;
mod support;
mod transport_golden;
