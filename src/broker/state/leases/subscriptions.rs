//! Which filters the members of a group use for a topic: they should be one. No state: learned from their receives.
//!
//! What one filter leaves out is finished for the whole group, so two members with different filters lose messages to
//! each other. That is noticed here, and shown; a group may have it refused instead, or have its members change from
//! one filter to the next while both get theirs. What was already delivered to a member is not finished by the filter
//! of another one.
//!
//! | with `roll` a filter that | is |
//! | --- | --- |
//! | came into use before another one that has been in use for ten minutes | the old version, and refused |
//! | is a third one, while two are in use | refused |
//! | was out of use and is newer than all that are in use | new again: both are served for ten minutes |
//!
//! Which of two is the older one never turns round while somebody comes with each at least every ten minutes, served
//! or not. After that, and after a start, it is the one that comes first. So the old version is served again as soon as
//! the newer one is silent for three minutes, and the newer one is never refused when it comes back.
//!
//! | a message that a member does not want | is left to those with a filter that wants it |
//! | --- | --- |
//! | it was delivered to somebody | if it was used in the last ten minutes |
//! | it is kept for the other version | if it was used in the last three minutes; one if its queue has no room for more |
//! | nobody known wants it | in the first minute: they may not have come yet. Not if it waits for a day already |

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

use super::FilterId;
use crate::filter::{Expression, Subject};
use crate::message::OtherFilters;

/// A filter is in use for so long after a receive with it.
pub(crate) const IN_USE: Duration = Duration::from_secs(60);

/// Whose filter was not used for so long does not come back for what he left behind.
const KEPT: Duration = Duration::from_secs(600);

/// For so long what one of two versions of a filter wants is kept; then the new one is the group's.
pub(crate) const ROLL: Duration = Duration::from_secs(600);

/// For so long what a version wants is kept while nobody asks with it: somebody may work on what he has.
const SILENT: Duration = Duration::from_secs(180);

/// For somebody who has not come yet nothing is left that was left for so long already: a group that only comes for
/// less than a minute each time would never be through with it.
const FORGOTTEN: Duration = Duration::from_secs(24 * 60 * 60);

/// So many different filters are known; of more the one that was not used for longest is forgotten.
const MAX_FILTERS: usize = 4;

#[derive(Clone, Debug)]
struct Used {
    filter: Arc<Expression>,
    id: FilterId,
    since: Instant,
    last: Instant,
    /// When somebody came with it last, served or refused.
    came: Instant,
}

impl Used {
    /// Whether somebody received with it lately.
    fn is_in_use(&self, now: Instant, rule: OtherFilters) -> bool {
        let lately = if rule == OtherFilters::Roll { SILENT } else { IN_USE };
        now.saturating_duration_since(self.last) <= lately
    }
}

/// A filter that differs from that of other members.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mismatch {
    /// The filter that the group uses.
    pub(crate) expected: Arc<Expression>,
    /// This one was not known before.
    pub(crate) is_new: bool,
    /// It is not served.
    pub(crate) is_refused: bool,
}

/// The filters of a group for a topic.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    since: Instant,
    used: Vec<Used>,
    /// Receives with another filter than the group's, refused or not.
    mismatches: u64,
}

impl Subscriptions {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), used: Vec::new(), mismatches: 0 }
    }

    /// Notes a receive. Returns what there is to say of its filter if others use another one; if it is refused it is
    /// not noted.
    pub(crate) fn note(&mut self, filter: &Expression, rule: OtherFilters) -> Option<Mismatch> {
        let now = Instant::now();
        if let [used] = self.used.as_mut_slice()
            && *used.filter == *filter
        {
            (used.last, used.came) = (now, now);
            return None;
        }
        self.used.retain(|used| now.saturating_duration_since(used.came) <= KEPT);
        let mismatch = self.compare(filter, rule);
        // Its ten minutes begin anew, or it would take the others' place at once.
        let own = self.used.iter().find(|used| *used.filter == *filter);
        let is_back = own.is_some_and(|own| {
            let in_use = self.used.iter().filter(|used| used.is_in_use(now, rule));
            let newest = in_use.map(|used| used.since).max();
            !own.is_in_use(now, rule) && newest.is_some_and(|newest| newest < own.since)
        });
        let is_served = mismatch.as_ref().is_none_or(|mismatch| !mismatch.is_refused);
        match self.used.iter_mut().find(|used| *used.filter == *filter) {
            Some(used) => {
                // Who is refused and goes on coming with an old filter does not make it a new one by that.
                used.came = now;
                if is_served {
                    used.since = if is_back { now } else { used.since };
                    used.last = now;
                }
            }
            None if is_served => {
                if self.used.len() >= MAX_FILTERS
                    && let Some(at) = (0..self.used.len())
                        .min_by_key(|at| self.used.get(*at).map(|used| used.came))
                {
                    self.used.swap_remove(at);
                }
                let (filter, id) = (Arc::new(filter.clone()), id_of(filter));
                self.used.push(Used { filter, id, since: now, last: now, came: now });
            }
            None => {}
        }
        mismatch
    }

    /// Counts a receive of which there was something to say.
    pub(crate) fn count_mismatch(&mut self) {
        self.mismatches += 1;
    }

    /// What there would be to say of a receive with this filter now; notes nothing.
    pub(crate) fn compare(&self, filter: &Expression, rule: OtherFilters) -> Option<Mismatch> {
        let now = Instant::now();
        let past = |at: Instant| now.saturating_duration_since(at);
        let known = || self.used.iter().filter(|used| past(used.came) <= KEPT);
        let in_use = || known().filter(|used| used.is_in_use(now, rule));
        let oldest = in_use().min_by_key(|used| used.since);
        let is_settled = |used: &&Used| rule == OtherFilters::Roll && past(used.since) >= ROLL;
        let settled = in_use().filter(is_settled).max_by_key(|used| used.since);
        let own = known().find(|used| *used.filter == *filter);
        let is_third = || in_use().filter(|used| *used.filter != *filter).count() > 1;
        let is_refused = match rule {
            OtherFilters::Warn => false,
            OtherFilters::Refuse => true,
            // One goes on to the next, which is new or the second.
            OtherFilters::Roll => {
                let is_old = |own: &Used| settled.is_some_and(|other| own.since < other.since);
                let is_in_use = own.is_some_and(|own| own.is_in_use(now, rule));
                own.is_some_and(is_old) || !is_in_use && is_third()
            }
        };
        settled.or(oldest).filter(|used| *used.filter != *filter).map(|used| Mismatch {
            expected: Arc::clone(&used.filter),
            is_new: own.is_none(),
            is_refused,
        })
    }

    /// The filters that members use now, the oldest first, and how many receives came with another one than the
    /// group's.
    pub(crate) fn in_use(&self, rule: OtherFilters) -> (Vec<Arc<Expression>>, u64) {
        let now = Instant::now();
        let mut used: Vec<_> = self.used.iter().filter(|used| used.is_in_use(now, rule)).collect();
        used.sort_by_key(|used| used.since);
        (used.into_iter().map(|used| Arc::clone(&used.filter)).collect(), self.mismatches)
    }

    /// Whether nothing is known any more that another one, begun anew, would not know.
    pub(super) fn is_over(&self) -> bool {
        let now = Instant::now();
        let is_over = |at: Instant| now.saturating_duration_since(at) > KEPT;
        is_over(self.since) && self.used.iter().all(|used| is_over(used.came))
    }

    /// The other filters that were used lately: what they want is kept for those who come with them, if the group
    /// changes from one to the next.
    pub(crate) fn others(&self, filter: &Expression) -> Vec<Arc<Expression>> {
        let now = Instant::now();
        let others = self.used.iter().filter(|used| {
            *used.filter != *filter && now.saturating_duration_since(used.last) <= SILENT
        });
        others.map(|used| Arc::clone(&used.filter)).collect()
    }

    /// For whom a message is left that a filter does not want: for the one that was used last of those that want it,
    /// or for somebody who may not have come yet, 0. `None`: for nobody.
    pub(crate) fn left_for(
        &self,
        filter: &Expression,
        message: &impl Subject,
        past: Past,
    ) -> Option<FilterId> {
        let now = Instant::now();
        let lately = match past {
            Past { was_delivered: true, .. } => KEPT,
            Past { is_full: false, .. } => SILENT,
            // What is kept must not keep those from going on who come.
            Past { is_full: true, .. } => IN_USE,
        };
        let others = self.used.iter().filter(|used| {
            *used.filter != *filter && now.saturating_duration_since(used.last) <= lately
        });
        let wanting = others.filter(|used| used.filter.matches(message));
        let last = wanting.max_by_key(|used| used.last).map(|used| used.id);
        let may_come = now.saturating_duration_since(self.since) < IN_USE && past.waits < FORGOTTEN;
        last.or(may_come.then_some(0))
    }
}

/// What a filter is known by.
pub(crate) fn id_of(filter: &Expression) -> FilterId {
    /// Takes in what is written.
    struct Text(Xxh3);

    impl fmt::Write for Text {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.update(text.as_bytes());
            Ok(())
        }
    }

    let mut text = Text(Xxh3::new());
    // It cannot fail.
    let _ = write!(text, "{filter}");
    let [a, b, c, d, ..] = text.0.digest().to_le_bytes();
    u32::from_le_bytes([a, b, c, d]).max(1)
}

/// What has become of a message that somebody does not want.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Past {
    /// Somebody had it; else it is kept for the other version of a filter.
    pub(crate) was_delivered: bool,
    /// Its queue has no room for more that is open.
    pub(crate) is_full: bool,
    /// For so long it could be delivered, as far as the broker was there.
    pub(crate) waits: Duration,
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::filter::Language;

    fn note(known: &mut Subscriptions, text: &str, only_one: bool) -> Option<String> {
        let rule = if only_one { OtherFilters::Refuse } else { OtherFilters::Warn };
        known.note(&tags(text), rule).map(|other| other.expected.to_string())
    }

    fn tags(text: &str) -> Expression {
        Expression::parse(Language::Tags, text).unwrap()
    }

    /// A message of which nothing but its tag counts.
    struct Tagged(&'static str);

    impl Subject for Tagged {
        fn tag(&self) -> Option<&str> {
            Some(self.0)
        }

        fn property(&self, _: &str) -> Option<Cow<'_, str>> {
            None
        }
    }

    fn may_want(known: &Subscriptions, own: &str, tag: &'static str) -> bool {
        let past = Past { was_delivered: true, is_full: false, waits: Duration::ZERO };
        known.left_for(&tags(own), &Tagged(tag), past).is_some()
    }

    const MINUTE: Duration = Duration::from_secs(60);

    fn in_use(known: &Subscriptions) -> (Vec<String>, u64) {
        let (filters, mismatches) = known.in_use(OtherFilters::Warn);
        (filters.iter().map(ToString::to_string).collect(), mismatches)
    }

    async fn pass(time: Duration) {
        tokio::time::advance(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_filter_is_the_only_one_after_a_minute_and_another_one_is_noticed_as_long_as_both_are_used()
     {
        let mut known = Subscriptions::new();
        assert_eq!(note(&mut known, "a || b", false), None);
        assert!(may_want(&known, "a", "z"), "others may not have asked yet");
        pass(IN_USE).await;
        assert_eq!(note(&mut known, "b || a", false), None, "the same");
        assert!(!may_want(&known, "b || a", "z"));
        assert_eq!(note(&mut known, "c", false).as_deref(), Some("a || b"));
        assert_eq!(note(&mut known, "a || b", false), None, "it was there first");
        assert_eq!(["a", "c", "z"].map(|tag| may_want(&known, "c", tag)), [true, false, false]);
        assert_eq!(
            ["a", "c", "z"].map(|tag| may_want(&known, "b || a", tag)),
            [false, true, false]
        );
        assert_eq!(in_use(&known), (vec!["a || b".to_owned(), "c".to_owned()], 0));
        let compared = known.compare(&tags("c"), OtherFilters::Warn).unwrap();
        assert_eq!(
            (compared.expected.to_string().as_str(), compared.is_refused),
            ("a || b", false)
        );
        assert_eq!(known.compare(&tags("b || a"), OtherFilters::Warn), None);
        let other = known.compare(&tags("z"), OtherFilters::Refuse).unwrap();
        assert!(other.is_new && other.is_refused);
        assert_eq!(known.used.len(), 2, "a look is no receive");
        pass(IN_USE).await;
        assert_eq!(note(&mut known, "c", false), Some("a || b".to_owned()));
        pass(Duration::from_secs(1)).await;
        assert_eq!(note(&mut known, "c", false), None, "nobody uses the old one any more");
        known.count_mismatch();
        assert_eq!(in_use(&known), (vec!["c".to_owned()], 1));
        assert_eq!(note(&mut known, "a || b", false).as_deref(), Some("c"), "now it is new");
        pass(KEPT + Duration::from_secs(1)).await;
        assert_eq!(note(&mut known, "c", false), None);
        assert!(!may_want(&known, "c", "a"));
    }

    #[tokio::test(start_paused = true)]
    async fn where_only_one_is_allowed_another_one_is_refused_until_nobody_uses_the_first() {
        let mut known = Subscriptions::new();
        assert_eq!(note(&mut known, "a", true), None);
        for _ in 0..3 {
            assert_eq!(note(&mut known, "b", true).as_deref(), Some("a"));
        }
        assert_eq!(known.used.len(), 1);
        pass(IN_USE + Duration::from_secs(1)).await;
        assert_eq!(note(&mut known, "b", true), None);
        assert_eq!(note(&mut known, "a", true).as_deref(), Some("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_filters_are_kept_than_may_be() {
        let mut known = Subscriptions::new();
        for tag in 0..100 {
            let _other = note(&mut known, &format!("t{tag}"), false);
            pass(Duration::from_millis(1)).await;
        }
        assert_eq!(known.used.len(), MAX_FILTERS);
        assert!(known.used.iter().any(|used| *used.filter == tags("t99")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_goes_on_from_one_filter_to_the_next_and_serves_two_for_ten_minutes() {
        let mut known = Subscriptions::new();
        let mut note = |text: &str| {
            let noted = known.note(&tags(text), OtherFilters::Roll);
            let others = known.others(&tags(text)).iter().map(ToString::to_string).collect();
            (noted.map(|of| (of.expected.to_string(), of.is_refused)), others)
        };
        let served = |others: &[&str]| (None, others.iter().map(ToString::to_string).collect());
        let told = |expected: &str, is_refused: bool, others: &[&str]| -> (_, Vec<String>) {
            let others = others.iter().map(ToString::to_string).collect();
            (Some((expected.to_owned(), is_refused)), others)
        };
        assert_eq!(note("old"), served(&[]));
        pass(2 * ROLL).await;
        assert_eq!(note("old"), served(&[]), "it is the only one");
        assert_eq!(note("new"), told("old", false, &["old"]));
        for _ in 0..19 {
            pass(Duration::from_secs(30)).await;
            assert_eq!(note("old"), served(&["new"]));
            assert_eq!(note("new"), told("old", false, &["old"]));
            assert_eq!(note("third"), told("old", true, &["old", "new"]));
        }
        pass(Duration::from_secs(30)).await;
        assert_eq!(note("new"), served(&["old"]));
        assert_eq!(note("old"), told("new", true, &["new"]));
        // However long it goes on to come, the old one does not become a new one.
        for _ in 0..60 {
            pass(Duration::from_secs(30)).await;
            assert_eq!(note("new").0, None);
            assert_eq!(note("old"), told("new", true, &["new"]));
        }
        assert_eq!(note("new"), served(&[]), "nobody was served with the old one");
        assert_eq!(note("third"), told("new", false, &["new"]), "the next version");
        // Nor do the two change places after a while in which nobody comes.
        pass(Duration::from_secs(120)).await;
        assert_eq!(note("new"), served(&["third"]), "first again, and still the older one");
        for _ in 0..15 {
            assert_eq!(note("third"), told("new", false, &["new"]));
            pass(Duration::from_secs(30)).await;
            assert_eq!(note("new"), served(&["third"]));
        }
        pass(Duration::from_secs(30)).await;
        assert_eq!(note("third"), served(&["new"]));
        assert_eq!(note("new"), told("third", true, &["third"]));
    }

    /// What there is to say of a filter of a group that goes on from one to the next: whose it is, if it is refused.
    fn rolled(known: &mut Subscriptions, text: &str) -> Option<String> {
        let mismatch = known.note(&tags(text), OtherFilters::Roll)?;
        mismatch.is_refused.then(|| mismatch.expected.to_string())
    }

    /// Somebody comes every half a minute; who it is and what he is told.
    async fn come(known: &mut Subscriptions, minutes: u64, told: &[(&str, Option<&str>)]) {
        for half in 0..2 * minutes {
            for (text, expected) in told {
                let found = rolled(known, text);
                assert_eq!(found.as_deref(), *expected, "{text} after {half} half minutes");
            }
            pass(Duration::from_secs(30)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_version_that_was_rolled_back_and_comes_again_is_the_new_one_again() {
        let mut known = Subscriptions::new();
        come(&mut known, 20, &[("old", None)]).await;
        come(&mut known, 2, &[("old", None), ("new", None)]).await;
        // Longer than it takes to be out of use, and not so long that it is forgotten.
        come(&mut known, 4, &[("old", None)]).await;
        come(&mut known, 10, &[("old", None), ("new", None)]).await;
        come(&mut known, 30, &[("new", None), ("old", Some("new"))]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_version_that_is_served_while_the_new_one_is_away_does_not_take_its_place() {
        let mut known = Subscriptions::new();
        come(&mut known, 20, &[("old", None)]).await;
        come(&mut known, 10, &[("old", None), ("new", None)]).await;
        come(&mut known, 60, &[("new", None), ("old", Some("new"))]).await;
        pass(SILENT).await;
        come(&mut known, 2, &[("old", None)]).await;
        come(&mut known, 10, &[("new", None), ("old", None)]).await;
        come(&mut known, 60, &[("new", None), ("old", Some("new"))]).await;
        // However long it was away.
        for minutes in [4, 8, 9, 12, 20, 60] {
            pass(SILENT).await;
            come(&mut known, minutes, &[("old", None)]).await;
            come(&mut known, 10, &[("old", None), ("new", None)]).await;
            come(&mut known, 5, &[("new", None), ("old", Some("new"))]).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_versions_that_were_all_served_the_newest_is_the_groups_when_it_begins_to_roll() {
        let mut known = Subscriptions::new();
        for text in ["one", "two", "three"] {
            assert!(known.note(&tags(text), OtherFilters::Warn).is_none_or(|of| !of.is_refused));
            pass(Duration::from_secs(1)).await;
        }
        come(&mut known, 9, &[("one", None), ("two", None), ("three", None)]).await;
        pass(MINUTE).await;
        come(&mut known, 9, &[("three", None), ("one", Some("three")), ("two", Some("three"))])
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_a_day_is_not_left_to_somebody_who_may_come() {
        let known = Subscriptions::new();
        let left = |waits| {
            let past = Past { was_delivered: true, is_full: false, waits };
            known.left_for(&tags("a"), &Tagged("b"), past).is_some()
        };
        assert!(left(FORGOTTEN - Duration::from_millis(1)));
        assert!(!left(FORGOTTEN));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_in_a_full_queue_is_left_to_who_comes_at_least_each_minute() {
        let mut known = Subscriptions::new();
        assert_eq!(rolled(&mut known, "a"), None);
        let left = |known: &Subscriptions, is_full| {
            let past = Past { was_delivered: false, is_full, waits: Duration::ZERO };
            known.left_for(&tags("b"), &Tagged("a"), past).is_some()
        };
        pass(IN_USE).await;
        assert!(left(&known, true));
        pass(Duration::from_secs(1)).await;
        assert_eq!([true, false].map(|is_full| left(&known, is_full)), [false, true]);
        pass(SILENT - IN_USE).await;
        assert!(!left(&known, false));
    }
}
