"""`package bench`: how fast a bundle predicts on this machine, and whether one way to run it is faster than another."""
