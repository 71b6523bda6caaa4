//! `[stores.x]`

use super::raw::Section;
use super::values::{boolean, host, list, path, secret, size, text, url, word};
use super::{Store, StoreKind};

const LARGEST: u64 = 50 << 20;

#[derive(Clone, Copy)]
enum Kind {
    Local,
    S3,
    Supabase,
    Gcs,
    Azure,
    Url,
}

const KINDS: [(&str, Kind); 6] = [
    ("local", Kind::Local),
    ("s3", Kind::S3),
    ("supabase", Kind::Supabase),
    ("gcs", Kind::Gcs),
    ("azure", Kind::Azure),
    ("url", Kind::Url),
];

pub(super) fn store(mut section: Section) -> Option<Store> {
    let largest = section.or("largest", size, LARGEST);
    // Without a kind nobody knows which keys belong here.
    let kind = match section.need("kind", word(&KINDS), "\"local\"")? {
        Kind::Local => section.need("root", path, "\"./files\"").map(|root| StoreKind::Local { root }),
        Kind::S3 => s3(&mut section),
        Kind::Supabase => supabase(&mut section),
        Kind::Gcs => gcs(&mut section),
        Kind::Azure => azure(&mut section),
        Kind::Url => {
            let hosts = section.need("hosts", list(host), "[\"files.example.org\"]");
            let private = section.or("private", boolean, false);
            hosts.map(|hosts| StoreKind::Url { hosts, private })
        }
    };
    section.finish();
    Some(Store { kind: kind?, largest })
}

fn s3(section: &mut Section) -> Option<StoreKind> {
    let bucket = section.need("bucket", text, "\"documents\"");
    let region = section.or("region", text, "us-east-1");
    let endpoint = section.optional("endpoint", url);
    let key_id = section.optional("key_id", secret);
    let secret = section.optional("secret", secret);
    let path_style = section.or("path_style", boolean, endpoint.is_some());
    match (&key_id, &secret) {
        (Some(_), None) => section.misfit_at("key_id", "is given without `secret`; give both or none"),
        (None, Some(_)) => section.misfit_at("secret", "is given without `key_id`; give both or none"),
        (Some(_), Some(_)) | (None, None) => {}
    }
    Some(StoreKind::S3 { bucket: bucket?, region, endpoint, key_id, secret, path_style })
}

fn supabase(section: &mut Section) -> Option<StoreKind> {
    let url = section.need("url", url, "\"${SUPABASE_URL}\"");
    let key = section.need("key", secret, "\"${SUPABASE_SECRET_KEY}\"");
    let buckets = section.need("bucket", list(text), "\"documents\"");
    Some(StoreKind::Supabase { url: url?, key: key?, buckets: buckets? })
}

fn gcs(section: &mut Section) -> Option<StoreKind> {
    if !cfg!(feature = "gcs") {
        section.misfit_at("kind", "needs a gristmill built with the cargo feature `gcs`");
    }
    let bucket = section.need("bucket", text, "\"documents\"");
    let credentials = section.optional("credentials", secret);
    Some(StoreKind::Gcs { bucket: bucket?, credentials })
}

fn azure(section: &mut Section) -> Option<StoreKind> {
    if !cfg!(feature = "azure") {
        section.misfit_at("kind", "needs a gristmill built with the cargo feature `azure`");
    }
    let account = section.need("account", text, "\"example\"");
    let container = section.need("container", text, "\"documents\"");
    let key = section.optional("key", secret);
    Some(StoreKind::Azure { account: account?, container: container?, key })
}
