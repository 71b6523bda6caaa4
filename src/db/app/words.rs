//! Status words against what their column takes: known before the first claim, not when the first job fails.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::config::{Place, StatusWords};

use super::catalog::{self, Column, Table};
use super::check::Misfit;
use super::literal;

/// An enum must know every word, and no CHECK of the column alone, or of its domain, may refuse one.
pub(super) async fn fit(
    connection: &mut PgConnection,
    table: &Table,
    place: &Place,
    words: &StatusWords,
    column: &Column,
    misfits: &mut Vec<Misfit>,
) -> sqlx::Result<()> {
    if column.is_enum {
        let known = catalog::enum_words(connection, column.type_oid).await?;
        for word in words.all().into_iter().filter(|word| !known.iter().any(|known| known == word)) {
            misfits.push(
                Misfit::new(
                    place,
                    format!("type {} has no word `{word}`; it has {}", column.type_name, known.join(", ")),
                )
                .fix(format!("alter type {} add value {};", column.type_sql(), literal(word))),
            );
        }
        return Ok(());
    }
    let checks = catalog::checks(connection, table, &column.name).await?;
    for word in words.all() {
        // A cast to the type as such would cut it.
        if let Some(most) = column.longest().filter(|most| word.chars().count() > *most) {
            let column = format!("column {} of {}", column.name, table.name);
            misfits.push(Misfit::new(
                place,
                format!("{column} does not take the word `{word}`: it holds {most} characters"),
            ));
            continue;
        }
        let refused = match refusing(connection, column, word, &checks).await? {
            Some(Refused::Check(what)) => Some(what),
            Some(Refused::Type) => Some(format!("type {}", column.type_name)),
            None => None,
        };
        misfits.extend(refused.map(|what| {
            let column = format!("column {} of {}", column.name, table.name);
            Misfit::new(place, format!("{column} does not take the word `{word}`: {what} refuses it"))
        }));
    }
    Ok(())
}

/// What does not take a value.
pub(super) enum Refused {
    /// A CHECK of the column alone, or of its domain, in words.
    Check(String),
    /// It is none of the type's.
    Type,
}

/// What refuses a text for a column.
pub(super) async fn refusing(
    connection: &mut PgConnection,
    column: &Column,
    text: &str,
    checks: &[(String, String)],
) -> sqlx::Result<Option<Refused>> {
    let value = format!("select {}::{} as {}", literal(text), column.type_sql(), column.sql());
    // What fails must not take a transaction around it along.
    let mut attempt = connection.begin().await?;
    let refusing = first_refusing(&mut attempt, &value, checks).await;
    attempt.rollback().await?;
    match refusing {
        Ok(refused) => Ok(refused.map(|(name, condition)| Refused::Check(format!("constraint {name} ({condition})")))),
        Err(sqlx::Error::Database(error)) if error.constraint().is_some() => {
            Ok(error.constraint().map(|name| Refused::Check(format!("constraint {name} of type {}", column.type_name))))
        }
        Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| code.starts_with("22")) => {
            Ok(Some(Refused::Type))
        }
        // What cannot be asked says nothing.
        Err(sqlx::Error::Database(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The first check that a value does not pass; null passes, as it does when a row is written.
async fn first_refusing(
    connection: &mut PgConnection,
    value: &str,
    checks: &[(String, String)],
) -> sqlx::Result<Option<(String, String)>> {
    sqlx::query(AssertSqlSafe(value.to_owned())).execute(&mut *connection).await?;
    for (name, condition) in checks {
        let statement = format!("select coalesce(({condition})::boolean, true) from ({value}) as source");
        match sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut *connection).await {
            Ok(false) => return Ok(Some((name.clone(), condition.clone()))),
            // A check that cannot be asked out of its table says nothing.
            Ok(true) | Err(sqlx::Error::Database(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
