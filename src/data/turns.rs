//! The byte ranges of the assistant's turns in a rendered conversation.

use crate::text::{ChatTemplate, ContentPlace, Message, Piece, Role, Tokenizer};
use std::ops::Range;

/// The largest number of bytes that are rendered to locate turns one by one.
const MOST_RENDERED: usize = 32 << 20;
/// The cost of a message in rendered bytes, besides its content.
const BYTES_OF_MESSAGE: usize = 64;
/// In conversations with fewer turns, every turn is located by rendering.
const FEW_TURNS: usize = 3;

/// The largest number of remembered kinds of turns.
const MOST_KINDS: usize = 32;

type Explained<T> = std::result::Result<T, String>;

/// Locates turns that the template does not mark itself.
pub(super) struct Turns<'a> {
    pub tokenizer: &'a Tokenizer,
    pub template: &'a ChatTemplate,
    pub messages: &'a [Message],
    pub text: &'a str,
    pub pieces: &'a [Piece],
    pub ends: &'a [u32],
}

/// A kind of turn: the text around the content of a message.
struct Kind<'a> {
    /// The text from the end of the previous content to the start of the turn.
    lead: &'a str,
    /// The text from the end of the content to the next message.
    after: &'a str,
    /// The number of bytes of `after` that belong to the turn.
    behind: usize,
}

/// The surroundings of a message's content: the ends of the previous content and of its own, and the text after it.
struct Around<'a> {
    before: usize,
    end: usize,
    after: &'a str,
}

impl<'a> Turns<'a> {
    /// The index and byte range of every message of the assistant.
    ///
    /// Turns with the same text around their content are of one kind. One turn of each kind is rendered, so that a long
    /// conversation takes a few renderings.
    pub(super) fn find(&self) -> Explained<Vec<(usize, Range<usize>)>> {
        let turns = || (0..self.messages.len()).filter(|&index| self.messages[index].role == Role::Assistant);
        let tokens = self.tokenizer.special_tokens();
        let many = turns().count() >= FEW_TURNS;
        let places = many.then(|| self.template.content_places(self.messages, tokens, self.text)).flatten();
        let mut kinds: Vec<Kind> = Vec::new();
        let mut cost = 0;
        let mut found = Vec::new();
        for index in turns() {
            let around = places.as_ref().and_then(|places| self.around(index, places));
            if let Some(around) = &around
                && let Some(kind) = kinds.iter().find(|kind| self.is_of(kind, around))
            {
                found.push((index, around.before + kind.lead.len()..around.end + kind.behind));
                continue;
            }
            cost += self.messages[..=index]
                .iter()
                .map(|message| message.content.len() + BYTES_OF_MESSAGE)
                .sum::<usize>();
            if cost > MOST_RENDERED {
                return Err(format!(
                    "messages[{index}]: the conversation is too long for a template that writes its turns in many ways; \
                     split it"
                ));
            }
            let range = self.rendered(index)?;
            if let Some(Around { before, end, after }) = around
                && (before..=end).contains(&range.start)
                && range.end >= end
                && kinds.len() < MOST_KINDS
            {
                kinds.push(Kind { lead: &self.text[before..range.start], after, behind: range.end - end });
            }
            found.push((index, range));
        }
        Ok(found)
    }

    fn is_of(&self, kind: &Kind, around: &Around) -> bool {
        kind.after == around.after && self.text[around.before..around.end].starts_with(kind.lead)
    }

    fn around(&self, index: usize, places: &[ContentPlace]) -> Option<Around<'a>> {
        let end = places[index].end;
        let next = places.get(index + 1).map_or(Some(self.text.len()), |next| next.start)?;
        let before = if index > 0 { places[index - 1].end } else { 0 };
        Some(Around { before, end, after: &self.text[end..next] })
    }

    fn render(&self, messages: &[Message], prompt: bool) -> Explained<String> {
        self.tokenizer.render(self.template, messages, prompt).map_err(|error| error.to_string())
    }

    /// Renders the range from the end of the prompt for a turn to the end of the conversation up to it.
    fn rendered(&self, index: usize) -> Explained<Range<usize>> {
        let start = self.start(index)?;
        let with = self.render(&self.messages[..=index], false)?;
        if with.len() >= start && self.text.starts_with(&with) {
            return Ok(start..with.len());
        }
        // Some templates render a past turn differently, for example without its reasoning: it ends at its end token.
        let first = self.pieces.partition_point(|piece| piece.source.start < start);
        let end = self.pieces[first..].iter().find(|piece| self.ends.contains(&piece.id));
        end.map(|piece| start..piece.source.end).ok_or_else(|| {
            format!("messages[{index}]: the template changes this turn when others follow, and puts no end token there")
        })
    }

    fn start(&self, index: usize) -> Explained<usize> {
        let prompt = self.render(&self.messages[..index], true)?;
        if self.text.starts_with(&prompt) {
            return Ok(prompt.len());
        }
        // Some prompts open a block that finished turns lack: the turn starts where the two differ for any content.
        let before = self.render(&self.messages[..index], false)?;
        let mut other = self.messages[..index].to_vec();
        other.push(Message::new(Role::Assistant, ChatTemplate::MARK));
        let shared = shared(&prompt, &self.render(&other, false)?);
        let at = shared_bytes(self.text, &prompt);
        if prompt.starts_with(&before) && shared >= before.len() && at >= shared {
            return Ok(shared);
        }
        Err(format!(
            "messages[{index}]: the template does not put the prompt of this turn at the start of the whole conversation \
             (they differ from byte {at} on), so that its tokens cannot be told apart"
        ))
    }
}

/// The number of leading bytes that two texts share.
fn shared_bytes(one: &str, other: &str) -> usize {
    one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count()
}

/// The number of leading bytes that two texts share in whole characters.
fn shared(one: &str, other: &str) -> usize {
    one.chars().zip(other.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

/// The tokens that share a byte with a range of the text.
pub(super) fn overlapping(pieces: &[Piece], part: &Range<usize>) -> Range<usize> {
    let inside = |piece: &Piece| {
        piece.source.end > part.start && piece.source.start < part.end && !piece.source.is_empty()
    };
    // Tokens are in the order of the text.
    let from = pieces.partition_point(|piece| piece.source.end <= part.start);
    let to = pieces.partition_point(|piece| piece.source.start < part.end).max(from);
    let first = pieces[from..to].iter().position(inside).map_or(to, |at| from + at);
    let stop = pieces[first..to].iter().rposition(inside).map_or(first, |at| first + at + 1);
    first..stop
}
