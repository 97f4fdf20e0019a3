"""A session is killed at every record of its journal, and what it costs and does is compared with one that is not."""
