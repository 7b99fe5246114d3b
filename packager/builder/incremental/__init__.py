"""What need not be built again: the stages' keys, their results in the cache, and the check for no work at all."""
