"""Command line and Ray job entry points: argv → frozen config → one pipeline call → one JSON line."""
