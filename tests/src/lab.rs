//! The laboratory: networks, machines and servers that live and die together.

pub mod isolation;

pub mod prerequisites;

pub mod wait;

pub mod log;

pub mod process;

pub mod server;

pub mod network;

pub mod loss;

pub mod neighbour;

pub mod accelerator;

pub mod machine;

pub mod qmp;

pub mod sftp;

pub mod gallery;

pub mod disk;

pub mod pcap;

pub mod story;
