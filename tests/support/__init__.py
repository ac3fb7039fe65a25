"""What several test folders share: waiting on conditions, builders, fakes."""
