"""The commands: one file per noun. What a command needs beyond its options it imports when it runs, so that the
quick ones stay quick."""
