"""The `aristos` command: one file for each subcommand, with `main(argv) -> exit code` and a one-line `SUMMARY`."""
