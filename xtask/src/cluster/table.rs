//! Plain tables: names to the left, numbers to the right.

use std::time::Duration;

/// Lines of equal columns under their titles. A row that is too short is filled with nothing.
pub fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let mut all = vec![titles.iter().map(ToString::to_string).collect::<Vec<_>>()];
    all.extend(rows.iter().cloned());
    let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
    let mut lines = vec![String::new(); all.len()];
    for column in 0..titles.len() {
        let width = all.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
        let numeric = !rows.is_empty() && rows.iter().all(|row| is_number(&cell(row, column)));
        for (line, row) in lines.iter_mut().zip(&all) {
            let text = cell(row, column);
            let padded = if numeric { format!("{text:>width$}") } else { format!("{text:<width$}") };
            line.push_str(if column == 0 { "" } else { "  " });
            line.push_str(&padded);
        }
    }
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// A dash stands for a number that nobody knows.
fn is_number(text: &str) -> bool {
    text == "-" || (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == ','))
}

/// `12345` as `12,345`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `75 s` as `1m15s`.
pub fn uptime(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_left_and_numbers_right() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [row(["n1", "5", "active"]), row(["n10", "1,234", "killed"]), row(["n2", "-", ""])];
        let expected = "node   keys  state\nn1        5  active\nn10   1,234  killed\nn2        -\n";
        assert_eq!(table(&["node", "keys", "state"], &rows), expected);
        assert_eq!(table(&["node", "keys"], &[]), "node  keys\n");
    }

    #[test]
    fn numbers_and_times_read_well() {
        let rows = [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")];
        for (number, text) in rows {
            assert_eq!(grouped(number), text);
        }
        let rows = [(0, "0s"), (59, "59s"), (75, "1m15s"), (3_599, "59m59s"), (7_380, "2h03m")];
        for (seconds, text) in rows {
            assert_eq!(uptime(Duration::from_secs(seconds)), text);
        }
    }
}
