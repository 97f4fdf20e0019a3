"""The seeded simulator: root's real logic on a simulated clock, bus, disk and process table, with faults.

    make sim SEED=7        one seed and its trace
    make sim-long          10,000 seeds

Theory of operation. A seed decides everything: what clients ask, how workers behave, which faults strike and when,
how long each message, thread and write takes. `world` is the clock and the queue of what will happen; `loop` is
root's event loop on it; `bus`, `disk`, `processes`, `zygote` are what root sees of the machine; `worker` and `client`
speak the real protocols; `stage` gives root's modules the machine's clock and kernel; `root` assembles root's real
parts; `scenario` is the plot; `oracle` knows the truth and raises `Violation`. Nothing here waits for real time.
"""
