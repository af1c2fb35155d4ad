//! `leapctl backup restore`.

use edge::exit::Failure;
use model::UnitName;
use model::command::{Action, RestoreTarget};

use super::order::{OrderArgs, send};
use crate::operator::Operator;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("target").required(true).args(["to_source", "to_unit"]))]
pub(crate) struct Args {
    /// CUSTOMER/NAME
    unit: UnitName,
    /// The source whose snapshot it is
    #[arg(long, value_name = "NAME")]
    source: String,
    /// Snapshot id, or latest
    #[arg(long, value_name = "ID", default_value = "latest")]
    snapshot: String,
    /// The copy to read: local, or the name of a destination
    #[arg(long, value_name = "local|DESTINATION", default_value = "local")]
    from: String,
    /// Path inside the source, relative; . is all of it
    #[arg(long, value_name = "PATH", default_value = ".", value_parser = inside)]
    path: String,
    /// Write back to the source
    #[arg(long)]
    to_source: bool,
    /// Another absolute path at the source; else in place
    #[arg(long, value_name = "PATH", requires = "to_source", value_parser = absolute)]
    target_path: Option<String>,
    /// Write to this folder on the unit
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    to_unit: Option<String>,
    #[command(flatten)]
    order: OrderArgs,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let to = match self.to_unit {
            Some(path) => RestoreTarget::Unit { path },
            None => RestoreTarget::Source {
                path: self.target_path,
            },
        };
        let action = Action::Restore {
            source: self.source,
            snapshot: self.snapshot,
            from: self.from,
            path: self.path,
            to,
        };
        send(operator, self.unit, action, &self.order).await
    }
}

fn absolute(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err("expected an absolute path".into())
    }
}

fn inside(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('/') || text.split('/').any(|part| part == "..") {
        Err("expected a path relative to the source, without ..".into())
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_where_they_belong() {
        assert!(inside("2024/shrimp.jpg").is_ok());
        assert!(inside(".").is_ok());
        for bad in ["", "/etc", "../x", "a/../../b"] {
            assert!(inside(bad).is_err(), "{bad}");
        }
        assert!(absolute("/srv/restore").is_ok());
        assert!(absolute("srv").is_err());
    }
}
