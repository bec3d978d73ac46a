//! After an attempt: inspect what it left, then ship it, send it back, or let it try again.

use std::time::Duration;

use chrono::Utc;
use serde_json::json;

use super::Floor;
use super::build::{Attempted, Ending, Exit};
use super::observer::DaemonEvent;
use crate::fault::{Fault, FaultClass, Outcome};
use crate::line::attempts::{self, FailedAttempt};
use crate::line::claim::Claimed;
use crate::line::lock::MovesLock;
use crate::line::moves::Mover;
use crate::line::outcome::{self, Left, Return};
use crate::line::record::WaitRecord;
use crate::line::wire::WAITS;
use crate::line::{ErrorRecord, ResultRecord, stamp, verbs};

/// What is to be done with the part.
#[derive(Debug)]
enum Verdict {
    Ship(Box<ResultRecord>),
    Rework(Box<ErrorRecord>),
    /// To be tried again or sent back: what was tried before decides.
    Failed(Box<ErrorRecord>),
    /// It may succeed on another attempt, after this long.
    Retry(Box<ErrorRecord>, Duration),
    /// It does not fit at this moment.
    Wait(WaitRecord),
    /// Nobody's fault: the supervisor stops.
    Return,
}

/// Decides by what lies on disk and how the worker ended, and moves the part. The claim is held until it stands.
pub fn settle(floor: &Floor, claimed: &Claimed, attempted: &Attempted) -> Outcome<Ending> {
    let part = &claimed.part;
    let mover = Mover::real(&floor.layout);
    let verdict = match inspect(floor, claimed, attempted) {
        Verdict::Failed(error) => judge(floor, claimed, attempted, error, mover)?,
        verdict => verdict,
    };
    let _moves = MovesLock::acquire(&floor.layout)?;
    Ok(match verdict {
        Verdict::Ship(mut result) => {
            if result.elapsed_s == 0.0 {
                result.elapsed_s = attempted.elapsed.as_secs_f64();
            }
            outcome::ship(mover, part, &claimed.attempt, &result)?;
            floor.observer.see(&DaemonEvent::Finished { part: &part.name, result: &result });
            Ending::Finished
        }
        Verdict::Rework(error) => {
            outcome::send_back(mover, part, (*error).clone())?;
            floor.observer.see(&DaemonEvent::Rework { part: &part.name, error: &error });
            Ending::Rework
        }
        Verdict::Failed(_) => return Err(Fault::internal("a failed attempt was not judged")),
        Verdict::Retry(error, delay) => retry(floor, claimed, &error, delay, mover)?,
        Verdict::Wait(wait) => {
            let wish = Return {
                charged: false,
                // What is lacking may come back at once, and go again.
                delay: floor.options.config.rescan,
                class: "waiting".into(),
                reason: wait.reason.clone(),
                arrived_at: claimed.attempt.arrived_at.clone(),
                room: Some((wait.needs, wait.since)),
            };
            let name = outcome::take_back(mover, part, &wish)?;
            floor.observer.see(&DaemonEvent::Waits { part: &name, reason: &wait.reason });
            Ending::Returned
        }
        Verdict::Return => {
            let wish = Return {
                charged: false,
                delay: Default::default(),
                class: "stopped".into(),
                reason: "the supervisor was stopped".into(),
                arrived_at: claimed.attempt.arrived_at.clone(),
                room: None,
            };
            let name = outcome::take_back(mover, part, &wish)?;
            floor.observer.see(&DaemonEvent::Returned { part: &name });
            Ending::Returned
        }
    })
}

/// Notes the failed attempt and asks the budget of its class and stage for another.
fn judge(
    floor: &Floor,
    claimed: &Claimed,
    attempted: &Attempted,
    mut error: Box<ErrorRecord>,
    mover: Mover,
) -> Outcome<Verdict> {
    let failed = FailedAttempt {
        attempt: claimed.attempt.attempt,
        token: claimed.attempt.token.to_string(),
        retries: claimed.part.retries,
        stage: error.stage.clone(),
        class: error.class.clone(),
        error: error.error.clone(),
        ended_at: stamp::seconds(Utc::now()),
        elapsed_s: attempted.elapsed.as_secs_f64(),
    };
    let all = attempts::add(mover, &floor.layout.work(&claimed.part.name), failed)?;
    let spent = attempts::spent(&all, claimed.part.retries, &error.class, error.stage.as_deref());
    let budget = floor.options.config.budget(&error.class);
    if spent <= budget.most {
        return Ok(Verdict::Retry(error, budget.delay(spent)));
    }
    let earlier = &all[..all.len().saturating_sub(1)];
    if !earlier.is_empty() {
        error.more.insert("earlier_attempts".into(), json!(earlier));
    }
    Ok(Verdict::Rework(error))
}

fn retry(floor: &Floor, claimed: &Claimed, error: &ErrorRecord, delay: Duration, mover: Mover) -> Outcome<Ending> {
    let wish = Return {
        charged: true,
        delay,
        class: error.class.clone(),
        reason: error.error.clone(),
        arrived_at: claimed.attempt.arrived_at.clone(),
        room: None,
    };
    let name = outcome::take_back(mover, &claimed.part, &wish)?;
    floor.observer.see(&DaemonEvent::Retried { part: &name, reason: &error.error, delay_s: delay.as_secs_f64() });
    Ok(Ending::Retried)
}

/// A whole result with this attempt's token counts however the worker ended; only a cancel outweighs it.
fn inspect(floor: &Floor, claimed: &Claimed, attempted: &Attempted) -> Verdict {
    let work = floor.layout.work(&claimed.part.name);
    let left = outcome::inspect(&work, &claimed.attempt);
    match (&attempted.exit, left) {
        (Exit::Cancelled(reason), _) => {
            let error = verbs::cancelled_error(reason, claimed.part.retries);
            Verdict::Rework(Box::new(explained(floor, claimed, attempted, error)))
        }
        (_, Left::Result(result)) => Verdict::Ship(result),
        (Exit::Stopped, Left::Nothing(_)) => Verdict::Return,
        (Exit::Status(code), Left::Nothing(_)) if *code == i32::from(WAITS) => {
            match outcome::waits(&work, &claimed.attempt) {
                Some(wait) => Verdict::Wait(wait),
                None => Verdict::Return,
            }
        }
        (exit, Left::Nothing(missing)) => {
            let error = failure(floor, claimed, attempted, exit, &missing);
            Verdict::Failed(Box::new(explained(floor, claimed, attempted, error)))
        }
    }
}

/// What the worker wrote about its fault, or what its end says.
fn failure(floor: &Floor, claimed: &Claimed, attempted: &Attempted, exit: &Exit, missing: &str) -> ErrorRecord {
    let written = outcome::worker_fault(&floor.layout.work(&claimed.part.name));
    let blank = |class: FaultClass, error: String, hint: Option<&str>| ErrorRecord {
        error,
        class: class.as_str().into(),
        hint: hint.map(str::to_owned),
        ..ErrorRecord::default()
    };
    match exit {
        Exit::Status(0) => blank(
            FaultClass::Internal,
            format!("the worker ended well but its result does not hold: {missing}"),
            Some("worker.log in the work folder says what it did"),
        ),
        Exit::Status(code) => written.unwrap_or_else(|| {
            let class = FaultClass::from_exit_status(*code).unwrap_or(FaultClass::Internal);
            let hint = (*code == 101).then_some("the worker panicked; the log tail says where");
            blank(class, format!("the worker ended with status {code} and wrote no fault"), hint)
        }),
        Exit::Signal(9) if attempted.out_of_memory => blank(
            FaultClass::Infra,
            "the worker was killed (signal 9); the kernel killed a process for memory meanwhile".into(),
            Some("lower forge.memory_budget_gb in factory_node.toml, or free memory on this machine"),
        ),
        Exit::Signal(7) => blank(
            FaultClass::Infra,
            "the worker was killed by signal 7: a file it was reading was cut short, or its disk failed".into(),
            Some("the next attempt looks at every input again; `dmesg` tells of disks that fail"),
        ),
        Exit::Signal(signal) => blank(FaultClass::Infra, format!("the worker was killed by signal {signal}"), None),
        Exit::Stalled => blank(
            FaultClass::Infra,
            format!("the worker said nothing for {:.0} s and was killed", floor.options.config.stall.as_secs_f64()),
            Some("raise forge.stall_seconds in factory_node.toml if this stage may be silent for so long"),
        ),
        Exit::TooMuch(problem) => blank(
            FaultClass::Resource,
            format!("{problem}: it was ended before the kernel had to end somebody"),
            Some("lower forge.memory_budget_gb in factory_node.toml, or raise forge.worker_memory_gb"),
        ),
        Exit::NotStarted(problem) => blank(FaultClass::Infra, format!("the worker did not run: {problem}"), None),
        Exit::Stopped | Exit::Cancelled(_) => blank(FaultClass::Infra, "the worker was stopped".into(), None),
    }
}

/// Adds what the supervisor saw.
fn explained(floor: &Floor, claimed: &Claimed, attempted: &Attempted, mut error: ErrorRecord) -> ErrorRecord {
    (error.exit_status, error.signal) = match attempted.exit {
        Exit::Status(code) => (Some(code), None),
        Exit::Signal(signal) => (None, Some(signal)),
        _ => (None, None),
    };
    error.stage = error.stage.or_else(|| attempted.stage.clone());
    error.attempt = claimed.attempt.attempt;
    error.attempt_token = Some(claimed.attempt.token.to_string());
    error.last_progress = attempted.last_progress.clone();
    error.log_tail = outcome::log_tail(&floor.layout.work(&claimed.part.name));
    error.more.insert("elapsed_s".into(), json!(attempted.elapsed.as_secs_f64()));
    error
}
