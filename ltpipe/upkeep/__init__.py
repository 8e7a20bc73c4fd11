"""Care for finished artifacts: why they would be rebuilt, are they whole, are they needed."""
