//! The configuration: one TOML file, checked before anything starts.
