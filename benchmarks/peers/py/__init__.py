"""The peers that are written in Python: one hub, one session program, and four ways to start a process."""
