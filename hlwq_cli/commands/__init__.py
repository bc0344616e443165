"""One file, one subcommand: options, one library call, the result shown."""
