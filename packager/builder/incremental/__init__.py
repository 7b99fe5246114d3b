"""What need not be built again: the keys of the stages, their results in the cache, and the check for no work at all."""
