//! Named points at which a debug build stops dead when asked to, for tests of recovery.
//!
//! `FACTORYLINE_CRASH_AT=quant:written` aborts the worker there. Points: `plan:written`, `<stage type>:started`,
//! `<stage type>:written` (files are there, the checkpoint is not), `<stage type>:checkpointed`, `result:before`,
//! `result:written`. Release builds have none.

/// Aborts when the environment names this point. Does nothing in release builds.
pub fn crash_point(point: &str) {
    #[cfg(debug_assertions)]
    if std::env::var_os("FACTORYLINE_CRASH_AT").is_some_and(|at| at == point) {
        std::process::abort();
    }
    #[cfg(not(debug_assertions))]
    let _ = point;
}
