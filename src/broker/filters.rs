//! Conditions that consumers ask with again and again, understood once.
//!
//! Kept by their text, in two halves: what is asked for is in the first or comes back to it from the second. When the
//! first is full it becomes the second, and what was not asked for meanwhile is forgotten with the old one.

use std::collections::HashMap;
use std::sync::Arc;

use super::Broker;
use crate::filter::{Expression, FilterError, Language};
use crate::sync::{Mutex, lock};

/// Conditions of a half.
const MAX_CONDITIONS: usize = 256;

/// Bytes of their texts. What is understood takes some tens of times as much.
const MAX_BYTES: usize = 64 << 10;

type Half = HashMap<Box<str>, Arc<Expression>, foldhash::fast::RandomState>;

/// What was understood.
#[derive(Debug, Default)]
pub(super) struct Filters(Mutex<Halves>);

#[derive(Debug, Default)]
struct Halves {
    first: Half,
    /// Bytes of its texts.
    bytes: usize,
    second: Half,
}

impl Halves {
    fn get(&mut self, text: &str) -> Option<Arc<Expression>> {
        if let Some(known) = self.first.get(text) {
            return Some(Arc::clone(known));
        }
        let known = self.second.remove(text)?;
        self.keep(text, &known);
        Some(known)
    }

    fn keep(&mut self, text: &str, expression: &Arc<Expression>) {
        if self.first.len() >= MAX_CONDITIONS || self.bytes + text.len() > MAX_BYTES {
            self.second = std::mem::take(&mut self.first);
            self.bytes = 0;
        }
        if self.first.insert(text.into(), Arc::clone(expression)).is_none() {
            self.bytes += text.len();
        }
    }
}

impl Broker {
    /// Which messages are wanted by who says so in these words. Conditions that were asked with lately are not looked
    /// at again.
    ///
    /// # Errors
    /// What is wrong with the words.
    pub fn expression(
        &self,
        language: Language,
        text: &str,
    ) -> Result<Arc<Expression>, FilterError> {
        if language == Language::Tags {
            return Expression::parse(language, text).map(Arc::new);
        }
        if let Some(known) = lock(&self.filters.0).get(text) {
            return Ok(known);
        }
        // Without the lock: two at once do it both.
        self.counters.conditions.add(1);
        let expression = Arc::new(Expression::parse(language, text)?);
        lock(&self.filters.0).keep(text, &expression);
        Ok(expression)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::BrokerConfig;
    use crate::message::Timestamp;
    use crate::store::StoreConfig;
    use crate::testing::{ManualClock, SimDisk};

    fn open() -> Arc<Broker> {
        let clock = Arc::new(ManualClock::new(Timestamp::new(1_000_000)));
        let store = StoreConfig { segment_size: 4 << 20, ..StoreConfig::new("/data") };
        let disk = Arc::new(SimDisk::new());
        Broker::open(disk, clock, store, BrokerConfig::default()).unwrap().0
    }

    #[test]
    fn a_condition_is_looked_at_once_however_often_it_is_asked_with() {
        let broker = open();
        for _ in 0..1_000 {
            for text in ["a = 'x'", "b > 3"] {
                let found = broker.expression(Language::Sql, text).unwrap();
                assert_eq!(*found, Expression::parse(Language::Sql, text).unwrap());
            }
            broker.expression(Language::Tags, "x || y").unwrap();
        }
        assert_eq!(broker.counters().conditions.get(), 2);
        // What is wrong is not kept.
        for _ in 0..2 {
            broker.expression(Language::Sql, "a = ").unwrap_err();
        }
        assert_eq!(broker.counters().conditions.get(), 4);
        broker.close().unwrap();
    }

    #[test]
    fn conditions_that_nobody_asks_with_any_more_go_and_the_others_stay() {
        let broker = open();
        let used = "used = 'always'";
        let mut most = 0;
        for number in 0..20 * MAX_CONDITIONS {
            // Some long, some short: one bound is met first, then the other.
            let len = if number % 2 == number / 2_000 % 2 { 3_000 } else { 9 };
            let text = format!("a = '{number:0len$}'");
            broker.expression(Language::Sql, &text).unwrap();
            broker.expression(Language::Sql, used).unwrap();
            let halves = lock(&broker.filters.0);
            let bytes = |half: &Half| half.keys().map(|text| text.len()).sum::<usize>();
            assert_eq!(halves.bytes, bytes(&halves.first));
            for half in [&halves.first, &halves.second] {
                assert!(half.len() <= MAX_CONDITIONS && bytes(half) <= MAX_BYTES);
                most = most.max(half.len());
            }
        }
        let looked_at = broker.counters().conditions.get();
        assert_eq!(looked_at, 1 + 20 * MAX_CONDITIONS as u64, "what is used stays");
        assert!(most > 20, "{most}");
        let forgotten = format!("a = '{:09}'", 1);
        broker.expression(Language::Sql, &forgotten).unwrap();
        assert_eq!(broker.counters().conditions.get(), looked_at + 1);
        broker.close().unwrap();
    }
}
