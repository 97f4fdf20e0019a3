"""The three stores: ring (recent events), journal (what a session needs to resume) and database (what root knows).

Each has one writer. Nothing here knows of the others.
"""
