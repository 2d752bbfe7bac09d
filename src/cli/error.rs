//! Failures in the words of the person at the terminal: what happened, and what to do about it.
//!
//! | code | means |
//! | ---: | --- |
//! | 0 | done |
//! | 1 | failed; what was to be sent is not stored. `store verify`: the store is not sound |
//! | 2 | the command line is wrong |
//! | 3 | the topic, the group, the message, the session or the client does not exist |
//! | 4 | no broker answered |
//! | 5 | a send that may or may not be stored |
//! | 74 | `serve` only: the disk failed a sync |

use std::process::ExitCode;

use tonic::Code;

use super::output::{OutputError, say};
use crate::client::{ClientError, Reason, Refusal, Stored};

/// The table of the file, as `--help` shows it.
pub(crate) const HELP: &str = "\
Exit codes:
   0  done
   1  failed; what was to be sent is not stored. store verify: the store is not sound
   2  the command line is wrong
   3  the topic, the group, the message, the session or the client does not exist
   4  no broker answered
   5  a send that may or may not be stored
  74  serve only: the disk failed a sync, what was not durable yet may be lost";

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    NoBroker = 4,
    MayBeStored = 5,
    SyncFailed = 74,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failure that the command line found by itself.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Failure {
    exit: Exit,
    what: String,
    cure: Option<String>,
}

impl Failure {
    /// A failure that ends the process with `exit`.
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), cure: None }
    }

    /// The command line asks for something that makes no sense.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// The same, with what to do about it.
    pub(crate) fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }
}

/// Says on stderr why a command failed, and how the process ends.
pub(crate) fn report(error: &anyhow::Error) -> Exit {
    if error.downcast_ref::<OutputError>().is_some_and(OutputError::reader_has_gone) {
        return Exit::Done;
    }
    let (exit, text) = explain(error);
    say(format_args!("error: {text}"));
    exit
}

/// The exit code and the sentence: context, what, cause, cure.
fn explain(error: &anyhow::Error) -> (Exit, String) {
    let mut text = String::new();
    for cause in error.chain() {
        if !text.is_empty() {
            text.push_str(": ");
        }
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            text.push_str(&failure.what);
            return (failure.exit, with_cure(text, failure.cure.as_deref()));
        }
        if let Some(client) = cause.downcast_ref::<ClientError>() {
            let (exit, what, cure) = explain_client(client);
            text.push_str(&what);
            return (exit, with_cure(text, cure.as_deref()));
        }
        text.push_str(&cause.to_string());
    }
    (Exit::Failed, text)
}

fn with_cure(what: String, cure: Option<&str>) -> String {
    match cure {
        Some(cure) => format!("{what}: {cure}"),
        None => what,
    }
}

fn explain_client(error: &ClientError) -> (Exit, String, Option<String>) {
    match error {
        ClientError::BadAddress { .. } => {
            let cure = "give one like --server 127.0.0.1:8081";
            (Exit::Usage, error.to_string(), Some(cure.to_owned()))
        }
        ClientError::NoCertificate => {
            let cure = "name a file with one with --ca";
            (Exit::Usage, error.to_string(), Some(cure.to_owned()))
        }
        ClientError::BadTags { source } => (Exit::Usage, format!("{error}: {source}"), None),
        ClientError::Unreachable { source, .. } => {
            let cause = root_cause(source.as_ref());
            let what = match cause.starts_with("Connection refused") {
                true => error.to_string(),
                false => format!("{error} ({cause})"),
            };
            let cure = match cause.starts_with("invalid peer certificate") {
                true => NOT_TRUSTED,
                false => NO_BROKER,
            };
            (Exit::NoBroker, what, Some(cure.to_owned()))
        }
        ClientError::NoAnswer { source, .. } => {
            let cause =
                if source.message().is_empty() { "the connection broke" } else { source.message() };
            let what = format!("{error} ({cause})");
            match error.stored() {
                Stored::No => (Exit::NoBroker, what, Some(NO_BROKER.to_owned())),
                Stored::Unknown => (Exit::NoBroker, what, None),
            }
        }
        ClientError::BadAnswer { source, .. } => {
            let cure = "is it a broker of another version?";
            (Exit::Failed, format!("{error}: {source}"), Some(cure.to_owned()))
        }
        ClientError::Refused(refusal) => (exit_of(refusal), refusal.to_string(), cure_of(refusal)),
        ClientError::Unsettled { source, .. } => {
            let (_, cause, _) = explain_client(source);
            let cure = "`mainstem session show NAME` says up to which sequence batches are stored";
            (Exit::MayBeStored, format!("{error} ({cause})"), Some(cure.to_owned()))
        }
    }
}

const NOT_TRUSTED: &str = "name the certificate to trust with --ca; one that a broker made for itself is in its \
    data directory, tls/certificate.pem";

const NO_BROKER: &str =
    "start one with `mainstem serve --data ./data`, or name another with --server";

fn root_cause(error: &tonic::transport::Error) -> String {
    let mut root: &dyn std::error::Error = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

fn exit_of(refusal: &Refusal) -> Exit {
    match refusal.reason {
        Reason::UnknownTopic
        | Reason::MessageNotFound
        | Reason::UnknownGroup
        | Reason::UnknownClient
        | Reason::OffsetNotFound
        | Reason::UnknownSession => Exit::NotFound,
        _ if refusal.stored == Stored::Unknown => Exit::MayBeStored,
        _ => Exit::Failed,
    }
}

/// What to do, where the command line knows.
fn cure_of(refusal: &Refusal) -> Option<String> {
    let cure = match refusal.reason {
        Reason::UnknownTopic => {
            "`mainstem topic list` shows what there is, `mainstem topic create NAME` makes one"
        }
        Reason::BadQueue => "`mainstem topic show NAME` lists the queues of a topic",
        Reason::TopicExists => {
            "`mainstem topic show NAME` shows it, `mainstem topic update NAME` changes it; or choose another name"
        }
        Reason::OffsetOutOfRange => {
            return refusal.range.map(|range| {
                format!(
                    "offsets from {} to {} can be pulled; `--from earliest` starts at the first",
                    range.min, range.max
                )
            });
        }
        Reason::GroupExists => {
            "`mainstem group show NAME` shows it, `mainstem group update NAME` changes it"
        }
        Reason::NotDecompressed => {
            "`mainstem pull` gives the batch as it was sent; a broker with all codecs is built with `--features zstd`"
        }
        Reason::Conflict => {
            "another reader of the group or a reset moved it; `mainstem offset show` shows where it is"
        }
        Reason::NoSpace => {
            "free some space in the broker's file system, or purge or delete topics; it goes on by itself"
        }
        Reason::Overloaded => "try again in a moment",
        Reason::Draining => "the broker is going down; try again when it is back",
        Reason::Rebuilding => "the broker rebuilds its queue or index files; try again in a moment",
        Reason::ReadRefused => {
            "the broker's disk does not give it now; its log says why, try again in a moment"
        }
        Reason::FlushTimeout | Reason::Poisoned => {
            "it may or may not be stored; look first, with `mainstem query` or the `show` of what you changed"
        }
        Reason::TooLarge => {
            let untold = |limit: &u64| !refusal.message.contains(&limit.to_string());
            return refusal.limit.filter(untold).map(|limit| format!("the limit is {limit}"));
        }
        Reason::UnknownClient => "`mainstem client list` shows who is connected",
        Reason::UnknownSession => "`mainstem session list` shows what there is",
        Reason::Fenced => "only who opened the session last may send; use a name for each producer",
        Reason::SequenceGap => {
            "a power cut took acknowledged messages of an async topic; send again what is missing"
        }
        Reason::SessionLimit => "`mainstem session close NAME` makes room",
        Reason::Forbidden => "`mainstem topic update NAME --access rw` opens it",
        Reason::NeedsForce => {
            "--force does it all the same; `mainstem topic update --help` says what it breaks"
        }
        Reason::Unrecognised if refusal.code == Code::Unimplemented => {
            "what answers there is no Mainstem broker, or one of another version"
        }
        _ => return None,
    };
    Some(cure.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::OffsetRange;
    use crate::message::QueueOffset;

    fn refusal(reason: Reason, stored: Stored) -> Refusal {
        Refusal {
            code: Code::NotFound,
            reason,
            message: "said".to_owned(),
            stored,
            limit: Some(7),
            range: Some(OffsetRange { min: QueueOffset::new(3), max: QueueOffset::new(9) }),
            next_offset: None,
            retry_after: Some(Duration::from_millis(1)),
            expected_sequence: None,
            epoch: None,
            current: None,
            sequence: None,
            queue: None,
        }
    }

    fn explained(reason: Reason, stored: Stored) -> (Exit, String) {
        let error = ClientError::Refused(Box::new(refusal(reason, stored)));
        explain(&anyhow::Error::new(error).context("line 3"))
    }

    #[test]
    fn a_refusal_is_told_with_context_and_cure() {
        assert_eq!(
            explained(Reason::OffsetOutOfRange, Stored::No),
            (
                Exit::Failed,
                "line 3: said: offsets from 3 to 9 can be pulled; `--from earliest` starts at \
                 the first"
                    .to_owned()
            )
        );
        assert_eq!(
            explained(Reason::TooLarge, Stored::No),
            (Exit::Failed, "line 3: said: the limit is 7".to_owned())
        );
    }

    #[test]
    fn what_may_be_stored_has_its_own_exit_code() {
        assert_eq!(explained(Reason::FlushTimeout, Stored::Unknown).0, Exit::MayBeStored);
        assert_eq!(explained(Reason::UnknownTopic, Stored::No).0, Exit::NotFound);
    }
}
