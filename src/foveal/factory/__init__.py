"""Build models: by name, from a state dict, from a reference."""
