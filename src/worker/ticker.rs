//! The heartbeat of a worker: repeats its newest progress about once a second, as long as there is any.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::stage::Progress;

/// Runs `work` while a thread of its own lets `progress` tick. The thread has ended when this returns, also by panic.
pub(super) fn while_ticking<T>(progress: &Progress<'_>, work: impl FnOnce() -> T) -> T {
    let (running, stopped) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while stopped.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                progress.tick();
            }
        });
        // Dropped at the end of `work`, also when it unwinds: that is what stops the ticker.
        let _running = running;
        work()
    })
}
