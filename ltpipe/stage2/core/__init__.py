"""What every method of stage two shares."""
