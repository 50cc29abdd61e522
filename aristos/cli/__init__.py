"""The `aristos` command: one file a subcommand, each with `main(argv) -> exit code` and a one-line `SUMMARY`."""
