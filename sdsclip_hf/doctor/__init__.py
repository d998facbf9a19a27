"""Whether this machine, the Hub and the data have what a run will need; all of it is only looked at."""
