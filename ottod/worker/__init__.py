"""A session's own process: one incarnation of one agent, which may be killed at any instant."""
