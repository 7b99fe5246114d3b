"""The part of the catalogue that runs in CI: small models of every kind that the development environment has."""

SAMPLE: tuple[str, ...] = (
    "minilm",
    "pyg-gat",
    "pyg-graphsage",
    "pyg-pool",
    "rtdl-mlp",
    "rtdl-resnet",
    "transformers-decision-transformer",
    "transformers-distilbert",
    "transformers-electra",
    "transformers-esm",
    "transformers-gpt2-step",
    "transformers-llama-step",
    "transformers-patchtst",
    "transformers-t5-decoder-step",
    "transformers-vit",
)
