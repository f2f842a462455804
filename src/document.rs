//! Reads the YAML of a configuration and says, with line and path, all that is wrong with it.
