"""The command line: one file a command, each parsing its options and calling one function."""
