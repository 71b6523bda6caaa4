//! The fingerprint of what shapes vectors.

use std::collections::BTreeSet;

use super::*;

fn generation(text: &str) -> String {
    let config = read(text);
    let model = &config.models[&config.pipelines[0].models[0]];
    config.pipelines[0].generation(model, &config.providers[&model.provider])
}

#[test]
fn a_generation_is_what_shapes_vectors() {
    let same = generation(GOOD);
    // It is stored: a change of this value makes every worker ask for a new embedding of everything.
    assert_eq!(same, "5b37df5b45fc282de98371ee649e97c56472626759fac0c51b8ac5246a0dd857");
    for (from, to) in [
        ("usd = 0.00000002", "usd = 3"),
        ("skipped = \"\"", "skipped = \"done\""),
        ("[pipelines.documents]", "[worker]\nslots = 4\n[skip]\n[pipelines.documents]"),
        ("path = \"{path}\"", "path = \"new/{path}\""),
        ("table = \"chunks\"", "table = \"other\""),
        ("text = \"{content}\"", "text = \"{content}\"\nvalues = { unused = \"1\" }"),
        ("pages = \"{job.pages}\"", "count = \"{job.pages}\""),
        ("[pipelines.documents.status]", "[pipelines.documents.skip]\nshorter_than = 9\n[pipelines.documents.status]"),
    ] {
        let to = to.replace("[skip]\n", "");
        assert_eq!(generation(&GOOD.replacen(from, &to, 1)), same, "{to}");
    }
    let mut seen = BTreeSet::from([same]);
    for (from, to) in [
        ("text-embedding-3-small", "text-embedding-3-large"),
        ("dimensions = 1536", "dimensions = 512"),
        ("dimensions = 1536", "dimensions = 1536, prefix = \"passage: \""),
        ("dimensions = 1536", "dimensions = 1536, tokenizer = \"o200k\""),
        ("kind = \"openai\", key = \"sk-hunter2\"", "kind = \"hash\""),
        ("text = \"{content}\"", "text = \"{title}: {content}\""),
        ("text = \"{content}\"", "text = \"{content}\"\nvalues = { content = \"1\" }"),
        ("text = \"{content}\"", "text = \"{content}\"\nvalues = { title = \"1\" }"),
        ("text = \"{content}\"", "text_by = \"kind\"\ntext = { a = \"{content}\" }"),
        ("text = \"{content}\"", "text_by = \"kind\"\ntext = { a = \"{content}\" }\nvalues = { kind = \"1\" }"),
        ("text = \"{content}\"", "text_by = \"kind\"\ntext = { else = \"{content}\" }"),
        ("text = \"{content}\"\n", ""),
        ("{title}\\n{chunk.text}", "{title}: {chunk.text}"),
        ("embed = \"{title}\\n{chunk.text}\"", ""),
        ("embed = ", "tokens = 100\nembed = "),
        ("embed = ", "characters = 400\nembed = "),
        ("embed = ", "overlap = 1\nembed = "),
        ("embed = ", "whole_up_to = 500\nembed = "),
        ("embed = ", "whole = true\nembed = "),
        ("embed = ", "whole = true\nlonger = \"cut\"\nembed = "),
    ] {
        assert!(GOOD.contains(from), "{from}");
        assert!(seen.insert(generation(&GOOD.replacen(from, to, 1))), "{to}");
    }
    let m3 =
        GOOD.replacen("text-embedding-3-small\", dimensions = 1536", "bge-m3\", dimensions = 1024, sparse = true", 1);
    assert!(seen.insert(generation(&m3)));
    assert!(seen.insert(generation(&m3.replacen("embedding = ", "weights = \"{chunk.sparse}\", embedding = ", 1))));
    let cut = GOOD.replacen("embed = ", "whole = true\nlonger = \"cut\"\nembed = ", 1);
    assert!(seen.insert(generation(&cut.replacen("dimensions = 1536", "dimensions = 1536, longest = 500", 1))));
}
