//! What clients did and were told, and whether one list explains it: each append at one place of the list, each read
//! behind some of them, in an order that agrees with real time (Herlihy and Wing 1990). The list itself is the order,
//! so that checking is a sweep and no search.

use std::collections::BTreeMap;
use std::time::Duration;

use super::value::chained;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Operation {
    Append(u64),
    Read,
    /// What it sees may be so old.
    ReadWithin(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    /// The list's length behind the append.
    Appended(u64),
    /// What the list was.
    Read {
        length: u64,
        hash: u64,
    },
    NotHappened,
    Unknown,
}

/// One operation. `from` and `to` count the invocations and answers of all clients; `from_at` and `to_at` are when they
/// were.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) operation: Operation,
    pub(crate) outcome: Outcome,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) from_at: Duration,
    pub(crate) to_at: Duration,
}

/// Whether `items` explains the history.
pub(crate) fn check(history: &[Record], items: &[u64]) -> Result<(), String> {
    let places = places(items)?;
    let mut hashes = vec![0];
    for &item in items {
        hashes.push(chained(hashes[hashes.len() - 1], item));
    }
    let mut points = Vec::new();
    for record in history {
        let point = match (record.operation, record.outcome) {
            (Operation::Append(item), outcome) => {
                let place = places.get(&item).copied();
                match (outcome, place) {
                    (Outcome::Appended(length), Some(place)) if length == place => Some(place),
                    (Outcome::Appended(length), place) => {
                        return Err(format!("{item} was acknowledged as number {length} and is at {place:?}"));
                    }
                    (Outcome::NotHappened, Some(place)) => {
                        return Err(format!("{item} is at {place}, and its client was told that it did not happen"));
                    }
                    (_, place) => place,
                }
            }
            (Operation::Read | Operation::ReadWithin(_), Outcome::Read { length, hash }) => {
                match hashes.get(length as usize) {
                    Some(&expected) if expected == hash => Some(length),
                    _ => return Err(format!("a read saw {length} items with hash {hash:x}, which never were")),
                }
            }
            (Operation::Read | Operation::ReadWithin(_), _) => None,
        };
        points.extend(point.map(|point| (record, point)));
    }
    check_order(points)
}

fn places(items: &[u64]) -> Result<BTreeMap<u64, u64>, String> {
    let mut places = BTreeMap::new();
    for (place, &item) in (1..).zip(items) {
        if let Some(before) = places.insert(item, place) {
            return Err(format!("{item} ran twice: it is at {before} and at {place}"));
        }
    }
    Ok(places)
}

/// What was answered before an operation was asked for must come before it in the list.
fn check_order(points: Vec<(&Record, u64)>) -> Result<(), String> {
    let mut events: Vec<(u64, bool, &Record, u64)> = Vec::new();
    for (record, point) in points {
        events.push((record.from, false, record, point));
        if record.outcome != Outcome::Unknown {
            events.push((record.to, true, record, point));
        }
    }
    events.sort_by_key(|event| event.0);
    let mut reached = 0;
    // What was reached when, for reads that may be old.
    let mut reached_at = Vec::new();
    for (_, is_answer, record, point) in events {
        if is_answer {
            // An old read may see what is behind others; nobody is promised anything by it.
            if !matches!(record.operation, Operation::ReadWithin(_)) {
                reached = reached.max(point);
                reached_at.push((record.to_at, reached));
            }
            continue;
        }
        let reached = match record.operation {
            Operation::Append(_) | Operation::Read => reached,
            Operation::ReadWithin(max) => {
                let before = |&&(at, _): &&(Duration, u64)| at + max < record.from_at;
                reached_at.iter().take_while(before).last().map_or(0, |&(_, reached)| reached)
            }
        };
        let is_append = matches!(record.operation, Operation::Append(_));
        if point < reached || (is_append && point == reached) {
            return Err(format!("{record:?} is at {point}, but {reached} was told before it was asked"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(operation: Operation, outcome: Outcome, from: u64, to: u64) -> Record {
        let at = |moment| Duration::from_millis(moment * 10);
        Record { operation, outcome, from, to, from_at: at(from), to_at: at(to) }
    }

    #[test]
    fn a_list_explains_what_it_can_and_nothing_else() {
        let (a, b) = (Operation::Append(1), Operation::Append(2));
        let after = |length: u64| {
            let hash = [0, chained(0, 1), chained(chained(0, 1), 2)][length as usize];
            Outcome::Read { length, hash }
        };
        let first = record(a, Outcome::Appended(1), 0, 1);
        let second = record(b, Outcome::Appended(2), 2, 3);
        let within = |millis| Operation::ReadWithin(Duration::from_millis(millis));
        let table: [(&str, Vec<Record>, &[u64], bool); 11] = [
            ("in order", vec![first, second], &[1, 2], true),
            ("in the other order", vec![first, second], &[2, 1], false),
            ("lost", vec![first, second], &[1], false),
            ("twice", vec![first], &[1, 1], false),
            ("a refused one that is there", vec![record(a, Outcome::NotHappened, 0, 1)], &[1], false),
            ("an unknown one, there or not", vec![record(a, Outcome::Unknown, 0, 1), second], &[1, 2], true),
            ("a read of what was acknowledged", vec![first, record(Operation::Read, after(1), 2, 3)], &[1, 2], true),
            ("a stale read", vec![first, second, record(Operation::Read, after(1), 4, 5)], &[1, 2], false),
            ("as old as it may be", vec![first, second, record(within(10), after(1), 4, 5)], &[1, 2], true),
            ("older than it may be", vec![first, second, record(within(9), after(1), 4, 5)], &[1, 2], false),
            (
                "a read from the future",
                vec![record(Operation::Read, after(1), 0, 1), { record(a, Outcome::Appended(1), 2, 3) }],
                &[1],
                false,
            ),
        ];
        for (name, history, items, explained) in table {
            assert_eq!(check(&history, items).is_ok(), explained, "{name}: {:?}", check(&history, items));
        }
    }
}
