"""The fork server: single-threaded, warm, and with nothing to say of its own."""
