//! Server-sent events, as far as the sky speaks them. Pure: bytes in, messages out.

use model::api::{Event, MachineView};

/// Longest message that is taken, in bytes.
const LONGEST: usize = 4 << 20;

/// One piece of news from the sky.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum News {
    /// Something has happened.
    Event(Box<Event>),
    /// A machine as it is now.
    Machine(Box<MachineView>),
}

/// Why a stream cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("a message is longer than {LONGEST} bytes")]
    TooLong,
    #[error("message {name:?}: {problem}")]
    Message { name: String, problem: String },
}

/// What has come of a message so far.
///
/// Off-spec: a carriage return alone ends no line; the sky sends none.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    name: String,
    data: String,
}

impl Parser {
    /// Takes the next bytes and returns the messages that they complete.
    ///
    /// A message of a kind that is not known here is passed over.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<News>, Unreadable> {
        let mut news = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + self.data.len() + part.len() > LONGEST {
                return Err(Unreadable::TooLong);
            }
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                news.extend(self.take(&String::from_utf8_lossy(&line))?);
            }
        }
        Ok(news)
    }

    /// Takes a line; an empty one ends the message.
    fn take(&mut self, line: &str) -> Result<Option<News>, Unreadable> {
        let line = line.trim_end_matches(['\n', '\r']);
        if line.is_empty() {
            let (name, data) = (
                std::mem::take(&mut self.name),
                std::mem::take(&mut self.data),
            );
            return Self::read(name, &data);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = value.to_owned(),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            // Comments keep the line alive; numbers stand in the events themselves.
            _ => {}
        }
        Ok(None)
    }

    fn read(name: String, data: &str) -> Result<Option<News>, Unreadable> {
        let news = match name.as_str() {
            _ if data.is_empty() => return Ok(None),
            "event" => serde_json::from_str(data).map(News::Event),
            "machine" => serde_json::from_str(data).map(News::Machine),
            _ => return Ok(None),
        };
        let problem = |error: serde_json::Error| Unreadable::Message {
            name,
            problem: error.to_string(),
        };
        news.map(Some).map_err(problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::birth::tests::machine;

    fn message(machine: &MachineView) -> String {
        let json = serde_json::to_string(machine).unwrap();
        format!(": still here\n\nevent: machine\nid: 7\ndata: {json}\n\n")
    }

    #[test]
    fn messages_are_read_however_the_bytes_are_cut() {
        let (one, two) = (machine("S1", vec![]), machine("Süß", vec![]));
        let text = format!("{}{}", message(&one), message(&two).replace('\n', "\r\n"));
        let whole = [one, two].map(|machine| News::Machine(Box::new(machine)));
        for size in [1, 2, 3, 7, 1000, text.len()] {
            let mut parser = Parser::default();
            let chunks = text.as_bytes().chunks(size);
            let news: Vec<News> = chunks
                .flat_map(|chunk| parser.feed(chunk).unwrap())
                .collect();
            assert_eq!(news, whole, "{size}");
        }
    }

    #[test]
    fn what_is_not_known_is_passed_over_and_what_is_broken_is_told() {
        let mut parser = Parser::default();
        let later = b"event: weather\ndata: rain\n\nretry: 5\n\ndata\n\n";
        assert_eq!(parser.feed(later), Ok(vec![]));
        let broken = parser.feed(b"event: machine\ndata: {}\n\n").unwrap_err();
        assert!(
            broken
                .to_string()
                .starts_with("message \"machine\": missing field"),
            "{broken}"
        );
        let long = vec![b'x'; LONGEST + 1];
        assert_eq!(Parser::default().feed(&long), Err(Unreadable::TooLong));
        let mut parser = Parser::default();
        let line = [b"data: ", vec![b'x'; LONGEST / 2].as_slice(), b"\n"].concat();
        assert_eq!(parser.feed(&line), Ok(vec![]));
        assert_eq!(parser.feed(&line), Err(Unreadable::TooLong));
    }
}
