"""Otto's HTTP face: a process of its own that speaks to root as any client does.

`root_link` is the connection to root, `exposition` what Prometheus reads, `app` the endpoints, `server` the life of
the process. Nothing here can change anything in Otto: the link asks for metrics and for signs of life.
"""
