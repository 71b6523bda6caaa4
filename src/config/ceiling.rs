//! `[pipelines.x.ceiling]`: how much money may be spent at all.

use super::Ceiling;
use super::raw::Section;
use super::values::amount;

pub(super) fn ceiling(mut section: Section) -> Ceiling {
    let keys = ["usd_per_day", "usd_per_month", "tenant_usd_per_day", "tenant_usd_per_month"];
    let is_empty = !keys.iter().any(|key| section.has(key));
    let ceiling = Ceiling {
        usd_per_day: section.optional("usd_per_day", amount),
        usd_per_month: section.optional("usd_per_month", amount),
        tenant_usd_per_day: section.optional("tenant_usd_per_day", amount),
        tenant_usd_per_month: section.optional("tenant_usd_per_month", amount),
    };
    if is_empty {
        section.misfit(section.place(), "says nothing; write for example usd_per_day = 5");
    }
    section.finish();
    ceiling
}
