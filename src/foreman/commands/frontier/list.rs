//! `foreman frontier list`: the contracts and what they ask for.

use std::path::PathBuf;

use serde::Serialize;

use super::contracts;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, Problem};
use crate::foreman::wording::columns;
use crate::frontier::{ArtifactKind, Budget, Contract};
use crate::units::Bytes;

/// List the contracts: what an artifact is, how large it may be, how it is scored
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman frontier list --json")]
pub struct Args {
    /// A contracts file to use instead of the one built in
    #[arg(long, value_name = "FILE")]
    contracts: Option<PathBuf>,
}

#[derive(Serialize)]
struct Listing {
    contracts: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    contract: Contract,
    effective_rescue_bits: f64,
    budget: Budget,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let contracts = contracts(&self.contracts)?;
        let row = |contract: &Contract| {
            let terms = contracts.terms(&contract.id).map_err(super::problem)?;
            let (effective_rescue_bits, budget) = (terms.rescue.effective_bits(), Budget::of(&terms));
            Ok(Row { contract: contract.clone(), effective_rescue_bits, budget })
        };
        let rows = contracts.all().iter().map(row).collect::<Result<_, Problem>>()?;
        desk.answer(&Listing { contracts: rows }, |listing, printer| {
            let header = ["CONTRACT", "ARTIFACT", "BITS/PARAMETER", "AT MOST", "SCORER", "KNOWN FROM", "REFERENCE"];
            let cells = |row: &Row| {
                let kind = match row.contract.artifact {
                    ArtifactKind::HfDir => row.contract.containers.join(", "),
                    ArtifactKind::PlanJson => "JSON plan".to_owned(),
                };
                let most = Bytes(row.budget.max_reference_bits / 8).to_string();
                let evidence = format!("{:?}", row.contract.scorer_evidence).to_lowercase();
                vec![
                    row.contract.id.clone(),
                    kind,
                    row.budget.bits_per_parameter.to_string(),
                    most,
                    row.contract.scorer.clone(),
                    evidence,
                    row.contract.reference_model.clone(),
                ]
            };
            for line in columns("", &header, &listing.contracts.iter().map(cells).collect::<Vec<_>>()) {
                printer.line(line)?;
            }
            Ok(())
        })
    }
}
