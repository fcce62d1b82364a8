//! Comma-separated values as RFC 4180 has them: fields may stand in quotes, and quotes in such fields are doubled.

/// Splits a text into rows of fields.
pub(super) fn rows(text: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    each_row(text, |row| {
        rows.push(row);
        true
    });
    rows
}

/// Gives every row of a text to `take`, until that says `false`. Lines without a character are left out.
pub(super) fn each_row(text: &str, mut take: impl FnMut(Vec<String>) -> bool) {
    let (mut row, mut field, mut is_quoted, mut has_any) = (Vec::new(), String::new(), false, false);
    let mut chars = text.trim_start_matches('\u{feff}').chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => field.extend(chars.next()),
            '"' => (is_quoted, has_any) = (!is_quoted, true),
            ',' if !is_quoted => {
                row.push(std::mem::take(&mut field));
                has_any = true;
            }
            '\r' | '\n' if !is_quoted => {
                if has_any {
                    row.push(std::mem::take(&mut field));
                    if !take(std::mem::take(&mut row)) {
                        return;
                    }
                    has_any = false;
                }
            }
            c => {
                field.push(c);
                has_any = true;
            }
        }
    }
    if has_any {
        row.push(field);
        take(row);
    }
}

/// A row as text, with its line end.
pub(super) fn line<'a>(fields: impl IntoIterator<Item = &'a str>) -> String {
    let quoted = |field: &str| match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    };
    fields.into_iter().map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_kind() {
        for (text, wanted) in [
            ("a,b\nc,d\n", vec![vec!["a", "b"], vec!["c", "d"]]),
            ("\u{feff}a,b\r\n\r\nc,", vec![vec!["a", "b"], vec!["c", ""]]),
            ("\"x, \"\"y\"\"\",\"two\nlines\"\n", vec![vec!["x, \"y\"", "two\nlines"]]),
            ("\"\"\n,\n", vec![vec![""], vec!["", ""]]),
            ("", vec![]),
        ] {
            assert_eq!(rows(text), wanted, "{text:?}");
        }
        let fields = ["plain", "a, b", "say \"hi\"", "two\nlines", ""];
        assert_eq!(rows(&line(fields)), [fields]);
    }
}
