//! The child process that builds one part: plan, stages, gate, result.
//!
//! Enters: a part that stands in assembly and the token of the attempt. Leaves: `plan.json` before anything runs,
//! then `result.json` beside the artifact folder, or `fault.json`; progress goes out as JSON lines on standard output.
//! It knows nothing of other parts; whatever happens in here, the supervisor lives.

mod args;
mod build;
mod card;
mod certify;
mod ticker;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;

use serde_json::json;

use crate::fault::{Fault, Outcome};
use crate::line::claim::check_token;
use crate::line::stamp;
use crate::line::wire::{WAITS, Wire, WorkerMessage};
use crate::stage::{Listener, Progress, replace_file};

pub use args::WorkerArgs;
pub use build::{Built, build};

impl Listener for Wire<std::io::Stdout> {
    fn hear(&self, message: &WorkerMessage) {
        self.send(message);
    }
}

/// Builds the part and returns the worker's exit status: 0, or the status of the fault's class.
pub fn main(args: &WorkerArgs) -> ExitCode {
    run(args, &Wire::stdout())
}

/// As [`main`], telling `listener`.
pub fn run(args: &WorkerArgs, listener: &dyn Listener) -> ExitCode {
    let progress = Progress::new(listener);
    match guarded(|| build(args, &progress)) {
        Ok(Built::Done) => {
            listener.hear(&WorkerMessage::Finished {});
            ExitCode::SUCCESS
        }
        Ok(Built::Waits) => ExitCode::from(WAITS),
        Err(fault) => {
            let stage = progress.stage();
            if let Err(second) = write_fault(args, &fault, &stage) {
                listener.hear(&WorkerMessage::Warning { message: second.one_line() });
            }
            listener.hear(&WorkerMessage::Fault {
                class: fault.class,
                message: fault.one_line(),
                hint: fault.hint.clone(),
                stage: Some(stage),
            });
            ExitCode::from(fault.class.exit_status())
        }
    }
}

/// Where the last panic happened; the payload alone does not say.
static PANIC_AT: Mutex<Option<String>> = Mutex::new(None);

/// Runs `work` and turns a panic in any of its threads into an internal fault.
fn guarded<T>(work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let place = info.location().map(ToString::to_string);
        *PANIC_AT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = place;
        before(info);
    }));
    let outcome = catch_unwind(AssertUnwindSafe(work));
    let _ = std::panic::take_hook();
    outcome.unwrap_or_else(|payload| {
        let place = PANIC_AT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let place = place.map_or_else(String::new, |place| format!(" at {place}"));
        Err(Fault::internal(format!("panic{place}: {}", panic_text(&*payload)))
            .hint("this is a bug of factoryline; worker.log in the work folder holds the trace"))
    })
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

/// `<work>/fault.json`; not written by an attempt that no longer owns the folder.
fn write_fault(args: &WorkerArgs, fault: &Fault, stage: &str) -> Outcome<()> {
    check_token(&args.work, &args.attempt)?;
    let record = json!({
        "failed_at": stamp::seconds(chrono::Utc::now()),
        "class": fault.class,
        "message": fault.message,
        "hint": fault.hint,
        "stage": stage,
        "causes": fault.causes(),
        "attempt_token": args.attempt,
    });
    write_json(&args.work.join("fault.json"), &record)
}

/// Replaces a JSON file durably; indented, with a final newline.
fn write_json(path: &Path, value: &impl serde::Serialize) -> Outcome<()> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| Fault::internal(format!("{} cannot be written as JSON", path.display())).caused_by(e))?;
    bytes.push(b'\n');
    replace_file(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultClass;

    #[test]
    fn a_panic_becomes_an_internal_fault_with_its_place() {
        let fault = guarded::<()>(|| panic!("index {} of {}", 4, 3)).unwrap_err();
        assert_eq!(fault.class, FaultClass::Internal);
        assert!(fault.message.starts_with("panic at src/worker/mod.rs:"), "{}", fault.message);
        assert!(fault.message.ends_with(": index 4 of 3"), "{}", fault.message);
    }
}
