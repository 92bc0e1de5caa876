//! Chats: conversations in turns, of which the model reads only the new tokens.

use super::{Ending, Message, ModelText, Reply, ReplyOptions, Role, Said, Seen, Sight, without_pictures};
use crate::adapter::Conversation;
use crate::model::Sampler;
use crate::{Error, Result};
use std::sync::Arc;

/// The cost of reading a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Tokens that the model read.
    pub tokens: usize,
    /// The whole conversation was read again, because the template renders past turns differently or the last answer
    /// continued beyond a stop text.
    pub again: bool,
}

/// A conversation in turns. Routing decisions of the first turn are kept if the adapter's `decode_route` says so.
pub struct Chat {
    text: ModelText,
    conversation: Conversation,
    sight: Option<Arc<Sight>>,
    messages: Vec<Message>,
    /// The pictures of all messages, in order.
    pictures: Vec<Seen>,
    /// The text of the tokens that the model has read, and of the unread one; none if the conversation cannot be
    /// continued from there.
    read: Option<String>,
    /// The last drawn token, if the model has not read it.
    unread: Option<u32>,
}

impl Chat {
    /// Starts a chat.
    pub fn new(text: &ModelText, conversation: Conversation, system: Option<&str>) -> Self {
        let messages = system.map(|text| Message::new(Role::System, text)).into_iter().collect();
        Chat {
            text: text.clone(),
            conversation,
            sight: None,
            messages,
            pictures: Vec::new(),
            read: None,
            unread: None,
        }
    }

    /// From now on messages may have pictures, which this vision part of the model reads.
    pub fn show_with(&mut self, sight: Arc<Sight>) {
        self.sight = Some(sight);
    }

    /// The turns so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Reads a message of the user; [`reply`](Chat::reply) answers it.
    ///
    /// # Errors
    /// The model has no template, the template refuses the conversation, or the context is full
    /// ([`Error::Context`]). The conversation is then unchanged.
    pub fn ask(&mut self, user: &str) -> Result<Turn> {
        self.ask_about(&mut Vec::new(), user)
    }

    /// The same with pictures before the text, which are taken over where it succeeds.
    ///
    /// # Errors
    /// As [`ask`](Chat::ask); or the chat has no vision part.
    pub fn ask_about(&mut self, pictures: &mut Vec<Seen>, user: &str) -> Result<Turn> {
        let before = self.pictures.len();
        self.messages.push(Message::with_pictures(Role::User, pictures.len(), user));
        self.pictures.append(pictures);
        let turn = self.read();
        if turn.is_err() {
            self.messages.pop();
            pictures.extend(self.pictures.drain(before..));
        }
        turn
    }

    fn read(&mut self) -> Result<Turn> {
        let all = self.text.prompt(&self.messages)?;
        let all = match &self.sight {
            Some(sight) => sight.expand(&all, &self.pictures)?,
            None if self.pictures.is_empty() => without_pictures(all, &self.text.tokenizer)?,
            None => {
                return Err(Error::refused("picture", "is given to a chat of a model without a vision part"));
            }
        };
        let read = self.read.as_ref().filter(|read| all.starts_with(read.as_str())).map(String::len);
        let again = read.is_none() && !self.conversation.is_empty();
        let mut ids: Vec<u32> = self.unread.filter(|_| read.is_some()).into_iter().collect();
        ids.extend(self.text.tokenizer.encode_from(&all, read.unwrap_or(0))?);
        if again {
            let most = self.conversation.len() + self.conversation.room();
            if ids.len() > most {
                return Err(Error::Context { used: 0, more: ids.len(), most });
            }
            self.conversation.restart();
        }
        let seen = match &self.sight {
            Some(sight) => sight.features(&ids, &self.pictures)?,
            None => None,
        };
        match seen {
            Some(pictures) => self.conversation.push_with_pictures(&ids, &pictures)?,
            None => self.conversation.push(&ids)?,
        }
        self.read = Some(all);
        self.unread = None;
        Ok(Turn { tokens: ids.len(), again })
    }

    /// The answer to the last message; pass its result to [`keep`](Chat::keep).
    pub fn reply<'a>(&'a mut self, sampler: &'a mut Sampler, options: &'a ReplyOptions) -> Reply<'a> {
        Reply::new(&mut self.conversation, sampler, &self.text.tokenizer, options)
    }

    /// Appends an answer to the conversation.
    pub fn keep(&mut self, said: &Said) {
        self.messages.push(Message::new(Role::Assistant, said.text.clone()));
        self.read =
            self.read.take().filter(|_| said.ending != Ending::StopText).map(|read| read + &said.text);
        self.unread = said.unread;
    }
}
