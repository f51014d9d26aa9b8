//! When the commands that have gathered at a leader are proposed as one batch. Pure: the proposer says what it has.
//!
//! ```text
//!   nothing under way -----------------------------> at once
//!   a batch under way, and many have gathered -----> at once
//!   a batch under way, and the first waits long ---> at once
//!   a batch under way -----------------------------> when it is done
//! ```
//!
//! A round costs much the same for one command and for a hundred: a message to each follower, a sync on each member, a
//! dozen switches between threads. Proposed as they came, 256 clients' commands went 55 to a round, and one cost a tenth
//! more CPU time than it does since they gather.

use std::time::Duration;

/// The longest that a command waits for the batch before its own. Where a round takes longer, because the members are
/// far apart or their disks are slow, batches overlap.
pub(crate) const MAX_WAIT: Duration = Duration::from_millis(5);
/// So many commands are worth a round of their own.
const ENOUGH: usize = 64;

/// Whether `gathered` commands are to be proposed, with so many batches under way, the first command having waited for
/// `waited`.
pub(crate) fn is_due(batches_under_way: usize, gathered: usize, waited: Duration) -> bool {
    gathered > 0 && (batches_under_way == 0 || gathered >= ENOUGH || waited >= MAX_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_wait_for_the_round_before_theirs_but_not_for_long_and_not_in_crowds() {
        let ms = Duration::from_millis;
        let table = [
            ("nothing to propose", 0, 0, ms(9), false),
            ("an idle group's command goes at once", 0, 1, ms(0), true),
            ("the next one waits", 1, 1, ms(0), false),
            ("so do some dozens", 1, 63, ms(4), false),
            ("a crowd does not", 1, 64, ms(0), true),
            ("nor does it when many are under way", 7, 64, ms(0), true),
            ("after a while, rounds overlap", 1, 1, ms(5), true),
        ];
        for (name, under_way, gathered, waited, expected) in table {
            assert_eq!(is_due(under_way, gathered, waited), expected, "{name}");
        }
    }
}
