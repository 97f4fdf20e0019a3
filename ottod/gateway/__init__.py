"""The HTTP face: metrics, dashboard, WebSocket. A client of root in a process of its own; it has no content yet."""
