//! Producer sessions: opened and closed.

use super::*;

impl Model {
    pub(super) fn open_session(&mut self, name: &'static str) {
        let closed = self.world.idle(name, self.wall);
        let known = self.world.sessions.get(name);
        let next = self.world.next_ids().2;
        let (id, epoch, last) =
            known.map_or((next, 1, 0), |session| (session.id, session.epoch + 1, session.last()));
        self.tally.note("idle sessions closed", closed.len() as u64);
        let effect = Effect::SessionOpened { name, closed, at: self.wall };
        let answer = Ok(Answer::Session { id, epoch, last });
        self.execute(
            Plan::new(vec![effect], answer, Wait::Own),
            |broker| {
                Box::pin(async move {
                    let session = broker.open_session(name, late()).await?;
                    let (id, epoch) = (session.id.get(), session.epoch);
                    Ok((Answer::Session { id, epoch, last: session.last_sequence }, None))
                })
            },
            false,
        );
    }

    pub(super) fn close_session(&mut self, name: &'static str, holder: Option<u64>) {
        let wait = self.settled(Wait::Own);
        let known = self.world.sessions.get(name);
        let holder = holder.map(|back| match known {
            Some(session) => (SessionId::new(session.id), session.epoch.saturating_sub(back)),
            None => (SessionId::new(1), 1),
        });
        let plan = match (known, holder) {
            (None, _) => Plan::refused(SessionFault::Unknown.into()),
            (Some(session), Some((_, epoch))) if epoch < session.epoch => {
                Plan::refused(SessionFault::Fenced { current: session.epoch }.into())
            }
            (Some(_), _) => Plan::new(vec![Effect::SessionClosed { name }], Ok(Answer::Done), wait),
        };
        self.execute(
            plan,
            |broker| {
                Box::pin(async move {
                    broker.close_session(name, holder, late()).await?;
                    Ok((Answer::Done, None))
                })
            },
            false,
        );
    }
}
