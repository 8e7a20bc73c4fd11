"""What jobs run in: the server that short jobs are forked from, the environment."""
