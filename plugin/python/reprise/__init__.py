"""reprise: post-training with replayed Top-K token sets. Data in, pictures out; the training itself is the `reprise` program."""

__version__ = "0.1.0"
