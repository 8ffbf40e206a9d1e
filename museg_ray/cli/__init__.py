"""The `museg` command, one file a subcommand."""
