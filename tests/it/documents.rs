//! Real files and hostile ones, through the whole worker.

use std::path::Path;

use gristmill::embedded::{self, Artifact};
use serde::Deserialize;

use crate::world::{USER, World};

#[derive(Deserialize)]
struct Expected {
    file: Vec<File>,
}

#[derive(Deserialize)]
struct File {
    name: String,
    pages: Option<i32>,
    phrase: Option<String>,
    heading: Option<String>,
    #[serde(default)]
    accepts: Vec<String>,
}

/// Uploads every file of a folder of fixtures and works until all are through.
async fn process(folder: &str, list: &str) -> (World, Vec<File>) {
    embedded::ensure(Artifact::Pdfium, &|_| {}).expect("libpdfium can be had");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let expected = std::fs::read_to_string(fixtures.join(list)).unwrap();
    let expected: Expected = toml::from_str(&expected).unwrap();
    let world = World::new().await;
    world.register().await;
    for file in &expected.file {
        world.upload(&file.name, &std::fs::read(fixtures.join(folder).join(&file.name)).unwrap()).await;
    }
    world.work().await;
    (world, expected.file)
}

fn folded(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn twenty_real_files_become_the_text_they_hold() {
    let (world, files) = process("files", "expect.toml").await;
    assert_eq!(files.len(), 20);
    for file in files {
        let of = |what: &str| format!("select {what} from public.documents where name = '{}'", file.name);
        assert_eq!(world.value::<String>(&of("processing_status")).await, "completed", "{}", file.name);
        if file.pages.is_some() {
            assert_eq!(world.value::<Option<i32>>(&of("page_count")).await, file.pages, "{}", file.name);
        }
        let chunks = "from public.document_chunks c join public.documents d on d.id = c.document_id";
        let text = world
            .list(&format!("select c.content {chunks} where d.name = '{}' order by c.chunk_index", file.name))
            .await;
        let phrase = file.phrase.as_deref().map(folded).unwrap_or_default();
        assert!(folded(&text.join(" ")).contains(&phrase), "{} lacks {phrase:?}", file.name);
        if let Some(heading) = &file.heading {
            // A chapter that opens with a section lends its chunks that section's title: sections there are, and the heading is text.
            let sections = format!("select count(distinct c.section_title) {chunks} where d.name = '{}'", file.name);
            assert!(world.value::<i64>(&sections).await > 0, "{} has no sections", file.name);
            let headed = folded(&text.join(" ")).contains(&folded(heading));
            assert!(headed, "{} lacks the heading {heading:?}", file.name);
        }
    }
}

#[tokio::test]
async fn hostile_files_end_with_a_reason_and_their_neighbours_with_vectors() {
    let (world, files) = process("hostile", "hostile/expect.toml").await;
    for file in files {
        let ended: String = world
            .value(&format!(
                "select concat_ws(' ', j.state, j.error_kind, j.reason) from gristmill.embedding_jobs j \
                 join public.documents d on j.source_key = jsonb_build_array(d.id::text) where d.name = '{}'",
                file.name
            ))
            .await;
        let word = match ended.split(' ').take(2).collect::<Vec<_>>()[..] {
            ["completed", ..] => "text",
            ["skipped", ..] => "empty",
            ["failed", "unreadable"] if ended.contains("encrypted") => "encrypted",
            ["failed", "unreadable"] => "broken",
            ["failed", "parser"] if ended.contains("limit") => "limit",
            ["failed", "parser"] => "crashed",
            _ => "neither",
        };
        assert!(file.accepts.iter().any(|accepted| accepted == word), "{} ended as {word}: {ended}", file.name);
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_out_of_the_store_fails_its_row_at_once() {
    let world = World::new().await;
    world.register().await;
    let folder = world.files.path().join(USER.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", folder.join("out.txt")).unwrap();
    world.insert_path(&format!("{USER}/out.txt"), "out").await;

    world.work().await;

    let said = world.state().await;
    assert!(said.starts_with("out failed | failed attempt=1 chunks=0 file"), "{said}");
    assert!(said.ends_with("may not be read: a link leads out of the store's folder"), "{said}");
}
