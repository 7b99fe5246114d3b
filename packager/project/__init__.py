"""Read a project: package.yaml and the files that it names.

`manifest` defines and loads the manifest, `yaml_source` keeps the line of every field, `validation_errors` turns
pydantic's errors into problems with a location, and `preflight` checks the other files before a build starts.
"""
