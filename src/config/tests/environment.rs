//! What the environment says, and what must not be shown of it.

use super::*;

#[test]
fn the_environment_fills_in_any_value() {
    let config = read("[worker]\nslots = \"${EIGHT}\"\nlease = \"${EIGHT}s\"\nmemory = \"${UNSET:-9 MiB}\"");
    assert_eq!((config.worker.slots, config.worker.lease), (8, Duration::from_secs(8)));
    assert_eq!(config.worker.memory, 9 << 20);
    check(
        "[worker]\nslots = \"${UNSET}\"",
        &["2: worker.slots: the environment variable UNSET is not set; set it, or write ${UNSET:-a default}"],
    );
    check("[worker]\nslots = \"${MANY}\"", &["2: worker.slots: \"${MANY}\" is not a whole number"]);
    let nothing = Config::read("workers.toml", "", &|_| None).unwrap_err();
    assert_eq!(
        rendered(&nothing),
        ["workers.toml:1: database.url: the environment variable DATABASE_URL is not set; set it, or write \
         ${DATABASE_URL:-a default}",]
    );
}

#[test]
fn the_environment_overrides_settings() {
    let overriding = |name: &str| match name {
        "GRISTMILL__WORKER__SLOTS" => Some("8".to_owned()),
        "GRISTMILL__PARSER__PDF" => Some("unpdf".to_owned()),
        "GRISTMILL__WORKER__LEASE" => Some("hunter2".to_owned()),
        name => environment(name),
    };
    let config = Config::read("", "[worker]\nslots = 4", &|name| {
        if name.ends_with("LEASE") { None } else { overriding(name) }
    });
    let config = config.unwrap();
    assert_eq!((config.worker.slots, config.parser.pdf), (8, PdfReader::Unpdf));
    let misfits = Config::read("workers.toml", "\n[worker]\nslots = 4", &overriding).unwrap_err();
    assert_eq!(
        rendered(&misfits),
        [
            "workers.toml:2: worker.lease: the value of GRISTMILL__WORKER__LEASE is not a whole number with a unit, like \"60s\"",
        ]
    );
}

#[test]
fn no_secret_is_shown() {
    let text = "[database]\nurl = \"hunter2\"\n[worker]\nslots = \"${MANY}\"\nlisten = \"${MANY}\"\n[parser]\npdf = \"${MANY}\"\n\
                [stores.a]\nkind = \"supabase\"\nurl = \"hunter2\"\nkey = [\"hunter2\"]\nbucket = 1\n\
                [models.x]\nprovider = \"${MANY}\"\n[stores.b]\nkind = \"${MANY}\"\n";
    let misfits = misfits(text).join("\n");
    assert_eq!(misfits.lines().count(), 9, "{misfits}");
    assert!(!misfits.contains("hunter2"), "{misfits}");
    assert!(!format!("{:?}", read(GOOD)).contains("hunter2"));
}
