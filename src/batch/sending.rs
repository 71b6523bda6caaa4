//! What is left of one request while it is taken apart: texts still to be sent, and texts of which nobody knows yet whether it is
//! they or the provider.

use std::sync::Arc;

use super::batcher::EmbedFailure;
use super::item::{Item, fail};

pub(super) struct Sending {
    /// Texts to send, the next last, each part with the tries it had.
    pub parts: Vec<(Vec<Item>, u32)>,
    /// Texts that were refused alone, each with the rest of its job and the provider's words, while the lane has accepted none. The
    /// first that it accepts says that it was they.
    doubted: Vec<(Vec<Item>, String)>,
    /// It was one text from the beginning.
    pub came_alone: bool,
}

impl Sending {
    pub fn new(batch: Vec<Item>) -> Self {
        Self { came_alone: batch.len() == 1, parts: vec![(batch, 0)], doubted: Vec::new() }
    }

    pub fn halve(&mut self, mut batch: Vec<Item>) {
        let half = batch.split_off(batch.len() / 2);
        self.parts.push((half, 0));
        self.parts.push((batch, 0));
    }

    /// Sets a text aside that was refused alone, with the rest of its job, which would fail with it.
    pub fn doubt(&mut self, mut batch: Vec<Item>, words: String) {
        let Some(call) = batch.first().map(|item| Arc::clone(&item.call)) else { return };
        for (part, _) in &mut self.parts {
            batch.extend(part.extract_if(.., |item| Arc::ptr_eq(&item.call, &call)));
        }
        self.doubted.push((batch, words));
    }

    /// The provider takes others: these it refuses for what they are.
    pub fn refuse(&mut self) {
        for (texts, words) in self.doubted.drain(..) {
            fail(texts, &EmbedFailure::Refused(words));
        }
    }

    /// The provider takes none.
    pub fn acquit(&mut self, failure: &EmbedFailure) {
        for (texts, _) in self.doubted.drain(..) {
            fail(texts, failure);
        }
    }
}
