//! Where one machine stands on its way to birth, and what it boots there.
//!
//! Pure: a state and an event give the next state or a refusal. The ledger
//! keeps the states; DHCP, TFTP and HTTP ask [`Birth::boot`] and so agree.

#![warn(clippy::wildcard_enum_match_arm)]

use model::machine::MachineCode;
use serde::{Deserialize, Serialize};

/// Identifier of a birth ticket, [`model::ticket::BirthTicket::id`].
pub type TicketId = String;

/// Whether a machine was in service before it came to the installer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Past {
    /// Never seen on a disk of its own.
    New,
    /// It has something to go back to: an invitation can be taken back.
    HasDisk,
}

/// Where a machine stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Birth {
    /// Nothing is known. It boots the installer, which shows facts and holds.
    Unknown,
    /// Its installer has announced these keys and waits for a ticket.
    Held {
        /// Code of the keys.
        code: MachineCode,
        /// What it was before.
        past: Past,
    },
    /// A ticket was shown to its installer.
    Approved {
        /// Code of the keys.
        code: MachineCode,
        /// The ticket.
        ticket: TicketId,
        /// What it was before.
        past: Past,
    },
    /// The ticket is used up; the disk is being written.
    Installing {
        /// Code of the keys.
        code: MachineCode,
        /// The ticket.
        ticket: TicketId,
    },
    /// The installer gave up and waits for another ticket.
    Failed {
        /// Code of the keys.
        code: MachineCode,
        /// The ticket that was tried, if any.
        ticket: Option<TicketId>,
        /// What it was before; [`Past::New`] once the disk may be half-written.
        past: Past,
    },
    /// Its disk is whole.
    Born {
        /// Code of the keys that it was born with.
        code: MachineCode,
    },
    /// The sky said to leave it on its disk.
    Kept,
    /// An operator wants it in the installer once more.
    Invited,
}

/// What happens to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Its installer announced keys.
    Announced {
        /// Code of the keys.
        code: MachineCode,
    },
    /// The sky gave a ticket for the keys.
    TicketShown {
        /// Code of the keys.
        code: MachineCode,
        /// The ticket.
        ticket: TicketId,
    },
    /// The sky took the ticket.
    Redeemed {
        /// Code of the keys.
        code: MachineCode,
        /// The ticket.
        ticket: TicketId,
    },
    /// All is on the disk.
    Done {
        /// Code of the keys.
        code: MachineCode,
    },
    /// The installer gave up.
    Failed {
        /// Code of the keys.
        code: MachineCode,
    },
    /// The sky said to restart from the local disk.
    KeptDisk {
        /// Code of the keys.
        code: MachineCode,
    },
    /// An operator wants the machine in the installer again.
    Invited,
    /// An operator does not want so any longer.
    Uninvited,
}

/// Why an event changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A machine that has its disk is not installed.
    #[error("the machine has its disk already")]
    HasDisk,
    /// The event names other keys than those of the installer that runs.
    #[error("the machine's installer has made other keys since; its code is {current}")]
    OtherKeys {
        /// The code that counts.
        current: MachineCode,
    },
    /// The event needs the machine's announcement first.
    #[error("the machine has not announced itself")]
    NotAnnounced,
    /// The event needs a ticket that was shown first.
    #[error("no such ticket was shown to the machine")]
    NoTicket,
    /// There is nothing to invite.
    #[error("the machine boots the installer anyway")]
    BootsInstaller,
    /// There is no disk to go back to.
    #[error("the machine has no finished disk to go back to")]
    NoDisk,
}

/// What a machine boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// The installer.
    Installer,
    /// Its own disk, for this reason.
    LocalDisk(&'static str),
}

impl Birth {
    /// Returns what the machine boots.
    pub fn boot(&self) -> Boot {
        match self {
            Self::Born { .. } => Boot::LocalDisk("born: its disk is installed"),
            Self::Kept => Boot::LocalDisk("the sky said to leave it on its disk"),
            Self::Unknown
            | Self::Held { .. }
            | Self::Approved { .. }
            | Self::Installing { .. }
            | Self::Failed { .. }
            | Self::Invited => Boot::Installer,
        }
    }

    /// All words of [`Birth::word`].
    pub const WORDS: [&str; 8] = [
        "unknown",
        "held",
        "approved",
        "installing",
        "failed",
        "born",
        "kept",
        "invited",
    ];

    /// The state in a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Held { .. } => "held",
            Self::Approved { .. } => "approved",
            Self::Installing { .. } => "installing",
            Self::Failed { .. } => "failed",
            Self::Born { .. } => "born",
            Self::Kept => "kept",
            Self::Invited => "invited",
        }
    }

    /// The code of the keys that count now.
    pub fn code(&self) -> Option<&MachineCode> {
        match self {
            Self::Held { code, .. }
            | Self::Approved { code, .. }
            | Self::Installing { code, .. }
            | Self::Failed { code, .. }
            | Self::Born { code } => Some(code),
            Self::Unknown | Self::Kept | Self::Invited => None,
        }
    }

    fn past(&self) -> Past {
        match self {
            Self::Held { past, .. } | Self::Approved { past, .. } | Self::Failed { past, .. } => {
                *past
            }
            Self::Born { .. } | Self::Kept | Self::Invited => Past::HasDisk,
            Self::Unknown | Self::Installing { .. } => Past::New,
        }
    }

    /// Returns the next state.
    ///
    /// # Errors
    /// The event does not fit; the state stays.
    pub fn next(&self, event: &Event) -> Result<Self, Refusal> {
        match event {
            Event::Announced { code } => self.announced(code),
            Event::TicketShown { code, ticket } => self.ticket_shown(code, ticket),
            Event::Redeemed { code, ticket } => self.redeemed(code, ticket),
            Event::Done { code } => self.done(code),
            Event::Failed { code } => self.failed(code),
            Event::KeptDisk { code } => self.kept_disk(code),
            Event::Invited => match self {
                Self::Born { .. } | Self::Kept | Self::Invited => Ok(Self::Invited),
                Self::Unknown
                | Self::Held { .. }
                | Self::Approved { .. }
                | Self::Installing { .. }
                | Self::Failed { .. } => Err(Refusal::BootsInstaller),
            },
            Event::Uninvited => match (self, self.past()) {
                // A state with a disk to go back to: nothing was erased since.
                (_, Past::HasDisk) => Ok(Self::Kept),
                (_, Past::New) => Err(Refusal::NoDisk),
            },
        }
    }

    fn expect_code(&self, code: &MachineCode) -> Result<(), Refusal> {
        match self {
            Self::Kept => Err(Refusal::HasDisk),
            Self::Unknown | Self::Invited => Err(Refusal::NotAnnounced),
            Self::Held { code: current, .. }
            | Self::Approved { code: current, .. }
            | Self::Installing { code: current, .. }
            | Self::Failed { code: current, .. }
            | Self::Born { code: current } => {
                if code == current {
                    Ok(())
                } else {
                    Err(Refusal::OtherKeys {
                        current: current.clone(),
                    })
                }
            }
        }
    }

    fn announced(&self, code: &MachineCode) -> Result<Self, Refusal> {
        match self {
            Self::Born { .. } | Self::Kept => Err(Refusal::HasDisk),
            // A repeated announcement changes nothing.
            Self::Held { code: same, .. }
            | Self::Approved { code: same, .. }
            | Self::Installing { code: same, .. }
            | Self::Failed { code: same, .. }
                if same == code =>
            {
                Ok(self.clone())
            }
            // New keys: the installer was started again, and whatever ticket
            // there was is bound to the keys that are gone.
            Self::Unknown
            | Self::Invited
            | Self::Held { .. }
            | Self::Approved { .. }
            | Self::Installing { .. }
            | Self::Failed { .. } => Ok(Self::Held {
                code: code.clone(),
                past: self.past(),
            }),
        }
    }

    fn ticket_shown(&self, code: &MachineCode, ticket: &TicketId) -> Result<Self, Refusal> {
        self.expect_code(code)?;
        match self {
            Self::Installing { ticket: same, .. } if same == ticket => Ok(self.clone()),
            Self::Held { .. }
            | Self::Approved { .. }
            | Self::Installing { .. }
            | Self::Failed { .. } => Ok(Self::Approved {
                code: code.clone(),
                ticket: ticket.clone(),
                past: self.past(),
            }),
            Self::Born { .. } | Self::Kept => Err(Refusal::HasDisk),
            Self::Unknown | Self::Invited => Err(Refusal::NotAnnounced),
        }
    }

    fn redeemed(&self, code: &MachineCode, ticket: &TicketId) -> Result<Self, Refusal> {
        self.expect_code(code)?;
        match self {
            Self::Approved { ticket: shown, .. } | Self::Installing { ticket: shown, .. }
                if shown == ticket =>
            {
                Ok(Self::Installing {
                    code: code.clone(),
                    ticket: ticket.clone(),
                })
            }
            Self::Held { .. }
            | Self::Approved { .. }
            | Self::Installing { .. }
            | Self::Failed { .. } => Err(Refusal::NoTicket),
            Self::Born { .. } | Self::Kept => Err(Refusal::HasDisk),
            Self::Unknown | Self::Invited => Err(Refusal::NotAnnounced),
        }
    }

    fn done(&self, code: &MachineCode) -> Result<Self, Refusal> {
        self.expect_code(code)?;
        match self {
            // Told again because the answer was lost.
            Self::Installing { .. } | Self::Born { .. } => Ok(Self::Born { code: code.clone() }),
            Self::Held { .. } | Self::Approved { .. } | Self::Failed { .. } => {
                Err(Refusal::NoTicket)
            }
            Self::Kept => Err(Refusal::HasDisk),
            Self::Unknown | Self::Invited => Err(Refusal::NotAnnounced),
        }
    }

    fn failed(&self, code: &MachineCode) -> Result<Self, Refusal> {
        self.expect_code(code)?;
        let ticket = match self {
            Self::Approved { ticket, .. } | Self::Installing { ticket, .. } => Some(ticket.clone()),
            Self::Failed { ticket, .. } => ticket.clone(),
            Self::Held { .. } => None,
            Self::Born { .. } | Self::Kept => return Err(Refusal::HasDisk),
            Self::Unknown | Self::Invited => return Err(Refusal::NotAnnounced),
        };
        Ok(Self::Failed {
            code: code.clone(),
            ticket,
            past: self.past(),
        })
    }

    fn kept_disk(&self, code: &MachineCode) -> Result<Self, Refusal> {
        if matches!(self, Self::Born { .. } | Self::Kept) {
            return Ok(self.clone());
        }
        self.expect_code(code)?;
        match self {
            // Half-written: there is no disk to restart from.
            Self::Installing { .. } => Err(Refusal::NoDisk),
            Self::Held { .. } | Self::Approved { .. } | Self::Failed { .. } => Ok(Self::Kept),
            Self::Born { .. } | Self::Kept => Ok(self.clone()),
            Self::Unknown | Self::Invited => Err(Refusal::NotAnnounced),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn codes() -> [MachineCode; 2] {
        ["7QK2-M9XD", "0000-0001"].map(|code| code.parse().unwrap())
    }

    /// Every event, with two sets of keys and two tickets.
    fn events() -> Vec<Event> {
        let mut events = vec![Event::Invited, Event::Uninvited];
        for code in codes() {
            events.push(Event::Announced { code: code.clone() });
            events.push(Event::Done { code: code.clone() });
            events.push(Event::Failed { code: code.clone() });
            events.push(Event::KeptDisk { code: code.clone() });
            for ticket in ["t1", "t2"].map(str::to_owned) {
                let code = code.clone();
                events.push(Event::TicketShown {
                    code: code.clone(),
                    ticket: ticket.clone(),
                });
                events.push(Event::Redeemed { code, ticket });
            }
        }
        events
    }

    type Graph = BTreeMap<Birth, Vec<(Event, Birth)>>;

    /// All states that any sequence of events can reach, with their edges.
    fn explore() -> Graph {
        let mut graph = Graph::new();
        let mut todo = vec![Birth::Unknown];
        while let Some(state) = todo.pop() {
            if graph.contains_key(&state) {
                continue;
            }
            let edges: Vec<_> = events()
                .into_iter()
                .filter_map(|event| state.next(&event).ok().map(|next| (event, next)))
                .collect();
            todo.extend(edges.iter().map(|(_, next)| next.clone()));
            graph.insert(state, edges);
        }
        graph
    }

    fn reachable(graph: &Graph, from: &Birth, allowed: impl Fn(&Event) -> bool) -> BTreeSet<Birth> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![from.clone()];
        while let Some(state) = todo.pop() {
            if !seen.insert(state.clone()) {
                continue;
            }
            let next = graph[&state].iter().filter(|(event, _)| allowed(event));
            todo.extend(next.map(|(_, next)| next.clone()));
        }
        seen
    }

    #[test]
    fn the_exploration_meets_every_kind_of_state() {
        let graph = explore();
        let words: BTreeSet<_> = graph.keys().map(Birth::word).collect();
        assert_eq!(words.len(), 8, "{words:?}");
    }

    #[test]
    fn no_erase_without_the_ticket_that_was_shown_to_these_keys() {
        for (state, edges) in explore() {
            for (event, next) in edges {
                let (Birth::Installing { code, ticket }, false) = (&next, next == state) else {
                    continue;
                };
                let redeemed = Event::Redeemed {
                    code: code.clone(),
                    ticket: ticket.clone(),
                };
                assert_eq!(event, redeemed, "{state:?}");
                let Birth::Approved {
                    code: held,
                    ticket: shown,
                    ..
                } = &state
                else {
                    panic!("{state:?} → {next:?} by {event:?}");
                };
                assert_eq!((held, shown), (code, ticket));
            }
        }
    }

    #[test]
    fn a_ticket_never_outlives_the_keys_that_it_was_shown_to() {
        for (state, edges) in explore() {
            for (event, next) in edges {
                if let (Event::Announced { code }, true) = (&event, next != state) {
                    assert!(
                        matches!(&next, Birth::Held { code: now, .. } if now == code),
                        "{state:?} → {next:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_machine_with_its_disk_leaves_it_by_invitation_only() {
        let graph = explore();
        for state in graph.keys() {
            if let Boot::LocalDisk(_) = state.boot() {
                for other in reachable(&graph, state, |event| *event != Event::Invited) {
                    assert!(
                        matches!(other.boot(), Boot::LocalDisk(_)),
                        "{state:?} → {other:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn no_limbo_every_state_can_still_be_born() {
        let graph = explore();
        for state in graph.keys() {
            let born = reachable(&graph, state, |_| true)
                .iter()
                .any(|state| matches!(state, Birth::Born { .. }));
            assert!(born, "{state:?}");
        }
    }

    /// What the machine does by itself: start, announce, fail. An operator or
    /// the sky does nothing. Then nothing is ever erased again.
    #[test]
    fn no_wipe_loop_a_machine_left_alone_is_never_installed_again() {
        let graph = explore();
        let alone = |event: &Event| matches!(event, Event::Announced { .. } | Event::Failed { .. });
        for state in graph.keys() {
            for other in reachable(&graph, state, alone) {
                let fresh_erase = matches!(other, Birth::Installing { .. }) && other != *state;
                assert!(!fresh_erase, "{state:?} → {other:?}");
            }
        }
    }

    #[test]
    fn a_used_ticket_is_not_used_again_after_a_restart() {
        let [old, new] = codes();
        let ticket = || "t1".to_owned();
        let state = Birth::Installing {
            code: old.clone(),
            ticket: ticket(),
        };
        let restarted = state.next(&Event::Announced { code: new.clone() }).unwrap();
        assert_eq!(
            restarted.next(&Event::Redeemed {
                code: new,
                ticket: ticket()
            }),
            Err(Refusal::NoTicket)
        );
        assert!(matches!(
            restarted.next(&Event::Redeemed {
                code: old,
                ticket: ticket()
            }),
            Err(Refusal::OtherKeys { .. })
        ));
    }

    #[test]
    fn an_invitation_can_be_taken_back_until_the_disk_is_touched() {
        let [code, _] = codes();
        let ticket = "t1".to_owned();
        let mut state = Birth::Born { code: code.clone() };
        let steps = [
            Event::Invited,
            Event::Announced { code: code.clone() },
            Event::TicketShown {
                code: code.clone(),
                ticket: ticket.clone(),
            },
        ];
        for event in steps {
            state = state.next(&event).unwrap();
            assert_eq!(state.boot(), Boot::Installer);
            assert_eq!(state.next(&Event::Uninvited), Ok(Birth::Kept));
        }
        state = state.next(&Event::Redeemed { code, ticket }).unwrap();
        assert_eq!(state.next(&Event::Uninvited), Err(Refusal::NoDisk));
    }
}
