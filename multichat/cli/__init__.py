"""The commands: parse, build the configuration, run."""
