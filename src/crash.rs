//! Named points at which a debug build stops dead when asked to, for tests of recovery.
//!
//! `FACTORYLINE_CRASH_AT=quant:written` kills the worker there. Points: `plan:written`, `<stage type>:started`,
//! `<stage type>:written` (files are there, the checkpoint is not), `<stage type>:checkpointed`, `quant:output:<file>` (it is
//! there, the stage is not done), `savepoint:<n>` (a pass has put down that n blocks are done), `result:before`,
//! `result:written`. Release builds have none.

/// Kills this process when the environment names this point. Does nothing in release builds.
pub fn crash_point(point: &str) {
    #[cfg(debug_assertions)]
    if std::env::var_os("FACTORYLINE_CRASH_AT").is_some_and(|at| at == point) {
        // As hard as an operator's `kill -9`: nothing is unwound, flushed or cleaned up.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    #[cfg(not(debug_assertions))]
    let _ = point;
}
