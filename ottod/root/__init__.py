"""The supervisor process: it starts, routes, records and reaps, and imports nothing that it supervises."""
