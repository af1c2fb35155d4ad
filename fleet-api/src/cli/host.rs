//! Host names on the command line.

use std::net::IpAddr;

/// Names under which a server is reached, for its certificate.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Hosts {
    /// Host name by which the server is reached
    #[arg(long, value_parser = host_name)]
    pub(super) name: String,
    /// Address by which it is reached too; can be given again
    #[arg(long = "address")]
    addresses: Vec<IpAddr>,
}

impl Hosts {
    /// All of them as text, the host name first.
    pub(super) fn all(&self) -> Vec<String> {
        std::iter::once(self.name.clone())
            .chain(self.addresses.iter().map(IpAddr::to_string))
            .collect()
    }
}

fn host_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err("expected a host name, like sky.example".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_a_dns_name() {
        for good in ["localhost", "sky.example", "vault-1", "10.0.0.3"] {
            assert!(host_name(good).is_ok(), "{good}");
        }
        for bad in ["", "vault 1", "a..b", "-a", "a/b", "ä", "a:8443"] {
            assert!(host_name(bad).is_err(), "{bad}");
        }
    }
}
