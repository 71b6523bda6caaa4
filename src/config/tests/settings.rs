//! Settings, stores, providers, models and prices.

use super::*;

#[test]
fn every_misfit_is_named_at_once() {
    check(
        "[worker]\nslot = 4\nlease = 30\ngrace = \"5min\"\nmemory = \"1 pound\"\n\n[databas]\n",
        &[
            "2: worker.slot: is not a key that is known here; did you mean `slots`?",
            "3: worker.lease: 30 has no unit; write for example \"60s\"",
            "4: worker.grace: \"5min\" has an unknown unit; known are d, h, m, ms, s",
            "5: worker.memory: \"1 pound\" has an unknown unit; known are B, GB, GiB, KiB, MB, MiB, kB",
            "7: databas: is not a key that is known here; did you mean `database`?",
        ],
    );
}

#[test]
fn what_is_not_toml_is_named_by_its_line() {
    check("\n[worker\nslots = 1", &["2: unclosed table, expected `]`"]);
    check("[worker]\nslots = 1\nslots = 2", &["3: duplicate key"]);
}

#[test]
fn settings_are_checked() {
    check("worker = 3", &["1: worker: must be a table, not a number"]);
    check("[worker]\nslots = true", &["2: worker.slots: must be a whole number, not true or false"]);
    check("[worker]\nslots = 1.5", &["2: worker.slots: must be a whole number, not 1.5"]);
    check("[worker]\nslots = 0", &["2: worker.slots: must be a whole number from 1 to 100000"]);
    check(
        "[worker]\nlease = \"2m\"",
        &["2: worker.lease: is longer than 45s; a killed worker's jobs would wait for more than a minute"],
    );
    check("[worker]\npoll = \"0s\"", &["2: worker.poll: must be longer than nothing"]);
    check("[worker]\nretry_first = \"2h\"", &["2: worker.retry_first: is longer than worker.retry_longest"]);
    check(
        "[worker]\nlisten = \"here\"",
        &["2: worker.listen: \"here\" is not an address and a port like \"127.0.0.1:9464\", nor \"off\""],
    );
    check(
        "[parser]\npdf = \"acrobat\"",
        &["2: parser.pdf: \"acrobat\" is not a word that is known here; known are pdfium, unpdf, pdf-extract"],
    );
    check("[parser]\nfonts = []", &["2: parser.fonts: is an empty list"]);
    check(
        "[database]\nurl = \"mysql://x\"",
        &["2: database.url: is not an address like postgres://user@host:5432/name"],
    );
}

#[test]
fn listening_can_be_switched_off() {
    for off in ["", "off", "${UNSET:-}"] {
        assert_eq!(read(&format!("worker.listen = \"{off}\"")).worker.listen, None);
    }
}

#[test]
fn stores_are_checked() {
    check("[stores.a]", &["1: stores.a.kind: is missing; write for example kind = \"local\""]);
    check("[stores.a]\nkind = \"local\"", &["1: stores.a.root: is missing; write for example root = \"./files\""]);
    check(
        "[stores.a]\nkind = \"s3\"\nbucket = \"b\"\nkey_id = \"${KEY}\"",
        &["4: stores.a.key_id: is given without `secret`; give both or none"],
    );
    check(
        "[stores.a]\nkind = \"s3\"\nbucket = \"b\"\nroot = \"x\"",
        &["4: stores.a.root: is not a key that is known here; known are bucket, endpoint, key_id, kind, largest, \
           path_style, region, secret"],
    );
    check(
        "[stores.a]\nkind = \"url\"\nhosts = [\"https://example.org\"]",
        &["3: stores.a.hosts: \"https://example.org\" is not a host name like files.example.org or *.example.org"],
    );
    check(
        "[stores.a]\nkind = \"supabase\"\nurl = \"https://me:hunter2@example.org\"\nkey = \"\"\nbucket = [\"a\", \"a\"]",
        &[
            "3: stores.a.url: holds a user name or a password; give credentials in their own keys",
            "4: stores.a.key: is empty",
            "5: stores.a.bucket: names something twice",
        ],
    );
    let config =
        read("[stores.a]\nkind = \"s3\"\nbucket = \"b\"\nkey_id = \"${UNSET:-}\"\nendpoint = \"http://[::1]:9000\"");
    assert!(matches!(config.stores["a"].kind, StoreKind::S3 { key_id: None, path_style: true, .. }));
}

#[test]
fn providers_models_and_prices_are_checked() {
    check(
        "[providers.a]\nkind = \"openai\"",
        &["1: providers.a.key: is missing; write for example key = \"${OPENAI_API_KEY}\""],
    );
    check(
        "[providers.a]\nkind = \"openai\"\nurl = \"http://localhost/v1/embeddings\"",
        &["3: providers.a.url: ends in /embeddings; leave that off, it is added"],
    );
    check(
        "[providers.a]\nkind = \"openai\"\nurl = \"http://localhost/v1?key=x\"",
        &["3: providers.a.url: must end before `?` and `#`: paths are added to it"],
    );
    check(
        "[providers.a]\nkind = \"openai\"\nkey = \"x\"\nrequests_per_minute = 0\ntokens_per_minute = 5000000000\n\
         keys = { acme = \"${UNSET:-}\", \"\" = \"y\" }\npack_across_tenants = \"no\"",
        &[
            "4: providers.a.requests_per_minute: must be a whole number from 1 to 4294967295",
            "5: providers.a.tokens_per_minute: must be a whole number from 1 to 4294967295",
            "6: providers.a.keys.acme: is empty",
            "6: providers.a.keys.\"\": is no tenant's: rows without a tenant are paid with `key`",
            "7: providers.a.pack_across_tenants: \"no\" is neither true nor false",
        ],
    );
    check_change(
        "provider = \"openai\", name",
        "provider = \"opnai\", name",
        &["4: models.small.provider: \"opnai\" is not there; did you mean `openai`?; or add a section [providers.…]"],
    );
    check_change(
        "dimensions = 1536",
        "tokens = 100, tokenizer = \"model\"",
        &[
            "4: models.small.dimensions: is missing; write for example dimensions = 1536",
            "4: models.small.tokens: is 100, but one text may have 8191; raise it or lower longest",
            "4: models.small.tokenizer: must be \"cl100k\" or \"o200k\": only a local model brings its own",
        ],
    );
    check_change(
        "usd = 0.00000002",
        "meter = \"reused_vectors\"\nusd = 1",
        &["7: prices[0].meter: \"reused_vectors\" is not a word that is known here; known are tokens, audio_minutes"],
    );
    check_change("usd = 0.00000002", "usd = -2", &["7: prices[0].usd: -2 is below zero"]);
    check_change(
        "from = 2026-01-01",
        "from = 12:30:00",
        &["8: prices[0].from: 12:30:00 is not a date like 2026-01-01 or 2026-01-01T12:00:00Z"],
    );
    check_change(
        "[pipelines.documents]",
        "[[prices]]\nmodel = \"small\"\nusd = 1\nfrom = 2026-01-01T00:00:00Z\n[pipelines.documents]",
        &["9: prices[1]: prices the same model, meter and day again; remove one"],
    );
}

#[test]
fn what_a_provider_allows_and_whose_key_is_used_are_read() {
    let config = read(
        "[providers.a]\nkind = \"elevenlabs\"\nkey = \"x\"\nrequests_per_minute = 60\nkeys = { acme = \"y\" }\n\
         pack_across_tenants = false\n[providers.b]\nkind = \"openai\"\nkey = \"x\"\ntokens_per_minute = 7",
    );
    let (a, b) = (&config.providers["a"], &config.providers["b"]);
    assert_eq!(a.allowance, Allowance { requests: Some(60), tokens: None });
    assert_eq!(b.allowance, Allowance { requests: None, tokens: Some(7) });
    assert_eq!((a.pack_across_tenants, b.pack_across_tenants, b.keys.len()), (false, true, 0));
    assert_eq!(a.keys["acme"].expose(), "y");
    // What is stored of a secret says nothing of it, and tells it from others.
    assert_eq!((a.keys["acme"].fingerprint().len(), format!("{:?}", a.keys)), (16, "{\"acme\": Secret(…)}".to_owned()));
    assert_ne!(a.keys["acme"].fingerprint(), a.kind.key().unwrap().fingerprint());
}

#[test]
fn prices_are_exact() {
    for usd in ["0.00000002", "2e-8", "\"0.00000002\"", "\"2e-8\""] {
        let config = read(&GOOD.replace("usd = 0.00000002", &format!("usd = {usd}")));
        assert_eq!(config.prices[0].usd, Decimal::new(2, 8), "{usd}");
    }
}

#[test]
fn defaults_depend_on_the_provider() {
    let models = "[providers.in]\nkind = \"local\"\n[providers.h]\nkind = \"hash\"\n\
                  [models.a]\nprovider = \"in\"\nname = \"x\"\ndimensions = 384\n\
                  [models.b]\nprovider = \"h\"\ndimensions = 8\n";
    let config = read(&format!("{GOOD}\n{models}"));
    let of = |label: &str| {
        let model = &config.models[label];
        (model.longest, model.inputs, model.tokens, model.send_dimensions, model.tokenizer)
    };
    assert_eq!(of("small"), (8_191, 2_048, 300_000, true, TokenizerKind::Cl100k));
    assert_eq!(of("a"), (256, 64, 16_384, false, TokenizerKind::Model));
    assert_eq!(of("b"), (8_191, 2_048, 300_000, false, TokenizerKind::Cl100k));
}
