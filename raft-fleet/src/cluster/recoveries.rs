//! What a recovery does to a group that lost its majority.

use super::{Cluster, GroupPhase, Refusal};
use crate::report::Recovery;

impl Cluster {
    /// Ends the group's incarnation: its survivors go on under a new one, and all others are replicas of a group that is
    /// no more. The same recovery a second time changes nothing.
    pub(super) fn recover(&mut self, index: u64, name: &str, recovery: Recovery) -> Result<(), Refusal> {
        let group = self.groups.get(name).ok_or(Refusal::GroupNotFound)?;
        if group.recovery.as_ref().is_some_and(|made| made.is_same(&recovery)) {
            return Ok(());
        }
        let is_chosen = |survivor: &crate::report::Survivor| survivor.seat.replica == recovery.chosen;
        if !recovery.survivors.iter().any(is_chosen) {
            return Err(Refusal::Outdated);
        }
        let group = self.group_of(name, recovery.ended)?;
        match group.phase {
            // Nothing of it is worth anything yet.
            GroupPhase::Forming { .. } | GroupPhase::Founded { .. } => return Err(Refusal::Outdated),
            GroupPhase::Running | GroupPhase::Recovering => {}
        }
        (group.phase, group.incarnation, group.changed_at) = (GroupPhase::Recovering, index, index);
        group.recovery = Some(recovery);
        self.changed_at = index;
        Ok(())
    }
}
