"""Several methods' predictions in one."""
