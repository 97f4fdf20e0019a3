"""ZeroMQ sockets under the event loop, and nothing that knows what is said over them."""
