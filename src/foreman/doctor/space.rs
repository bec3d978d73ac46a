//! Free space and files against the reserve.

use rustix::fs::statvfs;

use super::{Check, Finding, Patient};
use crate::node::free_bytes;
use crate::units::Bytes;

pub struct SpaceCheck;

/// Fewer files than this can still be made: a part needs some dozens.
const FEW_FILES: u64 = 1000;

impl Check for SpaceCheck {
    fn name(&self) -> &'static str {
        "space"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let reserve = patient.node.as_ref().map_or(Bytes(0), |node| node.hot.min_free);
        let mut places = vec![patient.layout.root().to_owned(), patient.layout.work_root()];
        places.extend(patient.node.iter().flat_map(|node| node.hot.path.clone()));
        let mut found = Vec::new();
        let mut least = Bytes(u64::MAX);
        for place in places {
            let Ok(free) = free_bytes(&place) else { continue };
            least = least.min(free);
            let what = format!("{free} free at {}, the reserve is {reserve}", place.display());
            let fix = "free some space, or lower storage.hot.min_free_gb in factory_node.toml";
            if free < reserve {
                found.push(Finding::error(what).why("nothing is started below the reserve").fix(fix));
            } else if free.0 < reserve.0.saturating_mul(2) {
                found.push(Finding::warning(what).why("nothing is started below the reserve").fix(fix));
            }
            if let Ok(stat) = statvfs(&place)
                && stat.f_files > 0
                && stat.f_favail < FEW_FILES
            {
                let what = format!("only {} more files fit at {}", stat.f_favail, place.display());
                found.push(Finding::error(what).fix("remove files: this filesystem has used up its inodes"));
            }
        }
        // Several of these places are one disk.
        found.dedup_by(|a, b| a.level == b.level && a.what.split(" free at").next() == b.what.split(" free at").next());
        if found.is_empty() {
            found.push(Finding::ok(format!("{least} free, the reserve is {reserve}")));
        }
        found
    }
}
