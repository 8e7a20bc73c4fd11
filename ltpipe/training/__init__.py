"""Parts of training that every stage shares."""
