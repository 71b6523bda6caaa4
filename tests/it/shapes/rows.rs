//! The rows of a shape, and what has to become of them: worked out here, not by the code under test.

use super::names::{literal, sql};
use super::shape::{Shape, Target, Tenant, When};
use super::tables::EVERYBODY;

/// How many rows a shape begins with.
pub const ROWS: usize = 5;

/// A row of a shape's source.
#[derive(Debug, Clone)]
pub struct Row {
    pub tag: usize,
    /// Its key, one literal for each column.
    pub key: Vec<String>,
    pub head: String,
    pub sentences: Vec<String>,
    pub flag: bool,
    /// How often its text was embedded or found empty.
    pub worked: usize,
}

impl Row {
    pub fn new(shape: &Shape, tag: usize) -> Self {
        let mut row = Self {
            tag,
            key: key(shape, tag),
            head: sentence(tag, 9, 0),
            sentences: Vec::new(),
            flag: tag != 4,
            worked: 0,
        };
        row.say(1 + tag % 3, 1);
        row
    }

    /// Gives it so many sentences, of which the first is of that edition.
    pub fn say(&mut self, count: usize, edition: usize) {
        let editions = std::iter::once(edition).chain(std::iter::repeat(0));
        self.sentences = (0..count).zip(editions).map(|(nth, edition)| sentence(self.tag, nth, edition)).collect();
    }

    pub fn body(&self) -> String {
        self.sentences.join("\n\n")
    }

    /// The texts that are embedded.
    pub fn chunks(&self, shape: &Shape) -> Vec<String> {
        let head = shape.head.then(|| self.head.clone());
        let all: Vec<String> = head.into_iter().chain(self.sentences.iter().cloned()).collect();
        match shape.target {
            Target::Row if all.is_empty() => all,
            Target::Row => vec![all.join("\n\n")],
            Target::Chunks(_) | Target::Created { .. } => all,
        }
    }

    pub fn in_set(&self, shape: &Shape) -> bool {
        shape.when == When::Always || self.flag
    }

    pub fn tenant(&self, shape: &Shape) -> String {
        match shape.tenant {
            Tenant::Nobody => String::new(),
            Tenant::Column(kind) => owner(kind, self.tag),
            Tenant::Constant | Tenant::Joined => EVERYBODY.to_owned(),
        }
    }

    pub fn insert(&self, shape: &Shape) -> String {
        let names = &shape.names;
        let mut columns: Vec<String> = shape.keys.iter().map(|(name, _)| sql(name)).collect();
        let mut values = self.key.clone();
        for (name, value) in [
            (&names.tag, self.tag.to_string()),
            (&names.head, literal(&self.head)),
            (&names.body, literal(&self.body())),
            (&names.flag, self.flag.to_string()),
        ] {
            columns.push(sql(name));
            values.push(value);
        }
        if let Tenant::Column(kind) = shape.tenant {
            columns.push(sql(&names.owner));
            values.push(literal(&owner(kind, self.tag)));
        }
        format!("insert into {} ({}) values ({})", shape.source(), columns.join(", "), values.join(", "))
    }

    /// Asks for the row in the application's job table.
    pub fn ask(&self, shape: &Shape) -> String {
        let columns: Vec<String> = shape.names.asked.iter().map(|name| sql(name)).collect();
        format!("insert into {} ({}) values ({})", shape.queue(), columns.join(", "), self.key.join(", "))
    }

    /// Brings the row up to what it is here.
    pub fn update(&self, shape: &Shape) -> String {
        let names = &shape.names;
        let keys = shape.keys.iter().zip(&self.key).map(|((name, _), value)| format!("{} = {value}, ", sql(name)));
        format!(
            "update {} set {}{} = {}, {} = {}, {} = clock_timestamp() where {} = {}",
            shape.source(),
            keys.collect::<String>(),
            sql(&names.body),
            literal(&self.body()),
            sql(&names.flag),
            self.flag,
            sql(&names.changed),
            sql(&names.tag),
            self.tag
        )
    }
}

/// The key of the nth row: its first column alone tells the rows apart.
pub fn key(shape: &Shape, nth: usize) -> Vec<String> {
    let value = |place: usize, (_, kind): &(String, &'static super::keys::KeyType)| {
        let values = kind.values;
        let value = values[(shape.first_value + nth * (1 + place % 2)) % values.len()];
        let value = if place == 0 { values[(shape.first_value + nth) % values.len()] } else { value };
        format!("{}::{}", literal(value), shape.typed(kind.sql))
    };
    shape.keys.iter().enumerate().map(|(place, column)| value(place, column)).collect()
}

fn owner(kind: &str, tag: usize) -> String {
    match kind {
        "uuid" => format!("00000000-0000-0000-0000-00000000000{}", tag % 2),
        "int" => format!("-{}", 1 + tag % 2),
        "text" => format!("it's \"{}\" {{you}}", tag % 2),
        _ => format!("ab{}", tag % 2),
    }
}

/// A sentence of 21 to 40 characters, so that it is a chunk of its own; no two are the same.
fn sentence(tag: usize, nth: usize, edition: usize) -> String {
    const WORDS: [&str; 6] = ["wheel", "Größe", "\"it's\"", "日本の水車", "{brace}", "a\\b $1"];
    let word = WORDS[(tag + nth + edition) % WORDS.len()];
    format!("Part {nth} of {tag}: the {word} turns {edition} times.")
}
