//! Memory and swap against what one pass may use.

use super::{Check, Finding, Patient};
use crate::units::Bytes;

pub struct MemoryCheck;

impl Check for MemoryCheck {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let machine = &patient.machine;
        let (Some(node), Some(total)) = (&patient.node, machine.memory("MemTotal")) else {
            return vec![Finding::note("the kernel does not say how much memory there is")];
        };
        let budget = node.forge.memory_budget;
        let free = Bytes(machine.memory("MemAvailable").unwrap_or(total));
        let swap = Bytes(machine.memory("SwapTotal").unwrap_or(0));
        let fix = "lower forge.memory_budget_gb in factory_node.toml";
        if budget.0 > total {
            let what = format!("one pass may use {budget}, this machine has {}", Bytes(total));
            return vec![Finding::error(what).why("the kernel kills workers that grow so far").fix(fix)];
        }
        if budget > free {
            let what = format!("one pass may use {budget}, only {free} are available now");
            return vec![
                Finding::warning(what)
                    .why("other processes hold the rest; a large part may be killed for memory")
                    .fix(format!("end what is not needed, or {fix}")),
            ];
        }
        if swap.0 == 0 && budget.0 > total / 10 * 9 {
            let what = format!("one pass may use {budget} of {}, and there is no swap", Bytes(total));
            return vec![Finding::warning(what).why("nothing is left for anybody else").fix(fix)];
        }
        vec![Finding::ok(format!("one pass may use {budget} of {}, {free} available, {swap} swap", Bytes(total)))]
    }
}
