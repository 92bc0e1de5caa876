//! Plain tables, no wider than the terminal.

/// The smallest width of a narrowed column, in characters.
const NARROWEST: usize = 8;
/// The longest word that is kept whole if it fits, in characters.
const LONG_WORD: usize = 20;
/// Characters between two columns.
const GAP: usize = 2;

/// The characters of a line of stdout: COLUMNS if it is set, else the width of the terminal. A file has no limit.
pub fn width() -> Option<usize> {
    let set = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let terminal = || terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| width.0.into());
    set.or_else(terminal).filter(|width| *width > 0)
}

/// A table with columns padded to their widest cell. The first column and columns of text are aligned to the left,
/// numbers to the right. If a line would exceed `limit`, cells of the widest columns continue on further lines.
pub fn table(head: &[&str], rows: &[Vec<String>], limit: Option<usize>) -> String {
    let columns: Vec<Column> = (0..head.len()).map(|at| Column::new(head, rows, at)).collect();
    let widths = narrowed(&columns, limit.unwrap_or(usize::MAX));
    let layout: Vec<(usize, bool)> =
        widths.iter().zip(&columns).map(|(&width, column)| (width, column.right)).collect();
    let head: Vec<String> = head.iter().map(|name| name.to_string()).collect();
    let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
    [&head, &rule].into_iter().chain(rows).map(|row| lines(row, &layout)).collect()
}

/// The layout of a column.
struct Column {
    /// Characters of the longest cell.
    width: usize,
    /// Characters of the longest word.
    word: usize,
    /// Cells are aligned to the right.
    right: bool,
}

impl Column {
    fn new(head: &[&str], rows: &[Vec<String>], at: usize) -> Self {
        let cells = rows.iter().map(|row| row[at].as_str());
        let texts = cells.clone().chain([head[at]]);
        let width = texts.clone().map(length).max().unwrap_or(0);
        let word = texts.flat_map(str::split_whitespace).map(length).max().unwrap_or(0);
        let is_number = |cell: &str| {
            cell == "-" || cell.strip_prefix('-').unwrap_or(cell).starts_with(|c: char| c.is_ascii_digit())
        };
        Column { width, word, right: at > 0 && cells.clone().all(is_number) }
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// Widths that fit into a line: the widest columns are narrowed first, and words are broken only as a last resort.
fn narrowed(columns: &[Column], limit: usize) -> Vec<usize> {
    let gaps = GAP * columns.len().saturating_sub(1);
    let widest = columns.iter().map(|column| column.width).max().unwrap_or(0);
    let capped = |cap: usize, whole: usize| -> Vec<usize> {
        columns.iter().map(|column| column.width.min(cap.max(column.word.min(whole)))).collect()
    };
    let all =
        [LONG_WORD, 0].into_iter().flat_map(|whole| (NARROWEST..=widest).rev().map(move |cap| (cap, whole)));
    let mut fitting = all.map(|(cap, whole)| capped(cap, whole));
    let found = fitting.find(|widths| widths.iter().sum::<usize>() + gaps <= limit);
    found.unwrap_or_else(|| capped(NARROWEST, 0))
}

/// The lines of a row, as many as its longest cell needs.
fn lines(row: &[String], layout: &[(usize, bool)]) -> String {
    let cells: Vec<Vec<String>> =
        row.iter().zip(layout).map(|(cell, &(width, _))| wrapped(cell, width)).collect();
    let height = cells.iter().map(Vec::len).max().unwrap_or(0);
    let line = |at: usize| {
        let parts = cells.iter().zip(layout).map(|(cell, &(width, right))| {
            let part = cell.get(at).map_or("", String::as_str);
            if right { format!("{part:>width$}") } else { format!("{part:<width$}") }
        });
        parts.collect::<Vec<_>>().join(&" ".repeat(GAP)).trim_end().to_string() + "\n"
    };
    (0..height).map(line).collect()
}

/// Breaks text into lines of a width, between words if possible.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    if length(text) <= width {
        return vec![text.into()];
    }
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let available = width.saturating_sub(length(&line) + 1);
        if !line.is_empty() && length(word) > available {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        for letter in word.chars() {
            if length(&line) == width {
                lines.push(std::mem::take(&mut line));
            }
            line.push(letter);
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(cells: &[&[&str]]) -> Vec<Vec<String>> {
        cells.iter().map(|row| row.iter().map(|cell| cell.to_string()).collect()).collect()
    }

    #[test]
    fn numbers_stand_to_the_right_and_text_to_the_left() {
        let text = table(&["name", "n", "what"], &rows(&[&["a", "5", "x"], &["b", "123", "yy"]]), None);
        assert_eq!(text, "name    n  what\n----  ---  ----\na       5  x\nb     123  yy\n");
    }

    #[test]
    fn a_table_fits_its_line_and_keeps_every_word() {
        let text = "one two three four five six seven eight nine ten";
        let all = rows(&[&["short", text, "12"], &["b", "averyveryverylongword and more", "3"]]);
        for limit in [30, 40, 60] {
            let fitted = table(&["name", "words", "n"], &all, Some(limit));
            assert!(fitted.lines().all(|line| length(line) <= limit), "{limit}:\n{fitted}");
            assert!(text.split(' ').all(|word| fitted.contains(word)), "{limit}:\n{fitted}");
        }
        assert_eq!(table(&["name", "words", "n"], &all, None).lines().count(), 4);
        assert_eq!(wrapped("abcdefghij kl", 4), ["abcd", "efgh", "ij", "kl"]);
        assert_eq!(wrapped("ab cd ef", 5), ["ab cd", "ef"]);
    }

    #[test]
    fn the_widest_columns_give_way_first() {
        let column = |width, word| Column { width, word, right: false };
        let columns = [column(5, 5), column(40, 6), column(18, 18)];
        assert_eq!(narrowed(&columns, usize::MAX), [5, 40, 18]);
        assert_eq!(narrowed(&columns, 57), [5, 30, 18]);
        // The long word is kept whole as long as possible.
        assert_eq!(narrowed(&columns, 37), [5, 10, 18]);
        assert_eq!(narrowed(&columns, 27), [5, 9, 9]);
        assert_eq!(narrowed(&columns, 1), [5, 8, 8]);
    }
}
