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
        &[&format!("24: pipelines.documents.target.columns.\"a\\\"b\": {NOT_A_NAME}")],
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
fn weights_of_tokens_have_a_column_of_their_own_and_a_model_that_gives_them() {
    let sparse = |columns: &str, expected: &[&str]| {
        let m3 = "name = \"BAAI/bge-m3\", dimensions = 1024, sparse = true";
        let good = GOOD.replacen("name = \"text-embedding-3-small\", dimensions = 1536", m3, 1);
        let with = format!("embedding = \"{{chunk.vector}}\", {columns} }}");
        check(&good.replacen("embedding = \"{chunk.vector}\" }", &with, 1), expected);
    };
    let at = "24: pipelines.documents.target.columns";
    sparse("weights = \"{chunk.sparse}\"", &[]);
    sparse("\"weights|old_weights?\" = \"{chunk.sparse}\"", &[]);
    sparse(
        "weights = \"{chunk.sparse}\", again = \"{chunk.sparse}\"",
        &[&format!("{at}.again: takes {{chunk.sparse}} a second time; one column is enough")],
    );
    sparse(
        "weights = \"W: {chunk.sparse}\"",
        &[&format!("{at}.weights: mixes {{chunk.sparse}} with other text; give it its own column")],
    );
    sparse(
        "meta = { w = \"{chunk.sparse}\" }",
        &[&format!("{at}.meta: mixes {{chunk.sparse}} with other text; give it its own column")],
    );
    sparse(
        "\"weights|meta.weights\" = \"{chunk.sparse}\"",
        &[&format!("{at}.\"weights|meta.weights\": takes {{chunk.sparse}}, so it must be a column, without `.`")],
    );
    check_change(
        "embedding = \"{chunk.vector}\" }",
        "embedding = \"{chunk.vector}\", weights = \"{chunk.sparse}\" }",
        &[
            "24: pipelines.documents.target.columns.weights: takes {chunk.sparse}, which model small does not give; is it \
         BGE-M3 (sparse = true)?",
        ],
    );
    check_change(
        "dimensions = 1536",
        "dimensions = 1536, sparse = true",
        &["4: models.small.send_dimensions: must be false: a model with sparse = true has one size"],
    );
    let hash = "models.lexical = { provider = \"lexical\", dimensions = 8, sparse = true }\n";
    check_change(
        "models.small",
        &format!("providers.lexical.kind = \"hash\"\n{hash}models.small"),
        &["5: models.lexical.sparse: is for BGE-M3, which providers of kind \"local\" and \"openai\" have"],
    );
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
        &[&format!("26: pipelines.documents.status.column: \"${{MANY}}|a\"b\" {NOT_A_NAME}")],
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
target.columns = { place = "{chunk.index}", embedding = "{chunk.vector}" }

[providers.openai]
kind = "openai"
key = "${KEY}"
[models.small]
provider = "openai"
name = "text-embedding-3-small"
dimensions = 1536
"#;
    let no = |place: &str, what: &str| format!("{place}: `{what}` is not supported by this version; leave it out");
    let expected = [no("2: providers.speech.kind", "deepgram")];
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
        ".on: an effect goes with what its job writes, and one that failed writes nothing: status.columns write to its row, and signal tells of it",
    );
    one(
        "name = \"a\"\nsql = \"select 1\"\nshared = { table = \"folders\" }",
        3,
        ".shared.key: is missing: it says which row is shared; write for example key = { id = \"{folder_id}\" }",
    );
    one(
        "name = \"a\"\nrepeatable = true\nsql = [\"select {job.chunks}\", \"select {job.text}\"]",
        2,
        ".repeatable: cannot be: {job.text} is known while the job runs, and not when this effect is run again",
    );
    one(
        "name = \"a\"\nrepeatable = true\nsql = \"select 1\"\non = \"left\"",
        2,
        ".repeatable: is for effects of done jobs: only for these is one run again",
    );
    let twice = "name = \"a\"\nsql = \"select 1\"\n";
    check(
        &with(&format!("{twice}[[pipelines.notes.effects]]\n{twice}")),
        &[&format!("{}: pipelines.notes.effects[1].name: a is the name of another effect of this pipeline", notes + 4)],
    );
}

#[test]
fn a_signal_is_a_channel_and_a_signed_webhook() {
    let notes = GOOD.lines().count() + 1;
    let with = |signal: &str| format!("{GOOD}[pipelines.notes.signal]\n{signal}");
    let of = |signal: &str| read(&with(signal)).pipelines.remove(1).signal;
    let hook = |secret: &str| {
        of(&format!("webhook = {{ url = \"${{APP_URL}}/a?b=c\", secret = \"{secret}\" }}")).webhook.unwrap()
    };
    assert_eq!(of("notify = \"Notes ready\"").notify.as_deref(), Some("Notes ready"));
    assert_eq!(hook("${KEY}, long enough").url.as_str(), "https://example.org/a?b=c");
    assert_eq!(hook("${KEY}, long enough").key.expose(), b"the KEY, long enough");
    assert_eq!(hook("whsec_AAECAwQFBgcICQoLDA0ODw==").key.expose(), (0..16).collect::<Vec<u8>>());
    assert!(!format!("{:?}", hook("0123456789abcdef")).contains("48"), "the bytes of a secret are not shown");

    let one =
        |signal: &str, rest: &str| check(&with(signal), &[&format!("{}: pipelines.notes.signal.{rest}", notes + 1)]);
    one("notify = \"gristmill_jobs\"", "notify: is the channel of Gristmill's own workers; take another");
    one(&format!("notify = \"{}\"", "n".repeat(64)), "notify: is not a name for a channel (at most 63 bytes)");
    one(
        "webhook = { url = \"https://a.example\" }",
        "webhook.secret: is missing; write for example secret = \"${WEBHOOK_SECRET}\"",
    );
    one(
        "webhook = { url = \"ftp://a.example\", secret = \"0123456789abcdef\" }",
        "webhook.url: is not an address like https://example.org",
    );
    one(
        "webhook = { url = \"https://a:b@a.example\", secret = \"0123456789abcdef\" }",
        "webhook.url: holds a user name or a password; give credentials in their own keys",
    );
    one(
        "webhook = { url = \"https://a.example\", secret = \"${MANY}\" }",
        "webhook.secret: is shorter than 16 bytes; `openssl rand -base64 32` makes one",
    );
    one(
        "webhook = { url = \"https://a.example\", secret = \"whsec_?\" }",
        "webhook.secret: is not base64 after whsec_",
    );
}
