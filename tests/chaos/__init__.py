"""Chaos and churn: a real daemon under a seeded storm of signals, and thousands of sessions in a row.

    python -m tests.chaos --minutes 10 --sessions 50 --seed 7
    python -m tests.chaos.churn --sessions 2000

Theory of operation. One loop in one thread drives everything from outside the daemon: `population` keeps a number of
sessions of mixed kinds alive, `storm` does things to processes and clients as its seed says and notes each of them in
`deeds`, `desk` asks the daemon for things and insists on answers. The `witness` reads all events from offset 0 with a
cursor of its own that outlives every root, and keeps a `story` of each session; the `census` knows from the process
table who is alive of which session. What these see is checked against DESIGN §3 at every event and every look, and
counted in `findings`: a run that injects nothing, or checks nothing, has failed.

The seed decides what is tried and in which order. Processes are real, so the same seed is the same storm over
slightly different weather.
"""
