//! A JSON Schema of the files, for editors.

use crate::file::File;

/// The schema of a configuration file (draft 2020-12).
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(File).to_value()
}
