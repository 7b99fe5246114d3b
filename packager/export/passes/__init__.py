"""The passes that turn an exported graph into the graph that ships, and the process that runs them."""
