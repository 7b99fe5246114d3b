"""Save a training loop's state while it runs, and restore it.

`manager` has the public class. `loop_state` reads the state of a loop and restores it, with `module_weights`,
`random_states` and `fsdp1` for its parts. `write` writes one checkpoint, `restore` reads one, and `retention` decides
which ones are deleted. `sharded_io` and `sharded_targets` handle tensors that are sharded over several ranks.
`huggingface_export` is separate: it writes a trained module for transformers to load.
"""
