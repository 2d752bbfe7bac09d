//! Which filters the members of a group use for a topic: they should be one. No state: learned from their receives.
//!
//! What one filter leaves out is finished for the whole group, so two members with different filters lose messages to
//! each other. That is noticed here, and shown; a group may have it refused instead, or have its members change from
//! one filter to the next while both get theirs. What was already delivered to a member is not finished by the filter
//! of another one.
//!
//! Which of two filters is the older one is known since the first receive with each: after a start it is the one that
//! comes first.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

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

/// So many different filters are known; of more the one that was not used for longest is forgotten.
const MAX_FILTERS: usize = 4;

#[derive(Clone, Debug)]
struct Used {
    filter: Arc<Expression>,
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
        if let Some(known) = self.used.iter_mut().find(|used| *used.filter == *filter) {
            // Who is refused and goes on coming with an old filter does not make it a new one by that.
            known.came = now;
        }
        if let Some(Mismatch { is_refused: true, .. }) = &mismatch {
            return mismatch;
        }
        match self.used.iter_mut().find(|used| *used.filter == *filter) {
            Some(used) => {
                // A version stays the older one, whoever comes first after a while.
                if !used.is_in_use(now, rule) && rule != OtherFilters::Roll {
                    used.since = now;
                }
                used.last = now;
            }
            None => {
                if self.used.len() >= MAX_FILTERS
                    && let Some(at) = (0..self.used.len())
                        .min_by_key(|at| self.used.get(*at).map(|used| used.came))
                {
                    self.used.swap_remove(at);
                }
                let filter = Arc::new(filter.clone());
                self.used.push(Used { filter, since: now, last: now, came: now });
            }
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
        let is_new = self.used.iter().all(|used| *used.filter != *filter);
        let in_use = || self.used.iter().filter(|used| used.is_in_use(now, rule));
        let oldest = in_use().min_by_key(|used| used.since);
        let newest = in_use().max_by_key(|used| used.since);
        let is_rolled =
            newest.is_some_and(|newest| now.saturating_duration_since(newest.since) >= ROLL);
        let of_group = match rule {
            OtherFilters::Roll if is_rolled => newest,
            OtherFilters::Warn | OtherFilters::Refuse | OtherFilters::Roll => oldest,
        };
        let others = in_use().filter(|used| *used.filter != *filter).count();
        let is_refused = match rule {
            OtherFilters::Warn => false,
            OtherFilters::Refuse => true,
            // One goes on to the next, which is known or the second.
            OtherFilters::Roll => is_rolled && others > 0 && !is_new || others > 1,
        };
        of_group.filter(|used| *used.filter != *filter).map(|used| Mismatch {
            expected: Arc::clone(&used.filter),
            is_new,
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

    /// The other filters that were used lately: what they want is kept for those who come with them, if the group
    /// changes from one to the next.
    pub(crate) fn others(&self, filter: &Expression) -> Vec<Arc<Expression>> {
        let now = Instant::now();
        let others = self.used.iter().filter(|used| {
            *used.filter != *filter && now.saturating_duration_since(used.last) <= SILENT
        });
        others.map(|used| Arc::clone(&used.filter)).collect()
    }

    /// Whether some other filter may want a message: one that was used lately does, or whoever uses one may not have
    /// come yet. A message that was delivered is left for longer, to those who come back for it.
    pub(crate) fn may_want(
        &self,
        filter: &Expression,
        message: &impl Subject,
        was_delivered: bool,
    ) -> bool {
        let now = Instant::now();
        let lately = if was_delivered { KEPT } else { SILENT };
        let others = self.used.iter().filter(|used| {
            *used.filter != *filter && now.saturating_duration_since(used.last) <= lately
        });
        now.saturating_duration_since(self.since) < IN_USE
            || others.into_iter().any(|used| used.filter.matches(message))
    }
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
        known.may_want(&tags(own), &Tagged(tag), true)
    }

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
}
