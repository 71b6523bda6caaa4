//! Prices: those that the configuration says, and those that it once said and the table keeps.

use std::collections::HashMap;

use rust_decimal::Decimal;
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::config::{Config, Meter, Model};
use crate::db;
use crate::db::prices::Dated;

/// Dated prices by provider, model and meter.
pub(super) type Prices = HashMap<(String, String, String), Vec<Dated>>;

/// A price that the configuration says.
struct Said<'c> {
    model: &'c Model,
    meter: Meter,
    usd: Decimal,
    from: OffsetDateTime,
}

/// What the configuration says; what runs here costs nothing.
fn said(config: &Config) -> impl Iterator<Item = Said<'_>> {
    let written = config.prices.iter().filter_map(|price| {
        let model = config.models.get(&price.model)?;
        Some(Said { model, meter: price.meter, usd: price.usd, from: price.from })
    });
    let runs_here = |model: &&Model| config.providers.get(&model.provider).is_some_and(|one| one.kind.runs_here());
    let nothing = |model| {
        let (usd, from) = (Decimal::ZERO, OffsetDateTime::UNIX_EPOCH);
        Said { model, meter: Meter::Tokens, usd, from }
    };
    written.chain(config.models.values().filter(runs_here).map(nothing))
}

/// Writes the configured prices and returns all there are.
pub(super) async fn set_prices(config: &Config, pool: &PgPool) -> sqlx::Result<Prices> {
    for Said { model, meter, usd, from } in said(config) {
        db::prices::set(pool, &model.provider, &model.name, meter.word(), usd, from).await?;
    }
    let mut prices = Prices::new();
    for price in db::prices::all(pool).await? {
        prices.entry((price.provider.clone(), price.model.clone(), price.meter.clone())).or_default().push(price);
    }
    Ok(prices)
}

/// The prices that a worker of this configuration would go by, for whoever writes none.
#[derive(Debug)]
pub struct KnownPrices(Vec<Known>);

#[derive(Debug)]
struct Known {
    provider: String,
    model: String,
    meter: String,
    from: OffsetDateTime,
    price: UnitPrice,
}

/// The price of one token, or of one minute of what is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitPrice {
    pub usd: Decimal,
    /// The configuration says it; else only the table does.
    pub is_configured: bool,
}

impl KnownPrices {
    /// Those of the configuration alone, where there is no table.
    pub fn of_file(config: &Config) -> Self {
        let mut known = Self(Vec::new());
        for said in said(config) {
            known.add(&said, said.usd);
        }
        known
    }

    /// Those of the configuration together with those of the table. What was booked under a price keeps it, whatever the
    /// configuration says of the same date now.
    ///
    /// # Errors
    /// The database is away or refuses.
    pub async fn read(config: &Config, pool: &PgPool) -> sqlx::Result<Self> {
        let kept = db::prices::all(pool).await?;
        let mut known = Self(Vec::new());
        for said in said(config) {
            let same = |kept: &&Dated| {
                (kept.provider.as_str(), kept.model.as_str(), kept.meter.as_str(), kept.from)
                    == (said.model.provider.as_str(), said.model.name.as_str(), said.meter.word(), said.from)
            };
            let usd = match kept.iter().find(same) {
                Some(kept) if kept.usd != said.usd && db::prices::is_booked(pool, kept.id).await? => kept.usd,
                Some(_) | None => said.usd,
            };
            known.add(&said, usd);
        }
        for Dated { provider, model, meter, usd, from, .. } in kept {
            let price = UnitPrice { usd, is_configured: false };
            let only = Known { provider, model, meter, from, price };
            if !known
                .0
                .iter()
                .any(|said| said.is_of(&only.provider, &only.model, &only.meter) && said.from == only.from)
            {
                known.0.push(only);
            }
        }
        Ok(known)
    }

    fn add(&mut self, said: &Said, usd: Decimal) {
        let (provider, model, meter) =
            (said.model.provider.clone(), said.model.name.clone(), said.meter.word().to_owned());
        let price = UnitPrice { usd, is_configured: true };
        self.0.push(Known { provider, model, meter, from: said.from, price });
    }

    /// The price of what a model counts that holds at `now`; none: nobody knows.
    pub fn of(&self, model: &Model, now: OffsetDateTime) -> Option<UnitPrice> {
        let meter = if model.speech.is_some() { Meter::AudioMinutes } else { Meter::Tokens };
        let holds = |known: &&Known| known.is_of(&model.provider, &model.name, meter.word()) && known.from <= now;
        self.0.iter().filter(holds).max_by_key(|known| known.from).map(|known| known.price)
    }
}

impl Known {
    fn is_of(&self, provider: &str, model: &str, meter: &str) -> bool {
        self.provider == provider && self.model == model && self.meter == meter
    }
}
