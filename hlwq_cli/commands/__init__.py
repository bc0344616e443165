"""The subcommands, one a file: each parses its options, calls one library function and shows the result."""
