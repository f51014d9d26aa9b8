//! The agents of a shard, counted: a pure step from its cells to a report.

use std::collections::{BTreeMap, BTreeSet};

use rafted_value::Context;

use super::Seen;
use crate::agent_state::AgentCell;
use crate::quota_group::{QuotaUse, ShardReport};

/// A shard as of one entry.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) index: u64,
    log_time: u64,
    used: BTreeMap<(String, u64), Used>,
    /// The agents to end, and up to which incarnation.
    pub(super) doomed: Vec<(String, u64)>,
    /// Deleted incarnations without agents here.
    without: Vec<u64>,
    /// The highest reservation by which an agent here came into being.
    pub(super) last_reservation: u64,
}

#[derive(Debug, Default)]
struct Used {
    count: u64,
    spent: BTreeMap<u64, u64>,
}

impl Survey {
    /// Counts. Of reservations it tells what is pending, and what is newer than anything reported before: those may
    /// have been made since.
    pub(super) fn of<'a>(
        cells: impl Iterator<Item = (&'a str, &'a AgentCell)>,
        context: &Context<'_>,
        seen: &Seen,
    ) -> Self {
        let mut survey = Self { index: context.index(), log_time: context.log_time().as_millis(), ..Self::default() };
        let pending: BTreeSet<u64> = seen.pending.reservations.iter().map(|(id, _)| *id).collect();
        let deleted: BTreeMap<u64, &str> = seen.pending.deleted.iter().map(|(id, name)| (*id, name.as_str())).collect();
        let mut alive = BTreeSet::new();
        for (key, cell) in cells {
            let Some((quota, _)) = key.split_once('/') else { continue };
            let activation = cell.activation;
            survey.last_reservation = survey.last_reservation.max(activation.reservation);
            if deleted.contains_key(&activation.incarnation) {
                alive.insert(activation.incarnation);
                survey.doomed.push((key.to_owned(), activation.incarnation));
            }
            let used = survey.used.entry((quota.to_owned(), activation.incarnation)).or_default();
            used.count += 1;
            let is_new = seen.known_reservation.is_some_and(|known| activation.reservation > known);
            if is_new || pending.contains(&activation.reservation) {
                *used.spent.entry(activation.reservation).or_default() += 1;
            }
        }
        survey.without = deleted.into_keys().filter(|incarnation| !alive.contains(incarnation)).collect();
        survey
    }

    pub(super) fn report(&self, holder: &str) -> ShardReport {
        let used = self.used.iter().map(|((quota, incarnation), used)| QuotaUse {
            quota: quota.clone(),
            incarnation: *incarnation,
            used: used.count,
            spent: used.spent.iter().map(|(id, count)| (*id, *count)).collect(),
        });
        ShardReport {
            holder: holder.to_owned(),
            index: self.index,
            log_time: self.log_time,
            used: used.collect(),
            without: self.without.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rafted_value::LogTime;

    use super::*;
    use crate::agent_state::Activation;
    use crate::on_tick::Schedule;
    use crate::quota_group::Pending;

    fn cell(incarnation: u64, reservation: u64) -> AgentCell {
        AgentCell {
            activation: Activation { incarnation, reservation },
            version: 1,
            tick_millis: 1_000,
            schedule: Schedule::Idle,
            state: Vec::new(),
        }
    }

    fn survey(cells: &[(&str, AgentCell)], seen: &Seen) -> ShardReport {
        let context = Context::new(LogTime::from_millis(70), 7, None);
        Survey::of(cells.iter().map(|(key, cell)| (*key, cell)), &context, seen).report("s1")
    }

    fn used(quota: &str, incarnation: u64, used: u64, spent: &[(u64, u64)]) -> QuotaUse {
        QuotaUse { quota: quota.into(), incarnation, used, spent: spent.to_vec() }
    }

    #[test]
    fn agents_are_counted_by_quota_and_incarnation() {
        let cells = [("a/m/1", cell(1, 5)), ("a/m/2", cell(1, 5)), ("a/m/3", cell(4, 6)), ("b/m/1", cell(2, 9))];
        let report = survey(&cells, &Seen::default());
        let expected = vec![used("a", 1, 2, &[]), used("a", 4, 1, &[]), used("b", 2, 1, &[])];
        assert_eq!((report.index, report.log_time, report.used), (7, 70, expected));
    }

    #[test]
    fn places_are_told_of_pending_reservations_and_of_new_ones() {
        let cells = [("a/m/1", cell(1, 5)), ("a/m/2", cell(1, 6)), ("a/m/3", cell(1, 9)), ("a/m/4", cell(1, 9))];
        let pending = Pending { reservations: vec![(5, 100)], ..Pending::default() };
        let seen = Seen { pending, known_reservation: Some(8), ..Seen::default() };
        assert_eq!(survey(&cells, &seen).used, vec![used("a", 1, 4, &[(5, 1), (9, 2)])]);
    }

    #[test]
    fn a_shard_is_without_a_deleted_quota_when_no_agent_of_it_is_left() {
        let deleted = vec![(1, "a".to_owned()), (3, "b".to_owned())];
        let seen = Seen { pending: Pending { deleted, ..Pending::default() }, ..Seen::default() };
        let context = Context::new(LogTime::from_millis(70), 7, None);
        let cells = [("a/m/1", cell(1, 5)), ("a/m/2", cell(2, 6))];
        let survey = Survey::of(cells.iter().map(|(key, cell)| (*key, cell)), &context, &seen);
        assert_eq!(survey.doomed, vec![("a/m/1".to_owned(), 1)]);
        assert_eq!(survey.report("s1").without, vec![3]);
    }
}
