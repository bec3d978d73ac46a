//! `work/<base>/attempts.json`: how the attempts at a part ended that were no success, oldest first. What is tried again
//! is decided from it, by whose fault it was and in which stage: a part that gets past a stage starts afresh in the next.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::moves::Mover;
use super::{LineError, record};

const FILE: &str = "attempts.json";
/// Older ones are forgotten.
const MOST: usize = 200;

/// An attempt that failed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FailedAttempt {
    pub attempt: u32,
    pub token: String,
    /// The counter in the part's name while it was built.
    pub retries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    pub class: String,
    pub error: String,
    pub ended_at: String,
    pub elapsed_s: f64,
}

/// All that are known; none when the file is missing or cannot be read (it decides about further attempts, never about
/// results).
pub fn read(work: &Path) -> Vec<FailedAttempt> {
    record::read_json(&work.join(FILE)).unwrap_or_default()
}

/// Adds one, durably.
///
/// # Errors
/// The work folder does not take it.
pub fn add(mover: Mover, work: &Path, failed: FailedAttempt) -> Result<Vec<FailedAttempt>, LineError> {
    let mut all = read(work);
    all.push(failed);
    let surplus = all.len().saturating_sub(MOST);
    all.drain(..surplus);
    mover.publish_over(&work.join(FILE), &record::to_json(&all))?;
    Ok(all)
}

/// Those since the part's counter was last set back, `retries` being the counter now.
fn since_reset(all: &[FailedAttempt], retries: u32) -> &[FailedAttempt] {
    let mut next = retries.saturating_add(1);
    let counts = |failed: &&FailedAttempt| {
        let is_earlier = failed.retries < next;
        next = failed.retries;
        is_earlier
    };
    let count = all.iter().rev().take_while(counts).count();
    &all[all.len() - count..]
}

/// How often this class of fault has ended an attempt in this stage since the counter was last set back.
pub fn spent(all: &[FailedAttempt], retries: u32, class: &str, stage: Option<&str>) -> u32 {
    let same = |failed: &&FailedAttempt| failed.class == class && failed.stage.as_deref() == stage;
    since_reset(all, retries).iter().filter(same).count() as u32
}

/// How often the part was lost without anybody writing down how, `retries` being its counter.
pub fn lost(work: &Path, retries: u32) -> u32 {
    let known = since_reset(&read(work), retries).len() as u32;
    retries.saturating_sub(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::Layout;

    fn failed(retries: u32, class: &str, stage: &str) -> FailedAttempt {
        FailedAttempt { retries, class: class.into(), stage: Some(stage.into()), ..FailedAttempt::default() }
    }

    #[test]
    fn a_budget_is_of_a_class_and_a_stage() {
        let all = [failed(0, "infra", "quant"), failed(1, "infra", "quant"), failed(2, "infra", "eval")];
        assert_eq!(spent(&all, 2, "infra", Some("quant")), 2);
        assert_eq!(spent(&all, 2, "infra", Some("eval")), 1);
        assert_eq!(spent(&all, 2, "resource", Some("eval")), 0);
        assert_eq!(spent(&all, 2, "infra", None), 0);
    }

    #[test]
    fn a_counter_that_was_set_back_begins_anew() {
        let before = [failed(0, "infra", "quant"), failed(1, "infra", "quant")];
        assert_eq!(spent(&before, 0, "infra", Some("quant")), 0);
        let all = [&before[..], &[failed(0, "infra", "quant")]].concat();
        assert_eq!(spent(&all, 0, "infra", Some("quant")), 1);
        assert_eq!(spent(&all, 1, "infra", Some("quant")), 1);
    }

    #[test]
    fn what_nobody_wrote_down_was_lost() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::init(root.path()).unwrap();
        let work = root.path().join("work/x");
        std::fs::create_dir_all(&work).unwrap();
        assert_eq!(lost(&work, 2), 2);
        add(Mover::real(&layout), &work, failed(0, "infra", "quant")).unwrap();
        assert_eq!(lost(&work, 2), 1, "the counter was raised once by the fault and once without one");
        add(Mover::real(&layout), &work, failed(2, "infra", "quant")).unwrap();
        assert_eq!((lost(&work, 3), read(&work).len()), (1, 2));
        std::fs::write(work.join(FILE), "[{\"class\": \"inf").unwrap();
        assert_eq!(lost(&work, 3), 3);
    }
}
