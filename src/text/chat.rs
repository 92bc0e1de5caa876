//! A conversation in turns, of which the model reads only what is new.

use super::{Ending, Message, ModelText, Reply, ReplyOptions, Role, Said};
use crate::adapter::Conversation;
use crate::model::Sampler;
use crate::{Error, Result};

/// What it took to read a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Tokens that the model read.
    pub tokens: usize,
    /// The whole conversation was read again: the template writes it in another way than it was said, or the last
    /// answer went on behind a stop text.
    pub again: bool,
}

/// A conversation in turns. What routers chose for its first turn stays, as the adapter's `decode_route` says.
pub struct Chat {
    text: ModelText,
    conversation: Conversation,
    messages: Vec<Message>,
    /// The text of the tokens that are read, and of the one that was drawn and is not; none where the conversation
    /// cannot go on from there.
    read: Option<String>,
    unread: Option<u32>,
}

impl Chat {
    /// A conversation at its start.
    pub fn new(text: &ModelText, conversation: Conversation, system: Option<&str>) -> Self {
        let messages = system.map(|s| Message::new(Role::System, s)).into_iter().collect();
        Chat { text: text.clone(), conversation, messages, read: None, unread: None }
    }

    /// The turns so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Reads what the user says; [`reply`](Chat::reply) answers it.
    ///
    /// # Errors
    /// The model has no template, the template refuses the conversation, or the context is full
    /// ([`Error::Context`]). The conversation is as before then.
    pub fn ask(&mut self, user: &str) -> Result<Turn> {
        self.messages.push(Message::new(Role::User, user));
        let turn = self.read();
        if turn.is_err() {
            self.messages.pop();
        }
        turn
    }

    fn read(&mut self) -> Result<Turn> {
        let all = self.text.prompt(&self.messages)?;
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
        self.conversation.push(&ids)?;
        (self.read, self.unread) = (Some(all), None);
        Ok(Turn { tokens: ids.len(), again })
    }

    /// The answer to the last question; hand what was said to [`keep`](Chat::keep).
    pub fn reply<'a>(&'a mut self, sampler: &'a mut Sampler, options: &'a ReplyOptions) -> Reply<'a> {
        Reply::new(&mut self.conversation, sampler, &self.text.tokenizer, options)
    }

    /// Puts an answer into the conversation.
    pub fn keep(&mut self, said: &Said) {
        self.messages.push(Message::new(Role::Assistant, said.text.clone()));
        self.read = self.read.take().filter(|_| said.ending != Ending::StopText).map(|r| r + &said.text);
        self.unread = said.unread;
    }
}
