//! The configuration's own SQL fragments, read by Postgres before the first claim.

use sqlx::PgConnection;

use crate::config::{Place, TenantRule};

use super::check::Misfit;
use super::plan::Plan;
use super::quote;

/// Lets Postgres read the configuration's own SQL, so that a typo is named with its line before the first claim.
pub(super) async fn try_out(connection: &mut PgConnection, plan: &Plan, misfits: &mut Vec<Misfit>) -> sqlx::Result<()> {
    let source = &plan.pipeline.source;
    let mut fragments: Vec<(&Place, String)> = Vec::new();
    for (name, sql) in &source.values {
        fragments
            .push((&sql.place, format!("select ({}) as {} from {} as source", sql.text, quote(name), plan.source)));
    }
    // From here on beside the values, whose names may be those of columns.
    for sql in [&source.when, &source.needs].into_iter().flatten() {
        fragments.push((&sql.place, format!("select ({})::boolean from {}", sql.text, plan.relation(&plan.source))));
    }
    let rules = [plan.pipeline.skip.when.as_ref(), plan.pipeline.file.as_ref().and_then(|file| file.when.as_ref())];
    for sql in rules.into_iter().flatten() {
        fragments.push((&sql.place, format!("select ({})::boolean from {}", sql.text, plan.relation(&plan.source))));
    }
    if let Some(TenantRule::Expression(sql)) = &source.tenant {
        fragments.push((&sql.place, format!("select ({})::text from {}", sql.text, plan.relation(&plan.source))));
    }
    let times = [(&source.changed_at, " > now()"), (&source.order, "::timestamptz")];
    let times = times.into_iter().filter_map(|(column, compared)| {
        let name = column.as_ref()?;
        let statement = format!("select source.{}{compared} from {} as source", quote(name), plan.source);
        Some((plan.pipeline.place_of(name), statement, Some(name)))
    });
    let fragments = fragments.into_iter().map(|(place, statement)| (place, statement, None));
    for (place, statement, time) in fragments.chain(times) {
        // What fails must not take a transaction around it along.
        let mut attempt = sqlx::Connection::begin(&mut *connection).await?;
        // Planned, never run: rows that are hidden from this role are no matter.
        sqlx::raw_sql("set local row_security = on").execute(&mut *attempt).await?;
        let explained = sqlx::query(sqlx::AssertSqlSafe(format!("explain {statement}"))).fetch_all(&mut *attempt).await;
        attempt.rollback().await?;
        if let Err(error) = explained {
            let sqlx::Error::Database(database) = &error else { return Err(error) };
            misfits.push(match time {
                // It cannot be cast to a time or compared with one.
                Some(name) if ["42846", "42883"].contains(&database.code().as_deref().unwrap_or_default()) => {
                    Misfit::new(place, format!("column {name} of {} is no time, and has to be one", source.table))
                }
                _ => Misfit::said(place, &**database),
            });
        }
    }
    Ok(())
}
