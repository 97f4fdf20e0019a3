"""Where artifacts are delivered to besides the index: one file per kind of sink."""
