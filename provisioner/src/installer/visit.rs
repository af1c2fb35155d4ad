//! At a customer's: no factory, a stick, and the sky over the internet.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use model::machine::DiskContent;
use model::pass::PassCode;
use reqwest::StatusCode;

use super::console::Console;
use super::facts;
use super::keyboard::Keyboard;
use super::link::{Link, LinkError, Patience};
use super::shelf::Shelf;
use super::stick::Stick;

/// How long a machine with a unit on its disk waits for somebody who types. A stick that
/// was forgotten in its port must not keep a unit from its work.
const SOMEBODY: Duration = Duration::from_secs(120);
/// What is asked.
pub const QUESTION: &str = "one-time code from support, then Enter";

/// Returns a link to the sky with a code that counts, or `None` where nobody types one and
/// a unit waits on the disk.
///
/// # Errors
/// The sky is gone for too long.
pub async fn link(stick: &Stick, console: &Console) -> Result<Option<Link>> {
    let patience = unless_somebody(Path::new("/"));
    // The code on the stick is tried once; after it, people are asked.
    let mut on_stick = stick.pass.clone();
    let mut keyboard = None;
    loop {
        let pass = match on_stick.take() {
            Some(pass) => pass,
            None => {
                let keyboard = keyboard.get_or_insert_with(|| Keyboard::open(Console::terminals()));
                match ask(console, keyboard, patience).await {
                    Some(pass) => pass,
                    None => return Ok(None),
                }
            }
        };
        let link = Link::to_sky(&stick.settings, &pass, Patience::default(), console.clone())?;
        match link.pass().await {
            Ok(view) => {
                console.line(&format!("one-time code for {}", view.unit));
                let shelf = Shelf::new(stick.partition.clone());
                return Ok(Some(link.with_shelf(shelf)));
            }
            Err(LinkError::Answered { status, error, .. })
                if status == StatusCode::UNAUTHORIZED =>
            {
                console.error(
                    &format!("the sky does not know this code: {error}"),
                    "type it again, or ask support for another one",
                );
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn ask(
    console: &Console,
    keyboard: &mut Keyboard,
    patience: Option<Duration>,
) -> Option<PassCode> {
    loop {
        console.ask(QUESTION);
        let line = keyboard.line(patience).await?;
        match line.parse() {
            Ok(pass) => return Some(pass),
            Err(problem) => console.error(
                &format!("{problem}"),
                "type it again, or ask support for another one",
            ),
        }
    }
}

fn unless_somebody(root: &Path) -> Option<Duration> {
    local_unit(root).map(|_| SOMEBODY)
}

/// The fixed disk that holds a unit.
pub fn local_unit(root: &Path) -> Option<String> {
    facts::gather(root)
        .disks
        .into_iter()
        .find(|disk| !disk.removable && disk.content == DiskContent::Leapserv)
        .map(|disk| disk.path)
}
