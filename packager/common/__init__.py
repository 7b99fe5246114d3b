"""What every room may use: nothing in here knows of manifests, models or bundles."""
