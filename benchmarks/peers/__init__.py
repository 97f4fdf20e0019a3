"""Other ways to run many sessions, measured with the same jobs as Otto; `wire` says what they share, `roster` who."""
