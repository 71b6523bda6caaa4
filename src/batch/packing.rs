//! What waits in a lane, and the requests that are made of it: full ones where that is worth waiting for, of all tenants in turn.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::approach::Approachers;
use super::item::Item;
use super::portions::widen;
use super::turns::Turns;

/// A job's texts stay together up to this part of a request: what is not in one with the rest of its job is parked until that has come.
const TOGETHER: u64 = 4;

pub(super) struct Packing {
    items: mpsc::UnboundedReceiver<Item>,
    approachers: Approachers,
    turns: Turns<Item>,
    /// Of all that wait.
    tokens: usize,
}

/// What a request may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub inputs: usize,
    pub tokens: usize,
}

impl Room {
    /// How much of it a text takes, of its inputs or of its tokens, and all there is.
    fn part(self, tokens: usize) -> u64 {
        widen(self.inputs).saturating_mul(widen(tokens)).max(widen(self.tokens))
    }

    fn all(self) -> u64 {
        widen(self.inputs).saturating_mul(widen(self.tokens))
    }
}

impl Packing {
    pub fn new(items: mpsc::UnboundedReceiver<Item>, approachers: Approachers) -> Self {
        Self { items, approachers, turns: Turns::default(), tokens: 0 }
    }

    /// Waits until a text is there; none comes any more when the last sender is gone.
    pub async fn has_any(&mut self, room: Room) -> bool {
        if self.turns.is_empty() {
            let Some(item) = self.items.recv().await else { return false };
            self.line_up(item, room);
        }
        true
    }

    /// Waits until a request is full, nobody comes any more, or the linger is over.
    pub async fn gather(&mut self, room: Room, linger: Duration) {
        let mut over = pin!(tokio::time::sleep(linger));
        self.look(room);
        while self.turns.len() < room.inputs && self.tokens < room.tokens {
            // In this order: whoever is gone has sent what it had.
            let item = tokio::select! {
                biased;
                item = self.items.recv() => item,
                () = self.approachers.gone() => self.items.try_recv().ok(),
                () = &mut over => None,
            };
            let Some(item) = item else { return };
            self.line_up(item, room);
        }
        self.look(room);
    }

    /// Lets all that have come take their turns.
    pub fn look(&mut self, room: Room) {
        while let Ok(item) = self.items.try_recv() {
            self.line_up(item, room);
        }
    }

    fn line_up(&mut self, item: Item, room: Room) {
        self.tokens += item.tokens;
        let tenant = Arc::clone(&item.call);
        self.turns.push(&tenant.job.tenant, room.part(item.tokens), item);
    }

    /// How many tenants have texts waiting.
    pub fn tenants(&self) -> usize {
        self.turns.tenants()
    }

    /// The texts of the next request, where these are to be kept apart of one tenant: whoever's turn it is. What alone is too large
    /// goes alone.
    pub fn request(&mut self, room: Room, across_tenants: bool) -> Vec<Item> {
        let (mut tokens, mut first) = (0_usize, None);
        let fits = |item: &Item| {
            let call = first.get_or_insert_with(|| Arc::clone(&item.call));
            let is_first = tokens == 0;
            let fits = (across_tenants || call.job.tenant == item.call.job.tenant)
                && (is_first || tokens + item.tokens <= room.tokens);
            if fits {
                tokens += item.tokens.max(1);
            }
            fits
        };
        let together = |last: &Item, next: &Item| !across_tenants || Arc::ptr_eq(&last.call, &next.call);
        let longest = if across_tenants { room.all() / TOGETHER } else { u64::MAX };
        let batch = self.turns.take(room.inputs, longest, fits, together);
        self.tokens -= batch.iter().map(|item| item.tokens).sum::<usize>();
        batch
    }
}
