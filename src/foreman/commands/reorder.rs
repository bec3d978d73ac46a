//! `foreman reorder`: another place in the queue, without touching the recipe.

use super::moved::Moved;
use crate::foreman::board::{one_part, turns};
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, Problem};
use crate::line::order::{self, Wish};
use crate::line::{Layout, Station, shelf};

/// Give a waiting part another place in the queue
///
/// The recipe stays as it is: the wish stands in a file beside the part and ends when the part is claimed. A part that arrives later with a higher priority still comes first.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman reorder my-part --first\n  foreman reorder my-part --before other-part")]
pub struct Args {
    /// Name of a part in intake
    name: String,

    #[command(flatten)]
    place: Place,

    /// Only show what would be written
    #[arg(long)]
    dry_run: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// Before all that wait now
    #[arg(long)]
    first: bool,

    /// After all that wait now
    #[arg(long)]
    last: bool,

    /// Directly before this one
    #[arg(long, value_name = "PART")]
    before: Option<String>,

    /// Directly after this one
    #[arg(long, value_name = "PART")]
    after: Option<String>,

    /// With this priority instead of its recipe's (higher comes first)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i64>,
}

impl Place {
    fn wish(&self, layout: &Layout) -> Result<Wish, Problem> {
        let base = |name: &str| waiting(layout, name);
        Ok(match self {
            Place { before: Some(name), .. } => Wish::Before(base(name)?),
            Place { after: Some(name), .. } => Wish::After(base(name)?),
            Place { priority: Some(priority), .. } => Wish::Priority(*priority),
            Place { last: true, .. } => Wish::Last,
            _ => Wish::First,
        })
    }
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let (base, wish) = (waiting(&layout, &self.name)?, self.place.wish(&layout)?);
        let queue = turns(&layout, shelf::list(&layout, Station::Intake)?);
        let moves = order::reorder(&layout, queue, &base, &wish, self.dry_run)?;
        if moves.is_empty() {
            desk.printer.note(format!("{base} stands there already"));
        }
        Moved { dry_run: self.dry_run, moves, next: desk.command("list") }.tell(desk)
    }
}

/// The base name of a part that waits.
fn waiting(layout: &Layout, name: &str) -> Result<String, Problem> {
    let part = one_part(layout, name)?;
    match part.station {
        Station::Intake => Ok(part.name.base().to_owned()),
        station => Err(Problem::refused(format!("{} does not wait: it stands in {station}", part.name))
            .hinted("only parts in intake have an order")),
    }
}
