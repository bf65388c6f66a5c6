"""mixlaw chooses the data mixture of a language model's pre-training, and says how sure it is."""

__version__ = "0.1.0"
