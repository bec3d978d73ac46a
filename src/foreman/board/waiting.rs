//! Parts in intake, in the order they will be picked up, each with the reason it still waits.

use std::path::Path;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::Supervisor;
use crate::foreman::exit::Problem;
use crate::foreman::wording;
use crate::line::order::Turn;
use crate::line::{Layout, PartEntry, pause, record, stamp};
use crate::node::{Node, Room};
use crate::recipe::RecipeFile;
use crate::units::Bytes;

/// What a recipe says about itself.
#[derive(Clone, Debug, Serialize)]
pub struct Card {
    pub name: String,
    pub base_model: String,
    pub architecture: String,
    pub stages: Vec<String>,
    pub priority: i64,
}

impl Card {
    /// Reads a recipe file; the error is one line that says why it is none.
    pub fn read(path: &Path) -> Result<Card, String> {
        let file = RecipeFile::read(path).map_err(|error| crate::fault::Fault::from(error).one_line())?;
        let recipe = file.recipe();
        Ok(Card {
            name: recipe.name.clone(),
            base_model: recipe.source.base_model.clone(),
            architecture: recipe.source.architecture.clone(),
            stages: recipe.stages.iter().map(|stage| stage.type_name().to_owned()).collect(),
            priority: recipe.priority(),
        })
    }
}

/// Why a part is not being built.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Reason {
    /// It is the next to be picked up, at once.
    Next,
    /// Others are before it.
    Behind {
        part: String,
    },
    /// Another part is being built.
    Building {
        part: String,
    },
    /// The line is paused: nothing is started.
    Paused {
        reason: String,
    },
    /// It failed for no fault of its own and is tried again later.
    BackOff {
        until: String,
        seconds: f64,
        after: String,
    },
    /// It does not fit at the moment: others may pass it.
    NoRoom {
        lacks: String,
        since: Option<String>,
    },
    /// It goes to rework when its turn comes.
    NotARecipe {
        problem: String,
    },
    NoSupervisor,
}

impl Reason {
    pub fn sentence(&self) -> String {
        match self {
            Reason::Next => "next".into(),
            Reason::Behind { part } => format!("behind {part}"),
            Reason::Building { part } => format!("{part} is being built"),
            Reason::Paused { reason } => format!("the line is paused: {reason}"),
            Reason::BackOff { seconds, after, .. } => {
                format!("back-off for {} more after: {}", wording::duration(*seconds), wording::brief(after, 80))
            }
            Reason::NoRoom { lacks, .. } => format!("waits for room: {lacks}"),
            Reason::NotARecipe { problem } => format!("not a recipe, goes to rework: {problem}"),
            Reason::NoSupervisor => "no daemon is running".into(),
        }
    }
}

/// A part in intake.
#[derive(Clone, Debug, Serialize)]
pub struct Waiting {
    /// From 1, in the order of pick-up; null for a part that must wait out a back-off.
    pub position: Option<usize>,
    pub part: String,
    pub reason: Reason,
    pub base_model: Option<String>,
    pub architecture: Option<String>,
    pub priority: i64,
    pub retries: u32,
    pub arrived_at: String,
}

/// Every part of intake with its place in the queue, for who changes the order.
pub fn turns(layout: &Layout, parts: Vec<PartEntry>) -> Vec<(PartEntry, Turn)> {
    let turn = |part: PartEntry| (part.clone(), Queued::read(layout, &part).turn);
    parts.into_iter().map(turn).collect()
}

/// The parts of intake in pick-up order: priority (higher first), then arrival, then name.
pub fn waiting_parts(
    layout: &Layout,
    parts: &[PartEntry],
    boss: &Supervisor,
    building: Option<&str>,
) -> Result<Vec<Waiting>, Problem> {
    let mut queue: Vec<Queued> = parts.iter().map(|part| Queued::read(layout, part)).collect();
    queue.sort_by(|a, b| a.turn.cmp(&b.turn));
    let paused = pause::read(layout);
    let reserve = Node::load(layout.root()).map_or(Bytes(0), |node| node.hot.min_free);
    let room = || Room::now(&layout.work_root(), reserve);
    let mut before: Option<String> = building.map(str::to_owned);
    let mut out = Vec::with_capacity(queue.len());
    let mut position = 0;
    for queued in queue {
        let held = queued.held(&room);
        let reason = match (&queued.card, &held) {
            (Err(problem), _) => Reason::NotARecipe { problem: problem.clone() },
            _ if !boss.running => Reason::NoSupervisor,
            _ if paused.is_some() => {
                Reason::Paused { reason: paused.as_ref().map_or("", |pause| pause.why()).to_owned() }
            }
            (_, Some(held)) => held.clone(),
            _ => match before.take() {
                None => Reason::Next,
                Some(part) if Some(part.as_str()) == building => Reason::Building { part },
                Some(part) => Reason::Behind { part },
            },
        };
        let part = queued.part.name.file_name();
        if held.is_none() {
            position += 1;
            before = Some(part.clone());
        }
        let card = queued.card.ok();
        out.push(Waiting {
            position: held.is_none().then_some(position),
            part,
            reason,
            base_model: card.as_ref().map(|card| card.base_model.clone()),
            architecture: card.as_ref().map(|card| card.architecture.clone()),
            priority: queued.turn.priority(),
            retries: queued.part.retries,
            arrived_at: stamp::seconds(queued.arrived),
        });
    }
    Ok(out)
}

struct Queued<'a> {
    part: &'a PartEntry,
    card: Result<Card, String>,
    turn: Turn,
    arrived: DateTime<Utc>,
    retry: Option<record::RetryRecord>,
}

impl<'a> Queued<'a> {
    fn read(layout: &Layout, part: &'a PartEntry) -> Self {
        let retry = record::retry(layout, &part.name).ok().flatten();
        let first = retry.as_ref().and_then(|retry| retry.arrived_at.as_deref()).and_then(stamp::parse);
        let (card, arrived) = (Card::read(&part.path), first.unwrap_or(part.arrived));
        let turn = Turn::of(layout, part, card.as_ref().map_or(0, |card| card.priority), arrived);
        Queued { part, card, turn, arrived, retry }
    }

    /// Why it is not even in the queue.
    fn held(&self, room: &dyn Fn() -> Room) -> Option<Reason> {
        let retry = self.retry.as_ref()?;
        if let Some(needs) = retry.needs
            && let Some(lacks) = room().lacks(needs.ram, needs.vram, needs.disk)
        {
            return Some(Reason::NoRoom { lacks, since: retry.waiting_since.clone() });
        }
        let until = stamp::parse(retry.not_before.as_deref()?)?;
        let seconds = -wording::seconds_since(until);
        (seconds > 0.0).then(|| Reason::BackOff { until: stamp::seconds(until), seconds, after: retry.reason.clone() })
    }
}
