//! One line of a benchmark: what was measured, against what, and the target.

use serde_json::{Value, json};

/// Several rounds of one side.
#[derive(Debug, Clone, Default)]
pub struct Rounds {
    values: Vec<f64>,
    cpu_us: Vec<f64>,
}

impl Rounds {
    /// One more round; `cpu_us` is per operation, where there are operations.
    pub fn add(&mut self, value: f64, cpu_us: Option<f64>) {
        self.values.push(value);
        self.cpu_us.extend(cpu_us);
    }

    /// The median of the values; NaN without any.
    pub fn median(&self) -> f64 {
        median(&self.values)
    }

    /// The median of the CPU time per operation, in microseconds; NaN without any.
    pub fn cpu_us(&self) -> f64 {
        median(&self.cpu_us)
    }

    /// The same in another unit.
    pub fn scaled(&self, factor: f64) -> Rounds {
        let values = self.values.iter().map(|value| value * factor).collect();
        Rounds { values, cpu_us: self.cpu_us.clone() }
    }

    fn lower(&self) -> f64 {
        self.values.iter().copied().fold(f64::NAN, f64::min)
    }

    fn upper(&self) -> f64 {
        self.values.iter().copied().fold(f64::NAN, f64::max)
    }
}

/// What a target asks of the ratio, or of the value where there is no ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// One line.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: &'static str,
    pub unit: &'static str,
    pub value: f64,
    pub lower: f64,
    pub upper: f64,
    /// What the ratio is against, and the ratio.
    pub versus: Option<(String, f64)>,
    pub target: Option<Target>,
    pub cpu_us: f64,
}

impl Row {
    /// A row of one side alone.
    pub fn alone(name: &'static str, unit: &'static str, ours: &Rounds, target: Option<Target>) -> Row {
        Row {
            name,
            unit,
            value: ours.median(),
            lower: ours.lower(),
            upper: ours.upper(),
            versus: None,
            target,
            cpu_us: ours.cpu_us(),
        }
    }

    /// A row with a ratio: ours by theirs.
    pub fn against(
        name: &'static str,
        unit: &'static str,
        ours: &Rounds,
        (peer, theirs): (&str, &Rounds),
        target: Option<Target>,
    ) -> Row {
        let ratio = ours.median() / theirs.median();
        let versus = Some((format!("{peer}: {}", rounded(theirs.median())), ratio));
        Row { versus, ..Row::alone(name, unit, ours, target) }
    }

    /// A row of something that costs, with the ratio theirs by ours: how many times as much theirs costs.
    pub fn saving(
        name: &'static str,
        unit: &'static str,
        ours: &Rounds,
        theirs: (&str, &Rounds),
        target: Option<Target>,
    ) -> Row {
        let mut row = Row::against(name, unit, ours, theirs, target);
        row.versus = row.versus.map(|(peer, ratio)| (peer, 1.0 / ratio));
        row
    }

    /// Whether the target is met; `None` without one.
    pub fn is_met(&self) -> Option<bool> {
        let measured = self.versus.as_ref().map_or(self.value, |(_, ratio)| *ratio);
        self.target.map(|target| match target {
            Target::AtLeast(bound) => measured >= bound,
            Target::AtMost(bound) => measured <= bound,
        })
    }

    /// The object of a list that `--json` writes; numbers that were not measured are null.
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "min": self.lower,
            "max": self.upper,
            "vs": self.versus.as_ref().map(|(peer, _)| peer),
            "ratio": self.versus.as_ref().map(|(_, ratio)| ratio),
            "target": self.target.map(Target::text),
            "cpu_us_per_op": self.cpu_us.is_finite().then_some(self.cpu_us),
        })
    }
}

impl Target {
    fn text(self) -> String {
        match self {
            Target::AtLeast(bound) => format!(">= {bound}"),
            Target::AtMost(bound) => format!("<= {bound}"),
        }
    }
}

/// All rows, ratios first.
pub fn table(rows: &[Row]) -> String {
    let mut lines = vec![
        ["name", "ratio", "target", "", "value", "min", "max", "unit", "cpu us/op", "against"]
            .map(String::from)
            .to_vec(),
    ];
    for row in rows {
        lines.push(vec![
            row.name.to_owned(),
            row.versus.as_ref().map_or(String::new(), |(_, ratio)| format!("{ratio:.2}")),
            row.target.map_or(String::new(), Target::text),
            row.is_met().map_or("", |met| if met { "met" } else { "MISSED" }).to_owned(),
            rounded(row.value),
            rounded(row.lower),
            rounded(row.upper),
            row.unit.to_owned(),
            if row.cpu_us.is_finite() { format!("{:.2}", row.cpu_us) } else { String::new() },
            row.versus.as_ref().map_or(String::new(), |(peer, _)| peer.clone()),
        ]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..lines[0].len()).map(width).collect();
    let line = |cells: &Vec<String>| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Three digits that count, and thousands apart.
fn rounded(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(values: &[f64]) -> Rounds {
        Rounds { values: values.to_vec(), cpu_us: Vec::new() }
    }

    #[test]
    fn a_target_is_about_the_ratio_where_there_is_one() {
        let ours = rounds(&[700.0, 600.0, 800.0]);
        let theirs = rounds(&[100.0, 90.0, 300.0, 110.0]);
        let row = Row::against("cast", "1/s", &ours, ("streams", &theirs), Some(Target::AtLeast(6.0)));
        assert_eq!((row.value, row.lower, row.upper), (700.0, 600.0, 800.0));
        assert_eq!(row.is_met(), Some(true), "700 by 105");
        let alone = Row::alone("p99", "ms", &rounds(&[1.5]), Some(Target::AtMost(1.0)));
        assert_eq!(alone.is_met(), Some(false));
        assert_eq!(Row::alone("x", "ms", &rounds(&[1.5]), None).is_met(), None);
    }

    #[test]
    fn json_has_the_documented_fields_and_null_for_what_was_not_measured() {
        let row = Row::alone("p99", "ms", &rounds(&[1.5]), Some(Target::AtMost(1.0)));
        let expected = json!({
            "name": "p99", "value": 1.5, "unit": "ms", "min": 1.5, "max": 1.5, "vs": null, "ratio": null,
            "target": "<= 1", "cpu_us_per_op": null,
        });
        assert_eq!(row.to_json(), expected);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(rounded(1_234_567.8), "1,234,568");
        assert_eq!(rounded(999.6), "1,000");
        assert_eq!(rounded(1.234), "1.23");
    }
}
