"""The programs: each is thin, parses its command line and calls what it names."""
