//! The sample documents. Origin and licences: tests/fixtures/README.md.

use std::fs;
use std::path::Path;

use uuid::Uuid;

use crate::db::demo::NewDocument;

use super::super::failure::Failure;

struct Sample {
    name: &'static str,
    mime_type: &'static str,
    bytes: &'static [u8],
}

macro_rules! sample {
    ($folder:literal, $name:literal, $mime_type:literal) => {
        Sample {
            name: $name,
            mime_type: $mime_type,
            bytes: include_bytes!(concat!("../../../tests/fixtures/", $folder, "/", $name)),
        }
    };
}

/// The last one needs a password that nobody has: a failure is to be seen as well.
const FILES: [Sample; 6] = [
    sample!("files", "gentium-history.pdf", "application/pdf"),
    sample!("files", "sqlite-testing.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    sample!("files", "sqlite-whentouse.html", "text/html"),
    sample!("files", "serde_json.md", "text/markdown"),
    sample!("files", "xz-faq.txt", "text/plain"),
    sample!("hostile", "encrypted.pdf", "application/pdf"),
];

/// Rows whose text is in a column; the last one has none and is skipped.
const TEXTS: [(&str, &str); 3] = [
    (
        "note on the mill",
        "A gristmill grinds other people's grain. What goes in is theirs, what comes out is theirs, and the miller keeps the \
         books: who brought how much, and what it cost.",
    ),
    (
        "note on bread",
        "Sourdough rises slowly. Feed the starter the evening before, knead in the morning, and let the loaf rest until it has \
         doubled.",
    ),
    ("empty note", "  "),
];

/// Writes the files below their owner's folder, and returns the rows that an application would insert.
pub(super) fn write(folder: &Path) -> Result<Vec<NewDocument>, Failure> {
    let (ann, ben) = (Uuid::new_v4(), Uuid::new_v4());
    fs::create_dir_all(folder.join(ann.to_string()))?;
    let mut rows = Vec::new();
    for sample in FILES {
        let path = format!("{ann}/{}", sample.name);
        fs::write(folder.join(&path), sample.bytes)?;
        rows.push(NewDocument {
            id: Uuid::new_v4(),
            user: ann,
            name: sample.name.to_owned(),
            content: None,
            path: Some(path),
            mime_type: Some(sample.mime_type.to_owned()),
        });
    }
    rows.extend(TEXTS.map(|(name, text)| NewDocument {
        id: Uuid::new_v4(),
        user: ben,
        name: name.to_owned(),
        content: Some(text.to_owned()),
        path: None,
        mime_type: None,
    }));
    Ok(rows)
}
