//! One attempt: a worker process is started, listened to, and seen to its end.
//!
//! The worker leads a process group of its own and holds the claim lock as its standard input. Its messages become
//! events, heartbeat and what the observer sees. How it ended is all that leaves; what it made lies in the work folder.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde_json::Value;

use super::Floor;
use super::limits::{self, Kept};
use super::tell::Teller;
use super::worker_log::WorkerLog;
use crate::line::claim::Claimed;
use crate::line::record;
use crate::line::wire::{self, WorkerMessage};

/// How a part left its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Finished,
    Rework,
    Retried,
    Returned,
    /// It could not be settled; it still stands in assembly for the next recovery.
    Unsettled,
}

/// Why an attempt is over.
#[derive(Clone, Debug, PartialEq)]
pub enum Exit {
    Status(i32),
    Signal(i32),
    /// Killed by us: it said nothing for too long.
    Stalled,
    /// Killed by us: it took more memory than it may.
    TooMuch(String),
    /// Killed by us: the supervisor stops.
    Stopped,
    /// Killed by us: an operator asked for it.
    Cancelled(String),
    /// It never ran.
    NotStarted(String),
}

/// What is known of an attempt that is over.
#[derive(Clone, Debug)]
pub struct Attempted {
    pub exit: Exit,
    pub stage: Option<String>,
    pub last_progress: Option<Value>,
    pub elapsed: Duration,
    /// The kernel killed some process for memory meanwhile.
    pub out_of_memory: bool,
}

/// How often a silent worker's circumstances are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Longest line of a worker that is read as a message.
const LONGEST_LINE: u64 = 1 << 20;

/// Runs the worker of a claimed part to its end, in the slot of this number.
pub fn build(floor: &Floor, claimed: &Claimed, slot: usize) -> Attempted {
    let started = Instant::now();
    let killed_before = oom_kills();
    let mut teller = Teller::new(floor, claimed);
    let exit = match start(floor, claimed, slot) {
        Ok(mut worker) => worker.see_to_its_end(floor, claimed, &mut teller),
        Err(problem) => Exit::NotStarted(problem),
    };
    Attempted {
        out_of_memory: exit == Exit::Signal(9) && oom_kills() > killed_before,
        exit,
        stage: teller.stage().map(str::to_owned),
        last_progress: teller.last_progress(),
        elapsed: started.elapsed(),
    }
}

/// What comes from a worker.
enum Heard {
    Message(WorkerMessage),
    /// It has ended, and its output before that.
    Ended,
}

struct Worker {
    child: Child,
    group: Pid,
    heard: Receiver<Heard>,
    kept: Kept,
    log: WorkerLog,
}

fn start(floor: &Floor, claimed: &Claimed, slot: usize) -> Result<Worker, String> {
    let work = floor.layout.work(&claimed.part.name);
    let path = work.join("worker.log");
    let log = WorkerLog::open(&path, floor.options.config.worker_log);
    let log = log.map_err(|e| format!("{}: {e}", path.display()))?;
    let chatter = log.handle().map_err(|e| e.to_string())?;
    let program = floor.options.worker.path();
    let devices = &floor.options.config.devices;
    // With one device there is nothing to choose.
    let device = (devices.len() > 1).then(|| format!("--device={}", devices[slot % devices.len()]));
    let mut child = Command::new(&program)
        .args(&floor.options.worker.args)
        .arg("--root")
        .arg(floor.layout.root())
        .arg("--part")
        .arg(&claimed.part.path)
        .arg("--work")
        .arg(&work)
        .arg("--attempt")
        .arg(claimed.attempt.token.as_str())
        .args(device)
        .stdin(claimed.lock.as_stdin().map_err(|e| e.to_string())?)
        .stdout(Stdio::piped())
        .stderr(log.handle().map_err(|e| e.to_string())?)
        .process_group(0)
        .spawn()
        .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    let group = Pid::from_child(&child);
    let (send, heard) = mpsc::channel();
    if let Some(out) = child.stdout.take() {
        // The waiter: ends when every holder of the pipe is gone, and the worker.
        std::thread::spawn(move || {
            listen(&mut BufReader::new(out), chatter, &send);
            let _ = waitid(WaitId::Pid(group), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            let _ = send.send(Heard::Ended);
        });
    }
    let kept = limits::keep(&floor.options.config.limits, group);
    Ok(Worker { child, group, heard, kept, log })
}

/// Passes messages on; anything else a worker prints goes to its log.
fn listen(out: &mut impl BufRead, mut log: impl Write, send: &mpsc::Sender<Heard>) {
    let mut line = Vec::new();
    while out.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        match wire::parse(&String::from_utf8_lossy(&line)) {
            Some(message) => {
                if send.send(Heard::Message(message)).is_err() {
                    return;
                }
            }
            None => drop(log.write_all(&line)),
        }
        line.clear();
    }
}

impl Worker {
    fn see_to_its_end(&mut self, floor: &Floor, claimed: &Claimed, teller: &mut Teller) -> Exit {
        teller.started(self.child.id());
        let mut last_sign = Instant::now();
        let mut last_look = Instant::now();
        loop {
            match self.heard.recv_timeout(TICK) {
                Ok(Heard::Message(message)) => {
                    last_sign = Instant::now();
                    teller.hear(&message);
                }
                Ok(Heard::Ended) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.doze(),
            }
            if self.has_ended() {
                return self.ended(teller);
            }
            if last_look.elapsed() >= TICK {
                last_look = Instant::now();
                self.log.keep_within();
                if let Some(reason) = cancel_reason(floor, claimed) {
                    self.end(floor, teller);
                    return Exit::Cancelled(reason);
                }
                if floor.options.stop.is_requested() {
                    self.end(floor, teller);
                    return Exit::Stopped;
                }
                if let Some(why) = self.kept.too_much() {
                    self.kill();
                    return Exit::TooMuch(why);
                }
                if last_sign.elapsed() > floor.options.config.stall {
                    self.kill();
                    return Exit::Stalled;
                }
            }
        }
    }

    fn doze(&self) {
        std::thread::sleep(Duration::from_millis(2));
    }

    /// True when the worker is dead, without reaping it: its group id must stay ours until the group is killed.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.group), options), Ok(None))
    }

    /// Hears what is left in the pipe, kills what is left of the group, reaps.
    fn ended(&mut self, teller: &mut Teller) -> Exit {
        self.signal(Signal::KILL);
        self.log.keep_within();
        let until = Instant::now() + Duration::from_millis(500);
        while let Ok(Heard::Message(message)) = self.heard.recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            teller.hear(&message);
        }
        match self.child.wait() {
            Ok(status) => match (status.code(), std::os::unix::process::ExitStatusExt::signal(&status)) {
                (Some(code), _) => Exit::Status(code),
                (None, _) if self.kept.was_killed_for_memory() => {
                    Exit::TooMuch("the worker's control group ran out of memory".into())
                }
                (None, signal) => Exit::Signal(signal.unwrap_or(0)),
            },
            Err(e) => Exit::NotStarted(format!("the worker's exit status is lost: {e}")),
        }
    }

    /// TERM, then after the grace time or a second request, KILL.
    fn end(&mut self, floor: &Floor, teller: &mut Teller) {
        self.signal(Signal::TERM);
        let until = Instant::now() + floor.options.config.grace;
        while Instant::now() < until && !floor.options.stop.is_urgent() && !self.has_ended() {
            match self.heard.recv_timeout(Duration::from_millis(20)) {
                Ok(Heard::Message(message)) => teller.hear(&message),
                Ok(Heard::Ended) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.doze(),
            }
        }
        self.kill();
    }

    fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }

    fn signal(&self, signal: Signal) {
        // Fails only when the group is gone, which is what is wanted.
        let _ = kill_process_group(self.group, signal);
    }
}

fn cancel_reason(floor: &Floor, claimed: &Claimed) -> Option<String> {
    let path = floor.layout.cancel_request(claimed.part.name.base());
    if !path.exists() {
        return None;
    }
    let request: Option<Value> = record::read_json(&path).ok();
    let reason = request.as_ref().and_then(|r| r.get("reason")).and_then(Value::as_str);
    Some(reason.unwrap_or("no reason given").to_owned())
}

/// Processes this kernel killed for memory since boot.
fn oom_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix("oom_kill ")).and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}
