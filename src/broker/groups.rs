//! Consumer groups as a service: made, updated, deleted, listed, described.
//!
//! An answer that reveals what the table holds waits until that is durable by the broker's default mode; one that
//! reveals committed offsets waits for the mode of their topic too.

use std::sync::Arc;

use tokio::time::Instant;

use super::error::{BrokerError, RequestFault};
use super::offsets::QueueProgress;
use super::state::groups::{Group, GroupChange, GroupCreation, GroupEntry};
use super::state::leases::FilterWork;
use super::topics::within;
use super::{Broker, names};
use crate::filter::Expression;
use crate::message::{GroupSettings, TopicId};
use crate::store::AppendError;
use crate::sync::lock;

/// The most groups, or queues of its topics, in one answer; of the last topic all queues are in it.
const MAX_PAGE: u32 = 10_000;

/// Once the filters in an answer come to so many bytes, it ends.
const MAX_FILTERS_LEN: usize = 1 << 20;

/// The most retry delays of a group.
const MAX_DELAYS: u32 = 64;

/// A pause is twice as long at most.
const MAX_JITTER: u32 = 100;

/// The longest retry delay: 12 hours.
const MAX_DELAY_MS: u64 = 12 * 60 * 60 * 1_000;

/// Groups in byte order of their names.
#[derive(Debug)]
pub struct GroupPage {
    /// At most as many as were asked for.
    pub groups: Vec<Group>,
    /// Whether there are more behind the last.
    pub more: bool,
}

/// A topic in which a group has committed offsets.
#[derive(Debug)]
pub struct GroupTopic {
    /// Its name.
    pub name: Arc<str>,
    /// Its incarnation.
    pub id: TopicId,
    /// All of its queues.
    pub queues: Vec<QueueProgress>,
    /// Which messages its members want.
    pub filters: FiltersInUse,
}

/// Which messages of a topic the members of a group want, as their receives say since somebody began to ask: of a
/// group that nobody asks for there is nothing to say after a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FiltersInUse {
    /// The filters that they use now, the oldest first; if there is more than one they differ. Those that are refused
    /// are not among them.
    pub filters: Vec<String>,
    /// Receives with another filter than that of the group, served or refused.
    pub mismatches: u64,
    /// Conditions that were looked at for messages, but for those of members that want all.
    pub steps: u64,
    /// Looks at messages with a property that a condition compares with a number, and that is none: the comparison is
    /// unknown.
    pub faults: u64,
    /// The beginning of the name of the last such property; empty: none.
    pub last_fault: String,
}

/// What there is to tell a member of a group whose filter is another one than the group's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherFilter {
    /// The filter that the group uses.
    pub expected: String,
    /// His receives are refused.
    pub is_refused: bool,
}

/// A group and some of its topics.
#[derive(Debug)]
pub struct GroupDescription {
    /// The group.
    pub group: Group,
    /// By rising id.
    pub topics: Vec<GroupTopic>,
    /// Whether there are more behind the last.
    pub more: bool,
}

impl Broker {
    /// Makes a group. The same name with the same settings is fine.
    ///
    /// # Errors
    /// Nothing was made, unless [`BrokerError::stored`] says otherwise.
    pub async fn create_group(
        &self,
        name: &str,
        settings: &GroupSettings,
        deadline: Instant,
    ) -> Result<Group, BrokerError> {
        names::check_group(name)?;
        check(settings)?;
        if self.is_draining() {
            return Err(BrokerError::Draining);
        }
        let (made, applied) = loop {
            match self.state.groups.create(&self.store, name, settings) {
                Ok(done) => break done,
                Err(AppendError::NotReady) => self.space(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        };
        self.settled(applied, deadline).await?;
        self.clients.group_changed(name);
        match made {
            GroupCreation::Ready(group) => Ok(group),
            GroupCreation::Conflict => Err(BrokerError::GroupExists),
            GroupCreation::Limit(limit) => Err(BrokerError::GroupLimit { limit }),
        }
    }

    /// Changes what a group is, at once. Pulls that are parked in the name of a group that is disabled are refused.
    ///
    /// # Errors
    /// The group is as it was, unless [`BrokerError::stored`] says otherwise.
    pub async fn update_group(
        &self,
        name: &str,
        change: &GroupChange,
        deadline: Instant,
    ) -> Result<Group, BrokerError> {
        check(&change.applied_to(&GroupSettings::default()))?;
        if self.is_draining() {
            return Err(BrokerError::Draining);
        }
        let (group, applied) = loop {
            match self.state.groups.update(&self.store, name, change) {
                Ok(done) => break done,
                Err(AppendError::NotReady) => self.space(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        };
        // Before the wait, which its caller may leave: what is deliverable by the new settings is found.
        if let Some(group) = &group {
            self.state.offsets.wake_group(group.id);
        }
        self.settled(applied, deadline).await?;
        self.clients.group_changed(name);
        group.ok_or_else(|| unknown(name))
    }

    /// Deletes a group with its offsets, at once. Pulls that are parked in its name end. A group that is made later
    /// under the same name is another one.
    ///
    /// # Errors
    /// The group lives on, unless [`BrokerError::stored`] says otherwise.
    pub async fn delete_group(&self, name: &str, deadline: Instant) -> Result<(), BrokerError> {
        if self.is_draining() {
            return Err(BrokerError::Draining);
        }
        let (deleted, applied) = loop {
            match self.state.groups.delete(&self.store, name) {
                Ok(done) => break done,
                Err(AppendError::NotReady) => self.space(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        };
        if let Some(id) = deleted {
            self.state.offsets.forget_group(id);
        }
        self.settled(applied, deadline).await?;
        self.clients.group_changed(name);
        deleted.map(|_| ()).ok_or_else(|| unknown(name))
    }

    /// Up to `limit` groups with names after `after`, in byte order; `limit` is at most 10 000.
    ///
    /// # Errors
    /// `limit` is too large, or the table is not durable in time.
    pub async fn list_groups(
        &self,
        after: &str,
        limit: u32,
        deadline: Instant,
    ) -> Result<GroupPage, BrokerError> {
        within("groups in an answer", limit, MAX_PAGE)?;
        let (groups, more, applied) = self.state.groups.list(after, limit as usize);
        self.settled(applied, deadline).await?;
        Ok(GroupPage { groups, more })
    }

    /// A group and the topics that it has committed offsets of, by rising id after `after`, until `limit` queues are
    /// reached, or the filters of their members come to 1 MiB; `limit` is at most 10 000.
    ///
    /// # Errors
    /// There is no such group, `limit` is too large, or what is to be told is not durable in time.
    pub async fn describe_group(
        &self,
        name: &str,
        after: TopicId,
        limit: u32,
        deadline: Instant,
    ) -> Result<GroupDescription, BrokerError> {
        within("queues in an answer", limit, MAX_PAGE)?;
        let entry = self.group(name, deadline).await?;
        // Looked at behind the table: what the group is was told by a record before it.
        self.settled(self.state.groups.applied(), deadline).await?;
        // A topic has a queue at least.
        let (ids, mut more) = self.state.offsets.topics_of(entry.id(), after, limit as usize);
        let (mut topics, mut queues, mut len) = (Vec::new(), 0, 0);
        for id in ids {
            if queues >= limit as usize || len >= MAX_FILTERS_LEN {
                more = true;
                break;
            }
            // Deleted meanwhile.
            let Some(topic) = self.state.topics.by_id(id) else { continue };
            let progress = self.progress_in(&entry, &topic, 0, u32::MAX, deadline).await?;
            queues += progress.len();
            let filters = self.filters_in_use(&entry, id);
            len += filters.filters.iter().map(String::len).sum::<usize>();
            topics.push(GroupTopic { name: topic.name().into(), id, queues: progress, filters });
        }
        let group = Group { name: entry.name().into(), id: entry.id(), settings: entry.settings() };
        Ok(GroupDescription { group, topics, more })
    }

    fn filters_in_use(&self, group: &GroupEntry, topic: TopicId) -> FiltersInUse {
        let Some(ready) = self.state.offsets.ready.get((group.id(), topic)) else {
            return FiltersInUse::default();
        };
        let rule = group.settings().other_filters;
        let (filters, mismatches) = lock(&ready.subscriptions).in_use(rule);
        let filters = filters.iter().map(ToString::to_string).collect();
        let FilterWork { steps, faults, last_fault } = ready.filter_work();
        FiltersInUse { filters, mismatches, steps, faults, last_fault }
    }

    /// What there is to say of a filter with which somebody wants to receive messages of a topic for a group; `None`:
    /// nobody who receives uses another one.
    pub fn other_filter(
        &self,
        group: &str,
        topic: &str,
        filter: &Expression,
    ) -> Option<OtherFilter> {
        let group = self.state.groups.get(group)?;
        let topic = self.state.topics.get(topic)?;
        let ready = self.state.offsets.ready.get((group.id(), topic.id()))?;
        let rule = group.settings().other_filters;
        let mismatch = lock(&ready.subscriptions).compare(filter, rule)?;
        let (expected, is_refused) = (mismatch.expected.to_string(), mismatch.is_refused);
        Some(OtherFilter { expected, is_refused })
    }

    /// What a group is; `None`: there is none of this name, so it will be what groups are that nobody has set up.
    ///
    /// # Errors
    /// It is not durable in time.
    pub async fn group_settings(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Option<Arc<GroupSettings>>, BrokerError> {
        let settings = self.state.groups.get(name).map(|group| group.settings());
        self.settled(self.state.groups.applied(), deadline).await?;
        Ok(settings)
    }

    /// Makes a group that nobody has set up if there is none of the name and the configuration says so: for protocols
    /// whose clients have no call for that.
    ///
    /// # Errors
    /// There is none, and none was made.
    pub async fn open_group(&self, name: &str, deadline: Instant) -> Result<(), BrokerError> {
        if !self.config.auto_create_groups || self.state.groups.get(name).is_some() {
            return self.group(name, deadline).await.map(|_| ());
        }
        names::check_group(name)?;
        if self.is_draining() {
            return Err(BrokerError::Draining);
        }
        let limit = self.config.auto_create_limit;
        let made = loop {
            match self.state.groups.find_or_make(&self.store, name, limit) {
                Ok((made, applied)) => {
                    self.settled(applied, deadline).await?;
                    break made;
                }
                Err(AppendError::NotReady) => self.space(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        };
        match made {
            GroupCreation::Limit(limit) => Err(BrokerError::GroupLimit { limit }),
            GroupCreation::Ready(_) | GroupCreation::Conflict => Ok(()),
        }
    }

    /// How many groups there are, how many queue offsets they have committed, and the bytes of memory that those take,
    /// about.
    pub fn group_counts(&self) -> (u64, u64, u64) {
        let offsets = &self.state.offsets;
        (self.state.groups.count(), offsets.count(), offsets.memory_bytes())
    }

    /// How many queues have 10 000 open messages for a group, so that it gets no fresh ones of them until some are
    /// finished; each counts for each group.
    pub fn full_queues(&self) -> u64 {
        self.state.offsets.full()
    }

    /// How many messages receives looked at to deliver them: open ones that are due, and fresh ones. What a filter
    /// passes over is not among them, what waits for others of its message group is, once.
    pub fn looked_at(&self) -> u64 {
        self.state.offsets.looked_at.get()
    }

    /// The group of a name. That there is none may be told once the deletion is durable.
    ///
    /// # Errors
    /// There is none.
    pub(super) async fn group(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Arc<GroupEntry>, BrokerError> {
        if let Some(group) = self.state.groups.get(name) {
            return Ok(group);
        }
        names::check_group(name)?;
        self.settled(self.state.groups.applied(), deadline).await?;
        Err(unknown(name))
    }

    /// Refuses a group whose consumers get no messages. That it was deleted is told once that is durable.
    pub(super) async fn admits(
        &self,
        group: &GroupEntry,
        deadline: Instant,
    ) -> Result<(), BrokerError> {
        let Err(refusal) = self.admitted(group) else { return Ok(()) };
        if matches!(refusal, BrokerError::UnknownGroup { .. }) {
            self.settled(self.state.groups.applied(), deadline).await?;
        }
        Err(refusal)
    }

    /// Whether the consumers of a group get messages; waits for the end of a deletion that is half done.
    ///
    /// # Errors
    /// It is deleted or disabled.
    pub(super) fn admitted(&self, group: &GroupEntry) -> Result<(), BrokerError> {
        if group.is_dead() && !self.state.groups.has(group) {
            return Err(BrokerError::UnknownGroup { name: group.name().into() });
        }
        if !group.is_enabled() {
            return Err(BrokerError::GroupDisabled { name: group.name().into() });
        }
        Ok(())
    }
}

/// The refusal of a name that no group has.
fn unknown(name: &str) -> BrokerError {
    match names::check_group(name) {
        Ok(()) => BrokerError::UnknownGroup { name: name.into() },
        Err(fault) => fault.into(),
    }
}

/// Refuses what no group can be.
fn check(settings: &GroupSettings) -> Result<(), BrokerError> {
    within("retry jitter in percent", settings.retry_jitter, MAX_JITTER)?;
    let delays = &settings.retry_delays_ms;
    if delays.is_empty() {
        return Err(BrokerError::BadRequest { fault: RequestFault::NoRetryDelays });
    }
    within("retry delays", u32::try_from(delays.len()).unwrap_or(u32::MAX), MAX_DELAYS)?;
    match delays.iter().find(|delay| **delay > MAX_DELAY_MS) {
        Some(found) => Err(BrokerError::TooLarge {
            what: "retry delay in ms",
            found: *found,
            limit: MAX_DELAY_MS,
        }),
        None => Ok(()),
    }
}
