"""Files that people write (daemon, agents) turned into frozen structs, with errors that name line and column.

Layer 0: nothing here imports a tool, a provider or an SDK. Import the module you need; this package imports none.
"""
