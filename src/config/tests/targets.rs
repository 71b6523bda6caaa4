//! Targets, status, and what a later version brings.

use super::*;

#[test]
fn targets_are_checked() {
    let target = |from: &str, to: &str, expected: &[&str]| check_change(from, to, expected);
    let columns = "columns = { place = \"{chunk.index}\", embedding = \"{chunk.vector}\" }";
    target(
        columns,
        "columns = { place = \"{chunk.tokens}\" }",
        &[
            "24: pipelines.documents.target.columns: has no column for {chunk.vector}; write for example embedding = \
         \"{chunk.vector}\"",
            "24: pipelines.documents.target.columns: has no column for {chunk.index}; write for example chunk_index = \
         \"{chunk.index}\"",
        ],
    );
    target(
        "parent = { document_id = \"{id}\" }\n",
        "",
        &[
            "21: pipelines.documents.target.parent: is missing: it says which row a chunk is of; write for example parent = \
         { document_id = \"{id}\" }",
        ],
    );
    target(
        "parent = { document_id = \"{id}\" }",
        "parent = { \"document_id?\" = \"doc {id}\" }",
        &[
            "23: pipelines.documents.target.parent.\"document_id?\": must be one value of the source row, like \"{id}\"",
            "23: pipelines.documents.target.parent.\"document_id?\": says which row a chunk is of, so it must be a column that \
         is always there",
        ],
    );
    target(
        "embedding = \"{chunk.vector}\" }",
        "\"embedding?\" = \"{chunk.vector}\" }",
        &[
            "24: pipelines.documents.target.columns.\"embedding?\": takes {chunk.vector}, so it must be a column that is always \
         there, without `?` and `.`",
        ],
    );
    target(
        "embedding = \"{chunk.vector}\" }",
        "embedding = \"{chunk.vector}\", meta = { v = \"{chunk.vector}\" } }",
        &["24: pipelines.documents.target.columns.meta: mixes {chunk.vector} with other text; give it its own column"],
    );
    target(
        "place = ",
        "document_id = \"{id}\", place = ",
        &["24: pipelines.documents.target.columns.document_id: is set twice; remove one"],
    );
    target(
        "place = ",
        "\"a\\\"b\" = \"{id}\", place = ",
        &["24: pipelines.documents.target.columns.\"a\\\"b\": `a\"b` is not a column name"],
    );
    check_change(
        "chunks = { whole = true }\n",
        "",
        &[
            "33: pipelines.notes.target: puts the vector on the source row, which has place for one; set chunks.whole = true, \
         or name a table of chunks in target.table",
        ],
    );
    check_change(
        "target = { columns",
        "target = { parent = { a = \"{id}\" }, columns",
        &["34: pipelines.notes.target.parent: is for a table of chunks; name it in target.table, or leave this out"],
    );
    let twin = "\n[pipelines.twin]\nmodel = \"small\"\nsource = { table = \"x\", key = [\"id\"], text = \"{a}\" }\n\
                target = { table = \"chunks\", parent = { document_id = \"{id}\" }, columns = { i = \"{chunk.index}\", \
                e = \"{chunk.vector}\" } }\n";
    check(
        &format!("{GOOD}{twin}"),
        &[
            "39: pipelines.twin.target: owns the same vectors as pipeline documents; give each a target.version of its own",
        ],
    );
    check(&format!("{GOOD}{}", twin.replace("columns", "version = { v = \"2\" }, columns")), &[]);
}

#[test]
fn columns_of_the_row_are_set_once() {
    check_change(
        "words = { skipped = \"\" }\n",
        "",
        &[
            "25: pipelines.documents.status.words.skipped: is missing: say which word a skipped row gets, or \"\" to leave its \
         status as it is",
        ],
    );
    check_change(
        "pages = \"{job.pages}\"",
        "status = \"x\"\nid = \"y\"",
        &[
            "29: pipelines.documents.write.status: is the status column, which is set already",
            "30: pipelines.documents.write.id: is part of the source's key, which must not change",
        ],
    );
    check_change(
        "column = \"status\"",
        "column = \"${MANY}|a\\\"b\"",
        &["26: pipelines.documents.status.column: \"${MANY}|a\"b\" is not a column name"],
    );
    let words = read(GOOD).pipelines.remove(0).status.unwrap().words;
    assert_eq!((words.completed.as_str(), words.skipped), ("completed", None));
}

#[test]
fn what_a_later_version_brings_is_recognised() {
    let later = r#"

providers.speech = { kind = "deepgram", key = "${KEY}" }
[pipelines.notes]
model = "small"

source = { table = "notes", key = ["id"], text = "{body}" }
target.table = "note_vectors"


target.parent = { note_id = "{id}" }
target.columns = { place = "{chunk.index}", embedding = "{chunk.vector}", "sparse?" = "{chunk.sparse}" }

signal = { notify = "ready" }
[providers.openai]
kind = "openai"
key = "${KEY}"
[models.small]
provider = "openai"
name = "text-embedding-3-small"
dimensions = 1536
sparse = true
"#;
    let no = |place: &str, what: &str| format!("{place}: `{what}` is not supported by this version; leave it out");
    let expected = [
        no("3: providers.speech.kind", "deepgram"),
        no("12: pipelines.notes.target.columns.\"sparse?\"", "{chunk.sparse}"),
        no("14: pipelines.notes.signal", "signal"),
        no("22: models.small.sparse", "sparse"),
    ];
    assert_eq!(misfits(later), expected);
}

#[test]
fn effects_are_one_statement_each_with_names_that_mean_something() {
    let notes = GOOD.lines().count() + 1;
    let with = |effect: &str| format!("{GOOD}[[pipelines.notes.effects]]\n{effect}");
    let one = |effect: &str, line: usize, rest: &str| {
        check(&with(effect), &[&format!("{}: pipelines.notes.effects[0]{rest}", notes + line)]);
    };
    let config = read(&with("name = \"a\"\nsql = [\"select {id}\", \"select 2\"]\non = \"left\""));
    let effect = &config.pipeline("notes").unwrap().effects[0];
    assert_eq!((effect.sql.len(), effect.on.as_slice(), effect.repeatable), (2, &[Occasion::Left][..], false));
    one("sql = \"select 1\"", 0, ".name: is missing; write for example name = \"usage\"");
    one(
        "name = \"a\"\nsql = \"commit\"",
        2,
        ".sql: must begin with one of insert, update, delete, merge, select, with",
    );
    one(
        "name = \"a\"\nsql = \"select 1; select 2\"",
        2,
        ".sql: holds more than one statement; write an effect for each",
    );
    one(
        "name = \"a\"\nsql = \"select {chunk.text}\"",
        2,
        ".sql: `{chunk.text}` means nothing here; only the row and {job.…} can be named: a job has many chunks",
    );
    one(
        "name = \"a\"\nsql = \"select 1\"\non = [\"done\", \"failed\"]",
        3,
        ".on: \"failed\" is not a word that is known here; known are done, skipped, left",
    );
    one(
        "name = \"a\"\nsql = \"select 1\"\nshared = { table = \"folders\" }",
        3,
        ".shared.key: is missing: it says which row is shared; write for example key = { id = \"{folder_id}\" }",
    );
    let twice = "name = \"a\"\nsql = \"select 1\"\n";
    check(
        &with(&format!("{twice}[[pipelines.notes.effects]]\n{twice}")),
        &[&format!("{}: pipelines.notes.effects[1].name: a is the name of another effect of this pipeline", notes + 4)],
    );
}
