"""Pure decisions. Nothing here reads a clock, draws a random number, opens a file or waits.

Each machine has one mutator, `step(event) -> actions`: events are past tense, actions are orders. The process
around it executes the actions and feeds what came of them back as events.
"""
