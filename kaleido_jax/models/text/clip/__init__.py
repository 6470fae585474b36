"""CLIP's text tower, whose pooled output is FLUX's summary of the prompt."""
