//! The places of pictures in a sample, and which picture stands in each.

use super::PictureSource;
use super::given::Given;
use super::message::Turn;
use crate::text::{Message, PICTURE, Role};
use std::collections::VecDeque;
use std::path::Path;

/// The pictures of a sample, as its places are met.
pub(super) struct Pictures {
    /// Those of its list that no place has taken.
    listed: VecDeque<Given>,
    list: usize,
    taken: Vec<Given>,
    /// Places that take one of the list.
    places: usize,
}

impl Pictures {
    pub fn new(listed: Vec<Given>) -> Self {
        Pictures { list: listed.len(), listed: listed.into(), taken: Vec::new(), places: 0 }
    }

    /// Meets a place: with a picture of its own, or for the next one of the list.
    fn meet(&mut self, own: Option<Given>) {
        self.places += usize::from(own.is_none());
        self.taken.extend(own.or_else(|| self.listed.pop_front()));
    }

    /// Meets the marks of a text; their number. Without a list of pictures only a question can have any: elsewhere a
    /// mark is text.
    pub fn text(&mut self, text: &str, asks: bool) -> usize {
        let marks = if asks || self.list > 0 { text.matches(PICTURE).count() } else { 0 };
        (0..marks).for_each(|_| self.meet(None));
        marks
    }

    pub fn message(&mut self, turn: Turn) -> Message {
        let pictures = match turn.content.parts {
            Some(parts) => {
                let count = parts.len();
                parts.into_iter().for_each(|own| self.meet(own));
                count
            }
            None => self.text(&turn.content.text, turn.role != Role::Assistant),
        };
        Message { pictures, ..Message::new(turn.role, turn.content.text) }
    }

    /// Where its pictures are, if there is a place for each.
    pub fn sources(self, folder: &Path) -> Result<Vec<PictureSource>, String> {
        let Pictures { list, taken, places, .. } = self;
        if places != list {
            let pictures = |n: usize| if n == 1 { "1 picture".into() } else { format!("{n} pictures") };
            let places = if places == 1 { "1 place".into() } else { format!("{places} places") };
            let cure = format!("each '{PICTURE}' in a message, or part of type 'image', is the place of one");
            return Err(format!("has {places} for {} in 'images': {cure}", pictures(list)));
        }
        if !taken.is_empty() && !cfg!(feature = "images") {
            return Err("has pictures, which this program was built without (feature 'images')".into());
        }
        Ok(taken.into_iter().map(|given| given.source(folder)).collect())
    }
}
