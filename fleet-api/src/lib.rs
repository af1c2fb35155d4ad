//! The sky: fleet API, store and update channel.
//!
//! Operators, factories, vaults and units meet here over HTTPS. The sky keeps
//! what makes a unit that unit, tells each caller what it lacks, and answers
//! only after what it confirms is durable.
//!
//! It deliberately cannot do much: it holds no key that could sign code,
//! configuration, commands or tickets, and opens no secret. Its own keys sign
//! device certificates and the freshness of channels, nothing else.
//!
//! A call flows `routes` → [`auth`] (who calls, may they, are they fenced) →
//! [`app`] (facts, a pure decision, the change) → [`store`] (one transaction)
//! and [`blobs`] (large files by digest). No route contains SQL.

pub mod config;

pub mod place;

pub mod sky;

pub mod routes;

pub mod auth;

pub mod app;

pub mod store;

pub mod blobs;

pub mod error;

pub mod serve;

pub mod cli;
