"""What suites share: systems, clocks, checks, and the one format of results."""
