//! What the loop heeds of an operator, and what it tells to who watches the line as a whole.

use super::metrics::Counts;
use super::{DaemonEvent, Supervisor};
use crate::line::pause;

impl Supervisor<'_> {
    /// Looks whether the line is paused, and tells of a change.
    pub(super) fn heed_pause(&mut self) {
        let pause = pause::read(&self.floor.layout);
        if pause == self.paused {
            return;
        }
        let why = pause.as_ref().map(|pause| pause.why().to_owned());
        self.floor.observer.see(&DaemonEvent::Paused { reason: why.as_deref() });
        self.floor.heart.update(|beat| beat.paused = why);
        self.paused = pause;
    }

    /// Figures for the metrics page, and a sign of life for the service manager.
    pub(super) fn tell_state(&self) {
        let (queued, oldest) = (self.intake.len(), self.intake.oldest());
        self.floor.metrics.count(Counts { summary: self.summary.clone(), queued, oldest });
        let what = match (&self.paused, self.running) {
            (Some(pause), running) => format!("paused ({}), {running} being built", pause.why()),
            (None, 0) => "idle".to_owned(),
            (None, running) => format!("{running} being built"),
        };
        self.floor.options.notify.turned(&format!("{what}, {queued} waiting"));
    }
}
