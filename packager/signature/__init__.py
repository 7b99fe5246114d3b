"""Sign bundles in the OpenSSF Model Signing format, and check who signed one."""
