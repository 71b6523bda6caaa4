use super::{Config, ConfigError};

pub(super) fn config(
    _file: &str,
    _text: &str,
    _environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Vec<ConfigError>> {
    todo!("the configuration helper writes this")
}
