//! Floor 2: size-limited reads over object stores.
// STUB until merge
pub struct Files;
pub struct StorePath;
pub struct FileBytes {
    pub bytes: bytes::Bytes,
    pub hash: [u8; 32],
    pub media_type: Option<String>,
    pub size: u64,
}
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("m")]
    Missing,
    #[error("d")]
    Denied,
    #[error("t")]
    TooLarge { limit: u64 },
    #[error("u {0}")]
    Unavailable(String),
    #[error("c {0}")]
    Misconfigured(String),
    #[error("b {0}")]
    BadPath(String),
}
impl StorePath {
    pub fn checked(_: &str, _: Option<&str>) -> Result<Self, String> {
        todo!()
    }
}
impl Files {
    pub fn largest(&self, _: &str) -> u64 {
        0
    }
    pub async fn read(&self, _: &str, _: &StorePath) -> Result<FileBytes, FileError> {
        todo!()
    }
}
