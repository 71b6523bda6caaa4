//! Sources, files, texts and chunks.

use super::*;

#[test]
fn pipelines_are_checked() {
    check_change(
        "model = \"small\"\n[pipelines.documents.source]",
        "model = \"smal\"\nexisting = \"adpt\"\n[pipelines.documents.source]",
        &[
            "10: pipelines.documents.model: \"smal\" is not there; did you mean `small`?; or add a section [models.…]",
            "11: pipelines.documents.existing: \"adpt\" is not a word that is known here; known are adopt, backfill, ignore",
        ],
    );
    check_change(
        "[pipelines.notes]",
        "[pipelines.\"my notes\"]",
        &["30: pipelines.\"my notes\": is not a name for a pipeline: up to 40 letters, digits, `_` and `-`"],
    );
    check(
        "[pipelines.a]",
        &[
            "1: pipelines.a.model: is missing; write for example model = \"small\"",
            "1: pipelines.a.source: is missing; write [pipelines.a.source]",
            "1: pipelines.a.target: is missing; write [pipelines.a.target]",
        ],
    );
    check_change(
        "table = \"public.documents\"",
        "table = \"a.b.c\"",
        &[&format!("12: pipelines.documents.source.table: \"a.b.c\" {NOT_A_NAME}")],
    );
    check_change(
        "key = [\"id\"]",
        "key = [\"id\", 7]",
        &["13: pipelines.documents.source.key: must be a column name, not a number"],
    );
    check_change(
        "store = \"files\"",
        "store = \"file\"",
        &[
            "16: pipelines.documents.file.store: \"file\" is not there; did you mean `files`?; or add a section [stores.…]",
        ],
    );
    check_change(
        "source = { table = \"notes\", key = [\"id\"], text = \"{body}\" }",
        "source = { table = \"notes\", key = [\"id\"] }",
        &[
            "32: pipelines.notes.source.text: is missing, and there is no [file] either; write for example text = \"{content}\"",
        ],
    );
    // A file alone is content enough.
    check_change("text = \"{content}\"\n", "", &[]);
}

#[test]
fn templates_name_what_is_known_where_they_stand() {
    check_change(
        "\"{content}\"",
        "\"{content\"",
        &["14: pipelines.documents.source.text: `{` is never closed; write `{{` for a brace"],
    );
    check_change(
        "\"{content}\"",
        "\"content\"",
        &[
            "14: pipelines.documents.source.text: names no column, so it is the same for every row; write {column} in braces",
        ],
    );
    check_change(
        "\"{content}\"",
        "\"{job.pages}\"",
        &[
            "14: pipelines.documents.source.text: `{job.pages}` means nothing here; only columns and values of the source row \
         can be named",
        ],
    );
    check_change(
        "\"{path}\"",
        "\"{chunk.text}\"",
        &[
            "17: pipelines.documents.file.path: `{chunk.text}` means nothing here; only columns and values of the source row \
         can be named",
        ],
    );
    check_change(
        "{title}\\n{chunk.text}",
        "{title}",
        &[
            "20: pipelines.documents.chunks.embed: does not name {chunk.text}, so every chunk of a row would have the same vector",
        ],
    );
    check_change(
        "{title}\\n",
        "{chunk.vector}",
        &[
            "20: pipelines.documents.chunks.embed: `{chunk.vector}` means nothing here; it is not known before the text is embedded",
        ],
    );
    check_change(
        "\"{job.pages}\"",
        "\"{chunk.page}\"",
        &[
            "29: pipelines.documents.write.pages: `{chunk.page}` means nothing here; only the row and {job.…} can be named: a \
         job has many chunks",
        ],
    );
    // What the environment brought is not shown, whatever is wrong with it.
    check_change(
        "\"{content}\"",
        "\"{${MANY}.x}\"",
        &[
            "14: pipelines.documents.source.text: \"{${MANY}.x}\" is not a template that fits here once the environment is \
         filled in",
        ],
    );
}

#[test]
fn a_path_from_a_row_is_tied_to_its_owner() {
    check_change(
        "within = \"{owner}/\"\n",
        "",
        &[
            "15: pipelines.documents.file.within: is missing: the path comes from a row, whose owner may write what he likes; \
         say what it must lie below, like \"{user_id}/\", or within = \"\" if every path is trusted",
        ],
    );
    check_change(
        "within = \"{owner}/\"",
        "within = \"{owner}\"",
        &[
            "18: pipelines.documents.file.within: must end with a slash, or it would let in neighbours whose names begin alike",
        ],
    );
    let trusting = read(&GOOD.replace("within = \"{owner}/\"", "within = \"\""));
    assert_eq!(trusting.pipelines[0].file.as_ref().unwrap().within, None);
}

#[test]
fn texts_may_depend_on_a_column() {
    let text = "text = \"{content}\"";
    check_change(
        text,
        "text = { a = \"{content}\" }",
        &["14: pipelines.documents.source.text: has variants, but source.text_by does not say which column picks one"],
    );
    check_change(
        text,
        "text_by = \"kind\"\ntext = \"{content}\"",
        &["15: pipelines.documents.source.text: must be a table of variants, because source.text_by picks one"],
    );
    check_change(
        text,
        "text_by = \"kind\"",
        &["14: pipelines.documents.source.text_by: picks a variant of source.text, but there is no such table"],
    );
    let config = read(&GOOD.replace(text, "text_by = \"kind\"\ntext = { a = \"{x}\", else = \"{y}\" }"));
    let Some(TextRule::By { column, variants, otherwise }) = &config.pipelines[0].source.text else { panic!() };
    assert_eq!((column.as_str(), variants.len()), ("kind", 1));
    assert_eq!(otherwise.as_ref().unwrap().to_string(), "{y}");
}

#[test]
fn tenants_are_names_constants_or_sql() {
    let check = |written: &str, expected: TenantRule| {
        let config =
            read(&GOOD.replace("key = [\"id\"]\ntext", &format!("key = [\"id\"]\ntenant = \"{written}\"\ntext")));
        assert_eq!(config.pipelines[0].source.tenant.as_ref(), Some(&expected));
    };
    let key = "pipelines.documents.source.tenant".to_owned();
    let expression = |text: &str| {
        let place = Place { file: "workers.toml".to_owned(), line: 14, key: key.clone() };
        TenantRule::Expression(Sql { text: text.to_owned(), place })
    };
    check("user_id", TenantRule::Name("user_id".to_owned()));
    check("'it''s us'", TenantRule::Constant("it's us".to_owned()));
    check("(select 1)", expression("(select 1)"));
    check("'a' || 'b'", expression("'a' || 'b'"));
}

#[test]
fn weights_are_small_whole_numbers_of_tenants() {
    let source = "source = { table = \"notes\", key = [\"id\"], text = \"{body}\" }";
    let with = |more: &str| source.replace(" }", &format!(", {more} }}"));
    check_change(source, &with("tenant = \"owner\", weights = { acme = 100, \"\" = 1 }"), &[]);
    check_change(
        source,
        &with("tenant = \"owner\", weights = { acme = 0, other = 1.5 }"),
        &[
            "32: pipelines.notes.source.weights.acme: must be a whole number from 1 to 100",
            "32: pipelines.notes.source.weights.other: must be a whole number, not 1.5",
        ],
    );
    check_change(
        source,
        &with("weights = { acme = 2 }"),
        &["32: pipelines.notes.source.weights: means nothing without source.tenant: all rows are nobody's"],
    );
}

#[test]
fn chunks_are_checked() {
    let chunks = |to: &str, expected: &[&str]| check_change("embed = \"{title}\\n{chunk.text}\"", to, expected);
    chunks(
        "tokens = 9\ncharacters = 9",
        &["21: pipelines.documents.chunks.characters: is given beside chunks.tokens; remove one of them"],
    );
    chunks(
        "characters = 10\noverlap = 10",
        &["21: pipelines.documents.chunks.overlap: is 10, but a chunk has 10; an overlap is shorter"],
    );
    chunks(
        "tokens = 9000\nwhole_up_to = 8192",
        &[
            "20: pipelines.documents.chunks.tokens: is 9000, but model small takes 8191; write less",
            "21: pipelines.documents.chunks.whole_up_to: is 8192, but model small takes 8191; write less",
        ],
    );
    check_change(
        "whole = true",
        "whole = true, tokens = 10",
        &["33: pipelines.notes.chunks.tokens: means nothing with chunks.whole = true; remove one of them"],
    );
    let overlap =
        |text: &str| read(&GOOD.replace("embed = \"{title}\\n{chunk.text}\"", text)).pipelines[0].chunks.overlap;
    assert_eq!([overlap(""), overlap("tokens = 150"), overlap("characters = 1500")], [40, 15, 150]);
}

#[test]
fn pipelines_keep_the_order_of_the_file() {
    let other = GOOD.replace("pipelines.notes", "pipelines.a_first_by_name");
    let names: Vec<_> = read(&other).pipelines.into_iter().map(|pipeline| pipeline.name).collect();
    assert_eq!(names, ["documents", "a_first_by_name"]);
}

#[test]
fn a_ceiling_is_in_money_that_somebody_can_count() {
    let with = |provider: &str, ceiling: &str| {
        format!(
            "providers.p = {{ {provider} }}\nmodels.m = {{ provider = \"p\", name = \"m\", dimensions = 8 }}\n\
             [pipelines.notes]\nmodel = \"m\"\nsource = {{ table = \"notes\", key = [\"id\"], text = \"{{body}}\" }}\n\
             chunks = {{ whole = true }}\ntarget = {{ columns = {{ embedding = \"{{chunk.vector}}\" }} }}\nceiling = {{ {ceiling} }}\n"
        )
    };
    let (paid, free) = ("kind = \"openai\", key = \"sk-hunter2\"", "kind = \"hash\"");
    check(
        &with(paid, "usd_per_day = 5"),
        &["8: pipelines.notes.ceiling: is in money, but model m has no price; add it under [[prices]]"],
    );
    check(&with(free, ""), &["8: pipelines.notes.ceiling: says nothing; write for example usd_per_day = 5"]);
    let config = read(&with(free, "usd_per_day = 5, tenant_usd_per_month = \"0.25\""));
    let ceiling = config.pipelines[0].ceiling.clone().unwrap();
    assert_eq!((ceiling.usd_per_day, ceiling.usd_per_month), (Some(Decimal::from(5)), None));
    assert_eq!((ceiling.tenant_usd_per_day, ceiling.tenant_usd_per_month), (None, Some(Decimal::new(25, 2))));
}
