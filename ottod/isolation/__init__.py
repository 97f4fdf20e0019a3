"""What confines a session and ends it: files, processes, Landlock, and the programs that tools start."""
