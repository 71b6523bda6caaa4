//! Every identifier that Postgres takes can be written, wherever one is named.

use super::*;

#[test]
fn any_identifier_can_be_named_in_double_quotes() {
    let odd = GOOD
        .replace("table = \"public.documents\"", r#"table = '"a.b"."6"" pipes?"'"#)
        .replace(
            "key = [\"id\"]\ntext",
            "tenant = '\"user id\"'\nchanged_at = '\"a|b\"'\nkey = ['\"{id}\"', \"nr\"]\ntext",
        )
        .replace("\"{content}\"", r#"'{"con}tent"}: {"tenant"}'"#)
        .replace("parent = { document_id = \"{id}\" }", r#"parent = { '"a|b"' = '{"{id}"}' }"#)
        .replace("{ place =", r#"{ '"x?"|"y.z"."k.k"?' = "{chunk.page}", place ="#)
        .replace("column = \"status\"", r#"column = '"status?"'"#)
        .replace("pages = \"{job.pages}\"", r#"'";"' = "{job.pages}""#);
    let odd = format!(
        "{odd}\n[[pipelines.documents.effects]]\nname = \"e\"\nsql = 'delete from t where x = {{\"con}}tent\"}}'\n\
         shared = {{ table = '\"q\"', key = {{ '\"a.b\"' = '{{\"{{id}}\"}}' }} }}\n\
         [pipelines.documents.queue]\ntable = '\"jobs?\"?'\nkey = {{ '\"d.id\"' = '{{\"{{id}}\"}}' }}\n\
         status = {{ column = '\"s|t\"', words = {{ skipped = \"x\" }} }}"
    );

    let mut config = read(&odd);
    let pipeline = config.pipelines.remove(0);
    let Source { table, key, tenant, changed_at, text, .. } = pipeline.source;
    assert_eq!((table.schema.as_str(), table.table.as_str()), ("a.b", "6\" pipes?"));
    assert_eq!(table.to_string(), "\"a.b\".\"6\"\" pipes?\"");
    assert_eq!(key, ["{id}", "nr"]);
    assert_eq!((tenant, changed_at.as_deref()), (Some(TenantRule::Name("user id".to_owned())), Some("a|b")));
    let Some(TextRule::One(text)) = text else { panic!("one text") };
    let names = [Name::Row("con}tent".to_owned()), Name::Row("tenant".to_owned())];
    assert_eq!(text.names(), names.iter().collect());
    let columns: Vec<_> = pipeline.target.parent.iter().chain(&pipeline.target.columns).collect();
    assert_eq!(columns[0].column.first(), "a|b");
    let of_chunk = &columns[1].column;
    assert!(of_chunk.optional);
    assert_eq!(of_chunk.candidates[1], Candidate { column: "y.z".to_owned(), json_key: Some("k.k".to_owned()) });
    assert_eq!(pipeline.status.map(|status| status.column.first().to_owned()).as_deref(), Some("status?"));
    assert_eq!(pipeline.write[0].column.first(), ";");
    let effect = &pipeline.effects[0];
    assert_eq!(effect.sql[0].names(), [&Name::Row("con}tent".to_owned())].into());
    let shared = effect.shared.as_ref().unwrap();
    assert_eq!((shared.table.table.as_str(), shared.key[0].0.as_str()), ("q", "a.b"));
    let queue = pipeline.queue.unwrap();
    assert_eq!((queue.table.table.as_str(), queue.optional), ("jobs?", true));
    assert_eq!((queue.key[0].0.as_str(), queue.key[0].1.as_str()), ("d.id", "{id}"));
    assert_eq!(queue.status.first(), "s|t");
}

#[test]
fn a_name_that_needs_quotes_and_has_none_is_refused_with_the_way_out() {
    check_change(
        "table = \"public.documents\"",
        "table = \"public.a|b\"",
        &[&format!("12: pipelines.documents.source.table: \"public.a|b\" {NOT_A_NAME}")],
    );
    check_change(
        "key = [\"id\"]\ntext",
        "key = [\"i.d\"]\ntext",
        &[&format!("13: pipelines.documents.source.key: \"i.d\" {NOT_A_NAME}")],
    );
    check_change(
        "text = \"{content}\"",
        "text = \"{con.tent}\"",
        &[&format!(
            "14: pipelines.documents.source.text: `{{con.tent}}` {NOT_A_NAME}; a column, a value, {{job.x}} or {{chunk.x}} may stand in braces"
        )],
    );
    check_change(
        "text = \"{content}\"",
        "text = '{\"con}'",
        &["14: pipelines.documents.source.text: `{\"con}` has a `\"` that is never closed"],
    );
    check_change(
        "key = [\"id\"]\ntext",
        "key = ['\"\"']\ntext",
        &[&format!("13: pipelines.documents.source.key: \"\"\"\" {NOT_A_NAME}")],
    );
}
