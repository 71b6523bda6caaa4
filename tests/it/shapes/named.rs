//! Faults that random shapes show rarely, each by its name.

use gristmill::db::app::{orphans, search, verify};

use crate::applications::application;

/// The parent is a text whatever the key is, the count a decimal, and the chunks' table knows the condition's column.
const PIPELINE: &str = r#"
[pipelines.notes]
kind = "embed"
model = "tiny"
existing = "adopt"
[pipelines.notes.source]
table = "app.notes"
key = ["id", "page"]
when = "body is not null"
text = "{body}"
[pipelines.notes.chunks]
tokens = 12
overlap = 0
[pipelines.notes.target]
table = "app.note_chunks"
parent = { note = "{id}", page = "{page}" }
columns = { nth = "{chunk.index}", body = "{chunk.text}", embedding = "{chunk.vector}" }
[pipelines.notes.write]
chunks = "{job.chunks}"
"#;

const TABLES: &str = "create schema app; \
    create table app.notes (id uuid, page smallint, body text, chunks numeric(6,2), primary key (id, page)); \
    create table app.note_chunks (note text not null, page bigint not null, nth int not null, body text not null, embedding vector(8) not null)";

#[tokio::test]
async fn a_parent_of_another_type_than_the_key_is_found_both_ways() {
    let world = application(TABLES, PIPELINE).await;
    let id = "00000000-0000-0000-0000-00000000000a";
    world
        .sql(&format!("insert into app.notes values ('{id}', 1, 'The wheel turns.'), ('{id}', 2, 'The stone grinds.')"))
        .await;
    world.work().await;

    let plan = world.plans().await.remove(0);
    let mut connection = world.pool.acquire().await.unwrap();
    let (findings, _) = verify(&mut connection, &plan, None, 10).await.unwrap();
    assert!(findings.is_empty(), "{findings:?}");
    let hits = search(&mut connection, &plan, &[1.0; 8], 10).await.unwrap();
    assert_eq!(hits.len(), 2);
    world.sql("alter table app.notes disable trigger all; delete from app.notes where page = 1").await;
    let gone = orphans(&mut connection, &plan, 10).await.unwrap();
    assert_eq!(gone.iter().map(|finding| finding.key.to_string()).collect::<Vec<_>>(), [format!("{id},1")]);

    // What was there before is adopted by its chunks.
    world.sql("delete from gristmill.embedding_jobs; delete from gristmill.pipelines").await;
    world.register().await;
    assert_eq!(world.states().await, "1 completed");
}
