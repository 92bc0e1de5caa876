//! Names that people mistype.

/// The name that is most like a mistyped one, if one is.
pub fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    let distance = |other: &str| {
        let a: Vec<char> = name.chars().collect();
        let b: Vec<char> = other.chars().collect();
        let mut row: Vec<usize> = (0..=b.len()).collect();
        for (i, x) in a.iter().enumerate() {
            let mut before = std::mem::replace(&mut row[0], i + 1);
            for (j, y) in b.iter().enumerate() {
                let cost = (before + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
                before = std::mem::replace(&mut row[j + 1], cost);
            }
        }
        row[b.len()]
    };
    let near = known.iter().map(|k| (distance(k), k.as_str())).min()?;
    (near.0 <= 1 + name.chars().count() / 3).then_some(near.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_found_and_a_far_one_is_not() {
        let known = ["steps", "seed"].map(String::from);
        assert_eq!(nearest("stpes", &known), Some("steps"));
        assert_eq!(nearest("learning", &known), None);
        assert_eq!(nearest("x", &[]), None);
    }
}
