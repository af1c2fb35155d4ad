//! The laboratory, and the whole life of a unit as a program on it.
//!
//! [`lab`] describes a network, machines with real firmware and servers, starts them in
//! namespaces of their own, waits for conditions (never for time to pass) and collects
//! evidence: serial logs, packet captures, disks read from outside. The demo, `make lab`
//! and the end-to-end tests are programs on it.
//!
//! It does not look into our daemons: it starts their binaries, talks to them over the
//! wire as an operator would, and judges by what can be seen from outside.
//!
//! Flow: the outer program checks the host and starts itself again inside new namespaces;
//! the inner one builds the network, powers machines on, tells the story and writes the
//! report; when it ends, the kernel takes everything away.

pub mod lab;

pub mod story;

pub mod cli;

pub mod bench;

pub mod reproduce;

mod self_test;
