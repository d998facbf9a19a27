"""What a run will need, told before it is started."""
