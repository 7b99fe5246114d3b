"""Load the eager PyTorch module that a project describes.

`loader` does it, with one module for each part: `importing` runs the user's code, `construct` builds the module,
`weights` puts the checkpoint into it, and `inputs` checks what forward() takes. `huggingface` and `serialized` load
the modules that need no code of the user's. `code_dependencies` observes what that code imports and reads, and
`host_settings` restores what it changes in the process.
"""
