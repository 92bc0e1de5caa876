//! Where the assistant's turns stand in a rendered conversation.

use crate::text::{ChatTemplate, ContentPlace, Message, Piece, Role, Tokenizer};
use std::ops::Range;

/// What looking for turns one by one may cost: bytes that are rendered, and for every message as many as it takes
/// the time of.
const MOST_RENDERED: usize = 32 << 20;
const BYTES_OF_MESSAGE: usize = 64;
/// Conversations with fewer turns are rendered once for each.
const FEW_TURNS: usize = 3;

/// Kinds of turns that are kept in mind.
const MOST_KINDS: usize = 32;

type Said<T> = std::result::Result<T, String>;

/// The places of turns that the template does not mark itself.
pub(super) struct Turns<'a> {
    pub tokenizer: &'a Tokenizer,
    pub template: &'a ChatTemplate,
    pub messages: &'a [Message],
    pub text: &'a str,
    pub pieces: &'a [Piece],
    pub ends: &'a [u32],
}

/// A kind of turn, by the text around what is said in it.
struct Kind<'a> {
    /// From the end of what was said before to the start of the turn.
    lead: &'a str,
    /// From the end of what is said in it to the next message.
    after: &'a str,
    /// Bytes of that which belong to the turn.
    behind: usize,
}

/// What stands around the content of a message: where the one before ends, and where its own ends.
struct Around<'a> {
    before: usize,
    end: usize,
    after: &'a str,
}

impl<'a> Turns<'a> {
    /// The bytes of every turn of the assistant, by the message's number.
    ///
    /// Turns with the same text around what is said in them are alike: one of each kind is rendered by itself, so that
    /// a long conversation takes a few renderings.
    pub(super) fn find(&self) -> Said<Vec<(usize, Range<usize>)>> {
        let turns =
            || self.messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant).map(|(i, _)| i);
        let tokens = self.tokenizer.special_tokens();
        let many = turns().count() >= FEW_TURNS;
        let places = many.then(|| self.template.content_places(self.messages, tokens, self.text)).flatten();
        let mut kinds: Vec<Kind> = Vec::new();
        let mut cost = 0;
        let mut found = Vec::new();
        for i in turns() {
            let around = places.as_ref().and_then(|places| self.around(i, places));
            if let Some(around) = &around
                && let Some(kind) = kinds.iter().find(|kind| self.is_of(kind, around))
            {
                found.push((i, around.before + kind.lead.len()..around.end + kind.behind));
                continue;
            }
            cost += self.messages[..=i].iter().map(|m| m.content.len() + BYTES_OF_MESSAGE).sum::<usize>();
            if cost > MOST_RENDERED {
                return Err(format!(
                    "messages[{i}]: the conversation is too long for a template that writes its turns in many ways; \
                     split it"
                ));
            }
            let range = self.rendered(i)?;
            if let Some(Around { before, end, after }) = around
                && (before..=end).contains(&range.start)
                && range.end >= end
                && kinds.len() < MOST_KINDS
            {
                kinds.push(Kind { lead: &self.text[before..range.start], after, behind: range.end - end });
            }
            found.push((i, range));
        }
        Ok(found)
    }

    fn is_of(&self, kind: &Kind, around: &Around) -> bool {
        kind.after == around.after && self.text[around.before..around.end].starts_with(kind.lead)
    }

    fn around(&self, i: usize, places: &[ContentPlace]) -> Option<Around<'a>> {
        let end = places[i].end;
        let next = places.get(i + 1).map_or(Some(self.text.len()), |next| next.start)?;
        let before = if i > 0 { places[i - 1].end } else { 0 };
        Some(Around { before, end, after: &self.text[end..next] })
    }

    fn render(&self, messages: &[Message], prompt: bool) -> Said<String> {
        self.tokenizer.render(self.template, messages, prompt).map_err(|e| e.to_string())
    }

    /// From the end of the prompt for a turn to the end of the conversation up to it.
    fn rendered(&self, i: usize) -> Said<Range<usize>> {
        let start = self.start(i)?;
        let with = self.render(&self.messages[..=i], false)?;
        if with.len() >= start && self.text.starts_with(&with) {
            return Ok(start..with.len());
        }
        // Templates that write a past turn in another way, for example without its reasoning: up to its end token.
        let first = self.pieces.partition_point(|p| p.source.start < start);
        let end = self.pieces[first..].iter().find(|p| self.ends.contains(&p.id));
        end.map(|p| start..p.source.end).ok_or_else(|| {
            format!("messages[{i}]: the template changes this turn when others follow, and puts no end token there")
        })
    }

    fn start(&self, i: usize) -> Said<usize> {
        let prompt = self.render(&self.messages[..i], true)?;
        if self.text.starts_with(&prompt) {
            return Ok(prompt.len());
        }
        // Templates whose prompt opens what a finished turn does not have: up to where the two part, whatever is said.
        let before = self.render(&self.messages[..i], false)?;
        let mut other = self.messages[..i].to_vec();
        other.push(Message::new(Role::Assistant, ChatTemplate::MARK));
        let shared = shared(&prompt, &self.render(&other, false)?);
        let at = shared_bytes(self.text, &prompt);
        if prompt.starts_with(&before) && shared >= before.len() && at >= shared {
            return Ok(shared);
        }
        Err(format!(
            "messages[{i}]: the template does not put the prompt of this turn at the start of the whole conversation \
             (they differ from byte {at} on), so that its tokens cannot be told apart"
        ))
    }
}

fn shared_bytes(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}

/// Bytes of whole characters at the start of both.
fn shared(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
}
