//! The order of the waiting parts: priority (higher first), then arrival, then name; and how an operator changes it
//! without touching a recipe, by `intake/<base>.order.json`.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::lock::MovesLock;
use super::moves::{Move, Mover};
use super::{EventLog, Layout, LineError, PartEntry, PartName, Station, identity, record, shelf, stamp};

/// `intake/<base>.order.json`: overrules a recipe's priority and a part's time of arrival. Removed when it is claimed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OrderRecord {
    /// Instead of the recipe's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// The part queues as if it had arrived then; to the nanosecond, so that there is room between any two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrives_as: Option<String>,
    pub at: String,
    pub by: String,
}

/// A part's place in the queue. The smaller one comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    /// The priority, negated.
    urgency: i64,
    arrived: DateTime<Utc>,
    name: String,
}

impl Turn {
    /// The place of `part`, whose recipe has this priority and which first arrived then.
    pub fn of(layout: &Layout, part: &PartEntry, priority: i64, arrived: DateTime<Utc>) -> Turn {
        let order = read(layout, part).unwrap_or_default();
        Turn {
            urgency: order.priority.unwrap_or(priority).saturating_neg(),
            arrived: order.arrives_as.as_deref().and_then(stamp::parse).unwrap_or(arrived),
            name: part.name.base().to_owned(),
        }
    }

    pub fn priority(&self) -> i64 {
        self.urgency.saturating_neg()
    }
}

/// What an operator said of the order of a part in intake. An unreadable file says nothing.
pub fn read(layout: &Layout, part: &PartEntry) -> Option<OrderRecord> {
    let name = file_of(&part.name);
    // Sidecars were listed with the part: a queue of thousands costs no look at files that are not there.
    if !part.sidecars.contains(&name) {
        return None;
    }
    record::read_json(&layout.station(Station::Intake).join(name)).ok()
}

/// `<base>.order.json`.
pub(crate) fn file_of(part: &PartName) -> String {
    format!("{}.order.json", part.base())
}

/// Where a part is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    First,
    Last,
    /// Directly before the part of this base name.
    Before(String),
    After(String),
    Priority(i64),
}

/// Gives the part `base` another place in `queue`, which holds every waiting part with its turn, in any order. Returns
/// the files written: one, or more where parts that arrived at the same instant must be told apart.
pub fn reorder(
    layout: &Layout,
    mut queue: Vec<(PartEntry, Turn)>,
    base: &str,
    wish: &Wish,
    dry_run: bool,
) -> Result<Vec<Move>, LineError> {
    queue.sort_by(|a, b| a.1.cmp(&b.1));
    let missing = |name: &str| LineError::NotFound { name: name.to_owned(), place: "in intake".into() };
    let at = queue.iter().position(|(part, _)| part.name.base() == base).ok_or_else(|| missing(base))?;
    let (part, turn) = queue.remove(at);
    let place_of = |name: &str| queue.iter().position(|(p, _)| p.name.base() == name).ok_or_else(|| missing(name));
    let place = match wish {
        Wish::Priority(priority) => {
            let order = OrderRecord { priority: Some(*priority), ..OrderRecord::default() };
            return publish(layout, vec![(part, order)], dry_run);
        }
        Wish::Before(other) | Wish::After(other) if other == base => {
            return Err(LineError::Refused {
                what: format!("{base:?} cannot come before or after itself"),
                reason: "name another part".into(),
            });
        }
        Wish::First => 0,
        Wish::Last => queue.len(),
        Wish::Before(other) => place_of(other)?,
        Wish::After(other) => place_of(other)? + 1,
    };
    // Nothing to do when it stands there already.
    if place == at {
        return Ok(Vec::new());
    }
    publish(layout, placed(queue, place, part, turn), dry_run)
}

/// The orders that put `part` at `place` in a sorted queue without it.
fn placed(queue: Vec<(PartEntry, Turn)>, place: usize, part: PartEntry, turn: Turn) -> Vec<(PartEntry, OrderRecord)> {
    const INSTANT: TimeDelta = TimeDelta::nanoseconds(1);
    let before = place.checked_sub(1).map(|i| queue[i].1.clone());
    let after = queue.get(place).map(|(_, turn)| turn.clone());
    let (urgency, arrived) = match (&before, &after) {
        (None, None) => (turn.urgency, turn.arrived),
        (None, Some(after)) => (after.urgency, after.arrived - TimeDelta::seconds(1)),
        (Some(before), Some(after)) if before.urgency == after.urgency => {
            (before.urgency, before.arrived + (after.arrived - before.arrived) / 2)
        }
        (Some(before), _) => (before.urgency, before.arrived + TimeDelta::seconds(1)),
    };
    // No room between two that arrived at one instant: the parts behind it make room, one instant each.
    let mut last = match &before {
        Some(before) if before.urgency == urgency && arrived <= before.arrived => before.arrived + INSTANT,
        _ => arrived,
    };
    let mut orders = vec![(part, ordered(urgency, last))];
    for (other, turn) in queue.into_iter().skip(place) {
        if turn.urgency != urgency || turn.arrived > last {
            break;
        }
        last += INSTANT;
        orders.push((other, ordered(urgency, last)));
    }
    orders
}

fn ordered(urgency: i64, arrived: DateTime<Utc>) -> OrderRecord {
    let arrives_as = arrived.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
    OrderRecord { priority: Some(urgency.saturating_neg()), arrives_as: Some(arrives_as), ..OrderRecord::default() }
}

fn publish(layout: &Layout, orders: Vec<(PartEntry, OrderRecord)>, dry_run: bool) -> Result<Vec<Move>, LineError> {
    let _moves = MovesLock::acquire(layout)?;
    let (mover, intake) = (Mover::real(layout), layout.station(Station::Intake));
    let (at, by) = (stamp::seconds(Utc::now()), std::env::var("USER").unwrap_or_default());
    let mut moves = Vec::new();
    for (part, order) in orders {
        // Claimed since the queue was read: an order would be a sidecar without a part.
        if shelf::entry(&part.path, Station::Intake).is_none() {
            continue;
        }
        let path = intake.join(file_of(&part.name));
        if !dry_run {
            let order = OrderRecord { at: at.clone(), by: by.clone(), ..order.clone() };
            mover.publish_over(&path, &record::to_json(&order))?;
            let payload = json!({"priority": order.priority, "arrives_as": order.arrives_as});
            EventLog::new(layout, identity::host_name()).tell("line/reordered", Some(&part.name.file_name()), payload);
        }
        moves.push(Move { from: "-".into(), ..mover.described(&path, &path) });
    }
    Ok(moves)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Queue {
        _root: tempfile::TempDir,
        layout: Layout,
        /// Recipe priority and seconds of arrival.
        parts: Vec<(&'static str, i64, i64)>,
    }

    impl Queue {
        fn new(parts: &[(&'static str, i64, i64)]) -> Queue {
            let root = tempfile::tempdir().unwrap();
            let layout = Layout::init(root.path()).unwrap();
            for (name, ..) in parts {
                fs::write(layout.station(Station::Intake).join(format!("{name}.alloy.json")), "{}").unwrap();
            }
            Queue { _root: root, layout, parts: parts.to_vec() }
        }

        fn turns(&self) -> Vec<(PartEntry, Turn)> {
            let parts = shelf::list(&self.layout, Station::Intake).unwrap();
            let turn = |part: PartEntry| {
                let said = self.parts.iter().find(|(name, ..)| *name == part.name.base()).unwrap();
                let arrived = DateTime::from_timestamp(1_700_000_000 + said.2, 0).unwrap();
                let turn = Turn::of(&self.layout, &part, said.1, arrived);
                (part, turn)
            };
            parts.into_iter().map(turn).collect()
        }

        fn order(&self) -> String {
            let mut turns = self.turns();
            turns.sort_by(|a, b| a.1.cmp(&b.1));
            turns.iter().map(|(part, _)| part.name.base()).collect()
        }

        fn ask(&self, base: &str, wish: Wish) -> usize {
            reorder(&self.layout, self.turns(), base, &wish, false).unwrap().len()
        }
    }

    #[test]
    fn a_part_goes_where_it_is_wanted_and_the_others_keep_their_order() {
        let queue = Queue::new(&[("a", 5, 9), ("b", 0, 1), ("c", 0, 2), ("d", 0, 3), ("e", -2, 0)]);
        assert_eq!(queue.order(), "abcde");
        assert_eq!(queue.ask("d", Wish::First), 1);
        assert_eq!(queue.order(), "dabce");
        queue.ask("a", Wish::Last);
        assert_eq!(queue.order(), "dbcea");
        queue.ask("e", Wish::Before("c".into()));
        assert_eq!(queue.order(), "dbeca");
        queue.ask("d", Wish::After("e".into()));
        assert_eq!(queue.order(), "bedca");
        assert_eq!(queue.ask("d", Wish::After("e".into())), 0);
        queue.ask("a", Wish::Priority(7));
        assert_eq!(queue.order(), "abedc");
        assert!(reorder(&queue.layout, queue.turns(), "z", &Wish::First, false).is_err());
        assert!(reorder(&queue.layout, queue.turns(), "a", &Wish::After("a".into()), false).is_err());
    }

    #[test]
    fn parts_of_one_instant_make_room() {
        let queue = Queue::new(&[("a", 0, 0), ("b", 0, 0), ("c", 0, 0), ("d", 0, 0)]);
        assert_eq!(queue.ask("d", Wish::Before("b".into())), 3);
        assert_eq!(queue.order(), "adbc");
        queue.ask("c", Wish::After("a".into()));
        assert_eq!(queue.order(), "acdb");
        let planned = reorder(&queue.layout, queue.turns(), "b", &Wish::First, true).unwrap();
        assert_eq!(planned[0].to.to_str(), Some("intake/b.order.json"));
        assert_eq!(queue.order(), "acdb");
        for (turn, base) in ["b", "a", "d", "c"].into_iter().enumerate() {
            queue.ask(base, Wish::First);
            assert!(queue.order().starts_with(base), "{turn}: {}", queue.order());
        }
    }

    #[test]
    fn a_torn_order_says_nothing() {
        let queue = Queue::new(&[("a", 0, 0), ("b", 0, 1)]);
        fs::write(queue.layout.station(Station::Intake).join("b.order.json"), "{\"priority\": 9").unwrap();
        assert_eq!(queue.order(), "ab");
        fs::write(queue.layout.station(Station::Intake).join("b.order.json"), "{\"priority\": 9}").unwrap();
        assert_eq!(queue.order(), "ba");
    }
}
