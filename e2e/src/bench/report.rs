//! The table of what was measured, for a terminal and for `docs/benchmarks.md`.

use std::fmt::Write as _;

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was measured, as in the table of the goals.
    pub what: &'static str,
    /// What came out.
    pub measured: String,
    /// The limit that was measured in the same run, or what it is compared with.
    pub beside: String,
    /// What was measured, divided by what stands beside it, where both are of one kind.
    pub ratio: Option<f64>,
    /// What is to be reached.
    pub reach: &'static str,
    /// Whether it is.
    pub reached: bool,
}

impl Row {
    fn cells(&self) -> [String; 6] {
        [
            self.what.to_owned(),
            self.measured.clone(),
            self.beside.clone(),
            self.ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}")),
            self.reach.to_owned(),
            if self.reached { "yes" } else { "short" }.to_owned(),
        ]
    }
}

const HEADS: [&str; 6] = ["what", "measured", "beside it, same run", "ratio", "to reach", "reached"];

/// The table for a terminal.
pub fn table(rows: &[Row]) -> String {
    let lines: Vec<[String; 6]> =
        std::iter::once(HEADS.map(str::to_owned)).chain(rows.iter().map(Row::cells)).collect();
    let widths: [usize; 6] =
        std::array::from_fn(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for line in lines {
        for (cell, width) in line.iter().zip(widths) {
            // Writing to a string cannot fail.
            let _ = write!(text, "{cell:width$}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// The table in Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = format!("| {} |\n|{}\n", HEADS.join(" | "), "---|".repeat(HEADS.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.cells().join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tables_say_the_same() {
        let row = Row {
            what: "later turn",
            measured: "24 ms".to_owned(),
            beside: "23 ms alone".to_owned(),
            ratio: Some(24.0 / 23.0),
            reach: "+ 1 ms",
            reached: false,
        };
        assert!(table(std::slice::from_ref(&row)).contains("later turn  24 ms     23 ms alone          1.04"));
        assert!(markdown(&[row]).ends_with("| later turn | 24 ms | 23 ms alone | 1.04 | + 1 ms | short |\n"));
    }
}
