"""The command line: docker's grammar under the name sampan, and verbs of our own. docs/cli.md is the tour."""
