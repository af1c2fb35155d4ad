//! `leap-fleet init`: keys, tokens, database and configuration of a new sky.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use edge::durable::{self, Mode};
use edge::exit::{Classify as _, Failure, Kind, hint};
use jiff::Timestamp;
use model::{Digest, Signer};
use serde_json::json;
use tls::ca::Authority;

use super::host::Hosts;
use crate::config::check_url;
use crate::place::Place;
use crate::store::{Holder, Store, TokenRecord};

/// Make a new sky: its CA, certificate, timestamp key, tokens and database
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder to make; it must not exist, or be empty
    #[arg(long)]
    dir: PathBuf,
    #[command(flatten)]
    hosts: Hosts,
    /// Port to listen on
    #[arg(long, default_value_t = 8443)]
    port: u16,
    /// Where units find the sky, https://HOST:PORT; the name and the port unless given
    #[arg(long, value_parser = check_url)]
    url: Option<String>,
}

pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    let now = edge::clock::now();
    if occupied(&args.dir) {
        let error = anyhow!("{}: there is something already", args.dir.display());
        return Err(Failure::new(
            Kind::Refused,
            hint(
                error,
                "an existing sky is never made anew: name another folder",
            ),
        ));
    }
    let parent = match args.dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent)
        .with_context(|| format!("make folder {}", parent.display()))
        .environment()?;
    // Made beside and renamed: a sky is there whole or not at all.
    let work = tempfile::Builder::new()
        .prefix(".leap-fleet-init-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .with_context(|| format!("make a folder in {}", parent.display()))
        .environment()?;
    make(&Place::new(work.path()), args, now).await?;
    let made = work.keep();
    durable::rename(&made, &args.dir)
        .inspect_err(|_| drop(std::fs::remove_dir_all(&made)))
        .environment()?;
    let place = Place::new(&args.dir);
    edge::out::line(format_args!("made {}", args.dir.display()));
    for holder in Holder::ALL {
        let path = place.token(holder.word());
        edge::out::line(format_args!("{} token: {}", holder.word(), path.display()));
    }
    edge::out::line(format_args!(
        "next: leapctl keys init --sky {}, then leap-fleet set-trust {} trust-root.json",
        place.introduction().display(),
        args.dir.display()
    ));
    Ok(())
}

fn occupied(dir: &Path) -> bool {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

async fn make(place: &Place, args: &Args, now: Timestamp) -> Result<(), Failure> {
    let name = &args.hosts.name;
    let authority = Authority::generate(&format!("LeapServ fleet {name}"), now)?;
    let (certificate, key) = authority
        .server_certificate(&args.hosts.all(), now)
        .usage()?;
    let timestamp = Signer::from_seed(&random()?);
    let introduction = json!({
        "timestamp_public_key": timestamp.public(),
        "ca": authority.certificate(),
    });
    let url = match &args.url {
        Some(url) => url.clone(),
        None => format!("https://{name}:{}", args.port),
    };
    let config = format!(
        "# The sky. Check changes with `leap-fleet check-config`.\n\
         listen = \"0.0.0.0:{port}\"\n\
         # Where units find the sky; it stands in their papers.\n\
         url = \"{url}\"\n\
         # Keys, database and blobs; counts from this file's folder.\n\
         data = \".\"\n\
         # Largest file of a release.\n\
         largest_file_mib = 8192\n",
        port = args.port,
    );
    let files = [
        (
            place.ca_certificate(),
            authority.certificate(),
            Mode::Public,
        ),
        (place.ca_key(), &authority.key_pem(), Mode::Secret),
        (place.server_certificate(), &certificate, Mode::Public),
        (place.server_key(), &key, Mode::Secret),
        (
            place.timestamp_key_file(),
            &timestamp.to_pem(),
            Mode::Secret,
        ),
        (place.config(), &config, Mode::Public),
    ];
    for (path, text, mode) in files {
        durable::write(&path, text.as_bytes(), mode).environment()?;
    }
    durable::write_json(&place.introduction(), &introduction, Mode::Public).environment()?;
    let store = Store::open(&place.database()).await.environment()?;
    let mut session = store.change().await.environment()?;
    for holder in Holder::ALL {
        let token = hex::encode(random::<32>()?);
        let record = TokenRecord {
            hash: Digest::of(token.as_bytes()),
            holder,
        };
        session.insert_token(&record, now).await.environment()?;
        let text = format!("{token}\n");
        durable::write(&place.token(holder.word()), text.as_bytes(), Mode::Secret).environment()?;
    }
    session.commit().await.environment()?;
    store.close().await;
    Ok(())
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("randomness: {error}"))?;
    Ok(bytes)
}
