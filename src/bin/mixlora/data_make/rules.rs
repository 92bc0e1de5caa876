//! Forty rules that turn a list of words into an answer, each with the wordings that ask for it.
//!
//! On lists of at least [`SHORTEST`] words no two rules are the same function. Wordings of different rules are made of the
//! same few words, and some differ in nothing but the order of these.

use super::lists::{backwards, but_last, first_letter, last, last_letter, letters};

/// A rule with its name, which is that of its task.
pub struct Rule {
    pub name: &'static str,
    /// The answer to a list: words or letters.
    pub apply: fn(&[&'static str]) -> Vec<&'static str>,
    /// Wordings that occur in training.
    pub trained: [&'static str; 4],
    /// A wording that does not.
    pub unseen: &'static str,
}

/// The fewest words of a list.
pub const SHORTEST: usize = 3;

const fn rule(
    name: &'static str,
    apply: fn(&[&'static str]) -> Vec<&'static str>,
    trained: [&'static str; 4],
    unseen: &'static str,
) -> Rule {
    Rule { name, apply, trained, unseen }
}

/// All rules. A set of T tasks has the first T.
pub const RULES: [Rule; 40] = [
    rule(
        "reverse",
        backwards,
        ["From the last to the first", "Backwards", "All in reverse order", "Reverse the list"],
        "The whole list, backwards",
    ),
    rule(
        "first_to_end",
        |list| [&list[1..], &list[..1]].concat(),
        [
            "The first goes to the end",
            "Move the first behind the last",
            "Put the first at the end",
            "All but the first, then the first",
        ],
        "The first moves behind the last",
    ),
    rule(
        "drop_first_reverse",
        |list| backwards(&list[1..]),
        [
            "All but the first, backwards",
            "Drop the first, then reverse",
            "From the last to the second",
            "Without the first, in reverse order",
        ],
        "Leave out the first, then reverse",
    ),
    rule(
        "drop_last",
        |list| but_last(list).to_vec(),
        ["All but the last", "Drop the last", "Without the last", "Leave out the last"],
        "The list without the last",
    ),
    rule(
        "last_first",
        |list| vec![last(list), list[0]],
        [
            "The last, then the first",
            "The last and the first",
            "The first behind the last",
            "Both ends, the last before the first",
        ],
        "The last one, and then the first one",
    ),
    rule(
        "reverse_others_first",
        |list| [list[..1].to_vec(), backwards(&list[1..])].concat(),
        [
            "The first, then the others backwards",
            "Reverse all but the first",
            "Keep the first in front, reverse the others",
            "The first, then all but the first, backwards",
        ],
        "The first stays, the others in reverse order",
    ),
    rule(
        "drop_last_reverse",
        |list| backwards(but_last(list)),
        [
            "All but the last, backwards",
            "Drop the last, then reverse",
            "Without the last, in reverse order",
            "Reverse, then all but the first",
        ],
        "Leave out the last, then reverse",
    ),
    rule(
        "last_to_front",
        |list| [&list[list.len() - 1..], but_last(list)].concat(),
        [
            "The last goes to the front",
            "Move the last before the first",
            "Put the last in front",
            "The last, then all but the last",
        ],
        "The last moves before the first",
    ),
    rule(
        "drop_first",
        |list| list[1..].to_vec(),
        ["All but the first", "Drop the first", "Without the first", "Leave out the first"],
        "The list without the first",
    ),
    rule(
        "reverse_others_last",
        |list| [backwards(but_last(list)), vec![last(list)]].concat(),
        [
            "The others backwards, then the last",
            "Reverse all but the last",
            "Keep the last at the end, reverse the others",
            "All but the last, backwards, then the last",
        ],
        "The last stays, the others in reverse order",
    ),
    rule(
        "first_last",
        |list| vec![list[0], last(list)],
        [
            "The first, then the last",
            "The first and the last",
            "The last behind the first",
            "Both ends, the first before the last",
        ],
        "The first one, and then the last one",
    ),
    rule(
        "second",
        |list| vec![list[1]],
        ["The second", "Only the second", "Drop all but the second", "The one behind the first"],
        "Nothing but the second",
    ),
    rule(
        "first",
        |list| vec![list[0]],
        ["The first", "Only the first", "Drop all but the first", "The one in front"],
        "Nothing but the first",
    ),
    rule(
        "last",
        |list| vec![last(list)],
        ["The last", "Only the last", "Drop all but the last", "The one at the end"],
        "Nothing but the last",
    ),
    rule(
        "first_twice",
        |list| [&list[..1], list].concat(),
        [
            "The first twice, then the others",
            "Repeat the first",
            "All, with the first twice",
            "The first, then the whole list",
        ],
        "The whole list, with the first twice",
    ),
    rule(
        "last_twice",
        |list| [list, &list[list.len() - 1..]].concat(),
        [
            "The others, then the last twice",
            "Repeat the last",
            "All, with the last twice",
            "The whole list, then the last",
        ],
        "The whole list, with the last twice",
    ),
    rule(
        "first_also_end",
        |list| [list, &list[..1]].concat(),
        [
            "The whole list, then the first",
            "Repeat the first at the end",
            "All, with the first also at the end",
            "Keep the first in front and put it at the end",
        ],
        "The whole list, with the first also at the end",
    ),
    rule(
        "last_also_front",
        |list| [&list[list.len() - 1..], list].concat(),
        [
            "The last, then the whole list",
            "Repeat the last in front",
            "All, with the last also in front",
            "Keep the last at the end and put it in front",
        ],
        "The whole list, with the last also in front",
    ),
    rule(
        "second_twice",
        |list| [&list[..2], &list[1..]].concat(),
        [
            "The first, the second twice, then the others",
            "Repeat the second",
            "All, with the second twice",
            "The others once, the second twice",
        ],
        "The whole list, with the second twice",
    ),
    rule(
        "second_also_end",
        |list| [list, &list[1..2]].concat(),
        [
            "The whole list, then the second",
            "Repeat the second at the end",
            "All, with the second also at the end",
            "Keep the second in its place and put it at the end",
        ],
        "The whole list, with the second also at the end",
    ),
    rule(
        "second_also_front",
        |list| [&list[1..2], list].concat(),
        [
            "The second, then the whole list",
            "Repeat the second in front",
            "All, with the second also in front",
            "Keep the second in its place and put it in front",
        ],
        "The whole list, with the second also in front",
    ),
    rule(
        "first_last_first",
        |list| vec![list[0], last(list), list[0]],
        [
            "The first, then the last, then the first",
            "The first on both sides of the last",
            "The last between the first and the first",
            "Both ends, the first before and behind the last",
        ],
        "The last with the first on both sides",
    ),
    rule(
        "last_first_last",
        |list| vec![last(list), list[0], last(list)],
        [
            "The last, then the first, then the last",
            "The last on both sides of the first",
            "The first between the last and the last",
            "Both ends, the last before and behind the first",
        ],
        "The first with the last on both sides",
    ),
    rule(
        "only_first_twice",
        |list| vec![list[0]; 2],
        [
            "Only the first, twice",
            "The first, then the first",
            "The first twice, without the others",
            "Drop all but the first, then repeat it",
        ],
        "Nothing but the first, twice",
    ),
    rule(
        "only_last_twice",
        |list| vec![last(list); 2],
        [
            "Only the last, twice",
            "The last, then the last",
            "The last twice, without the others",
            "Drop all but the last, then repeat it",
        ],
        "Nothing but the last, twice",
    ),
    rule(
        "only_second_twice",
        |list| vec![list[1]; 2],
        [
            "Only the second, twice",
            "The second, then the second",
            "The second twice, without the others",
            "Drop all but the second, then repeat it",
        ],
        "Nothing but the second, twice",
    ),
    rule(
        "first_letters",
        |list| letters(list, first_letter),
        [
            "The first letters",
            "The first letter of each",
            "Of each only the first letter",
            "Drop all but the first letter of each",
        ],
        "Nothing but the first letters",
    ),
    rule(
        "last_letters",
        |list| letters(list, last_letter),
        [
            "The last letters",
            "The last letter of each",
            "Of each only the last letter",
            "Drop all but the last letter of each",
        ],
        "Nothing but the last letters",
    ),
    rule(
        "first_letters_reverse",
        |list| backwards(&letters(list, first_letter)),
        [
            "The first letters, backwards",
            "The first letter of each, in reverse order",
            "Reverse, then the first letters",
            "The first letters, from the last to the first",
        ],
        "Reverse the first letters",
    ),
    rule(
        "last_letters_reverse",
        |list| backwards(&letters(list, last_letter)),
        [
            "The last letters, backwards",
            "The last letter of each, in reverse order",
            "Reverse, then the last letters",
            "The last letters, from the last to the first",
        ],
        "Reverse the last letters",
    ),
    rule(
        "first_letter_of_first",
        |list| vec![first_letter(list[0])],
        [
            "The first letter of the first",
            "The first of the first letters",
            "Only the first letter of the first",
            "Of the first only the first letter",
        ],
        "Nothing but the first letter of the first",
    ),
    rule(
        "last_letter_of_first",
        |list| vec![last_letter(list[0])],
        [
            "The last letter of the first",
            "The first of the last letters",
            "Only the last letter of the first",
            "Of the first only the last letter",
        ],
        "Nothing but the last letter of the first",
    ),
    rule(
        "first_letter_of_last",
        |list| vec![first_letter(last(list))],
        [
            "The first letter of the last",
            "The last of the first letters",
            "Only the first letter of the last",
            "Of the last only the first letter",
        ],
        "Nothing but the first letter of the last",
    ),
    rule(
        "last_letter_of_last",
        |list| vec![last_letter(last(list))],
        [
            "The last letter of the last",
            "The last of the last letters",
            "Only the last letter of the last",
            "Of the last only the last letter",
        ],
        "Nothing but the last letter of the last",
    ),
    rule(
        "first_letters_drop_first",
        |list| letters(&list[1..], first_letter),
        [
            "All but the first of the first letters",
            "Drop the first, then the first letters",
            "The first letters, without that of the first",
            "The first letter of each but the first",
        ],
        "Leave out the first, then the first letters",
    ),
    rule(
        "first_letters_drop_last",
        |list| letters(but_last(list), first_letter),
        [
            "All but the last of the first letters",
            "Drop the last, then the first letters",
            "The first letters, without that of the last",
            "The first letter of each but the last",
        ],
        "Leave out the last, then the first letters",
    ),
    rule(
        "last_letters_drop_first",
        |list| letters(&list[1..], last_letter),
        [
            "All but the first of the last letters",
            "Drop the first, then the last letters",
            "The last letters, without that of the first",
            "The last letter of each but the first",
        ],
        "Leave out the first, then the last letters",
    ),
    rule(
        "last_letters_drop_last",
        |list| letters(but_last(list), last_letter),
        [
            "All but the last of the last letters",
            "Drop the last, then the last letters",
            "The last letters, without that of the last",
            "The last letter of each but the last",
        ],
        "Leave out the last, then the last letters",
    ),
    rule(
        "first_letters_of_ends",
        |list| vec![first_letter(list[0]), first_letter(last(list))],
        [
            "The first letters of both ends",
            "The first letter of the first, then that of the last",
            "The first letters of the first and the last",
            "Both ends, then of each the first letter",
        ],
        "Of both ends only the first letters",
    ),
    rule(
        "last_letters_of_ends",
        |list| vec![last_letter(list[0]), last_letter(last(list))],
        [
            "The last letters of both ends",
            "The last letter of the first, then that of the last",
            "The last letters of the first and the last",
            "Both ends, then of each the last letter",
        ],
        "Of both ends only the last letters",
    ),
];
