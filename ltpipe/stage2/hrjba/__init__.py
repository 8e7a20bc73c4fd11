"""HRJBA: branches of head and tail classes joined."""
