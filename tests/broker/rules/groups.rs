//! Consumer groups: made, changed, deleted.

use super::*;

impl Model {
    pub(super) fn begin_of(&self, place: Where) -> InitialPosition {
        match place {
            Where::Earliest | Where::Offset(_) => InitialPosition::Earliest,
            Where::Latest => InitialPosition::Latest,
            Where::Time(share, by) => InitialPosition::Time(Timestamp::new(self.time(share, by))),
        }
    }

    /// The time of some message, so many ms earlier or later.
    pub(super) fn time(&self, share: Share, by: i64) -> u64 {
        let topics = self.world.topics.values();
        let queues = topics.flat_map(|topic| &topic.queues);
        let times: Vec<u64> =
            queues.flat_map(|queue| queue.records.iter().map(|record| record.time)).collect();
        let index = usize::from(share) * times.len() / 65_536;
        times.get(index).copied().unwrap_or(self.wall).saturating_add_signed(by)
    }

    pub(super) fn create_group(&mut self, name: &'static str, wish: &GroupWish) {
        let settings = GroupSettings {
            enabled: wish.enabled,
            max_attempts: Some(wish.attempts),
            initial_position: self.begin_of(wish.begin),
            ..GroupSettings::default()
        };
        let wait = self.settled(Wait::Groups);
        let plan = match self.world.groups.get(name) {
            None => {
                let id = self.world.next_ids().1;
                let answer = Ok(Answer::Group(id, settings.clone()));
                let effect = Effect::GroupCreated { name, settings: settings.clone() };
                Plan::new(vec![effect], answer, wait)
            }
            Some(group) if group.settings == settings => {
                Plan::new(Vec::new(), Ok(Answer::Group(group.id, settings.clone())), wait)
            }
            Some(_) => Plan::new(Vec::new(), Err(BrokerError::GroupExists), wait),
        };
        self.execute(
            plan,
            |broker| {
                let settings = settings.clone();
                Box::pin(async move {
                    let group = broker.create_group(name, &settings, late()).await?;
                    Ok((Answer::Group(group.id.get(), GroupSettings::clone(&group.settings)), None))
                })
            },
            false,
        );
    }

    pub(super) fn update_group(&mut self, name: &'static str, wish: &GroupWish) {
        let change = GroupChange {
            enabled: Some(wish.enabled),
            max_attempts: Some(Some(wish.attempts)),
            initial_position: Some(self.begin_of(wish.begin)),
            ..GroupChange::default()
        };
        let wait = self.settled(Wait::Groups);
        let plan = match self.world.groups.get(name) {
            None => Plan::new(Vec::new(), Err(unknown_group(name)), wait),
            Some(group) => {
                let settings = change.applied_to(&group.settings);
                let answer = Ok(Answer::Group(group.id, settings.clone()));
                let effect = Effect::GroupUpdated { name, settings: settings.clone() };
                let effects = if settings == group.settings { vec![] } else { vec![effect] };
                Plan::new(effects, answer, wait)
            }
        };
        self.execute(
            plan,
            |broker| {
                let change = change.clone();
                Box::pin(async move {
                    let group = broker.update_group(name, &change, late()).await?;
                    Ok((Answer::Group(group.id.get(), GroupSettings::clone(&group.settings)), None))
                })
            },
            false,
        );
    }

    pub(super) fn delete_group(&mut self, name: &'static str) {
        let wait = self.settled(Wait::Groups);
        let plan = match self.world.groups.contains_key(name) {
            true => Plan::new(vec![Effect::GroupDeleted { name }], Ok(Answer::Done), wait),
            false => Plan::new(Vec::new(), Err(unknown_group(name)), wait),
        };
        self.execute(
            plan,
            |broker| {
                Box::pin(async move {
                    broker.delete_group(name, late()).await?;
                    Ok((Answer::Done, None))
                })
            },
            false,
        );
    }
}
