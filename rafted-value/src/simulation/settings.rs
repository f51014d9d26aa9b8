//! The group's settings under change: each change has a number, which the settings tell, and at the end the group has
//! those of a change that no later one replaced.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::GroupConfig;

/// The number is what is above this in `max_queued_commands`, which nobody gets near.
const BASE: usize = 100_000;

/// What was asked for, and when it was answered, in invocations and answers of all clients.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    changes: BTreeMap<u64, Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    from: u64,
    /// When it was told that the change is made.
    made: Option<u64>,
    refused: bool,
}

/// Settings that are known by their number.
pub(crate) fn numbered(number: u64) -> GroupConfig {
    let [heartbeat, min, max] = [[50, 150, 300], [30, 100, 200], [60, 200, 400]][(number % 3) as usize];
    let ms = Duration::from_millis;
    let config = GroupConfig::default().with_max_queued_commands(BASE + number as usize).unwrap();
    let config = config.with_timing(ms(heartbeat), ms(min), ms(max)).unwrap();
    config.with_snapshot_after_entries(10 + number * 37 % 70).unwrap()
}

/// The number of settings; 0 for those of the start.
pub(crate) fn number(config: &GroupConfig) -> u64 {
    config.max_queued_commands().saturating_sub(BASE) as u64
}

impl Settings {
    /// A client is about to ask for other settings: their number.
    pub(crate) fn ask(&mut self, moment: u64) -> u64 {
        let number = self.changes.len() as u64 + 1;
        self.changes.insert(number, Asked { from: moment, ..Asked::default() });
        number
    }

    /// It is told what became of it.
    pub(crate) fn answer(&mut self, number: u64, made: bool, refused: bool, moment: u64) {
        let asked = self.changes.entry(number).or_default();
        (asked.made, asked.refused) = (made.then_some(moment), refused);
    }

    /// Whether the group may have these settings when all is over.
    pub(crate) fn check(&self, number: u64) -> Result<(), String> {
        let found = self.changes.get(&number);
        if found.is_none_or(|found| found.refused) && number != 0 {
            return Err(format!("nobody made settings {number}: {found:?}"));
        }
        let made_at = if number == 0 { Some(0) } else { found.and_then(|found| found.made) };
        let replaced = |asked: &&Asked| asked.made.is_some() && made_at.is_some_and(|made_at| made_at < asked.from);
        match self.changes.values().find(replaced) {
            Some(later) => Err(format!("settings {number} ({found:?}) hold, and not those of {later:?}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_are_those_of_a_change_that_no_later_one_replaced() {
        let mut settings = Settings::default();
        assert!(settings.check(0).is_ok());
        assert_eq!((settings.ask(1), settings.ask(2)), (1, 2));
        settings.answer(1, true, false, 3);
        assert!(settings.check(0).is_err(), "lost");
        assert!(settings.check(1).is_ok() && settings.check(2).is_ok(), "the other is under way");
        settings.answer(2, true, false, 4);
        assert!(settings.check(1).is_ok() && settings.check(2).is_ok(), "at the same time");
        assert_eq!(settings.ask(5), 3);
        settings.answer(3, false, true, 6);
        assert!(settings.check(3).is_err(), "it was refused");
        assert_eq!(settings.ask(7), 4);
        settings.answer(4, true, false, 8);
        assert!(settings.check(2).is_err(), "a later one is lost");
        assert!(settings.check(4).is_ok() && settings.check(5).is_err());
        assert_eq!([0, 7].map(|number_of| number(&numbered(number_of))), [0, 7]);
        assert_eq!(number(&GroupConfig::default()), 0);
    }
}
